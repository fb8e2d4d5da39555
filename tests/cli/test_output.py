"""What commands print: JSON, quiet, pages; the same options everywhere; models and data of a file."""

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from surgeon.cli.main import app
from surgeon.support import progress
from tests.cli.commands import call, good

NET = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(2, 8)

def loader():
    return [torch.randn(32, 8) for _ in range(3)]
"""
SPEC = "mine/models.py:net"
GROUP: Any = typer.main.get_command(app)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which a file, called as a package of the repository is, holds a network."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "models.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(str(tmp_path)):
            del sys.modules[name]


def options(command: Any) -> dict[str, list[str]]:
    return {each.name: sorted(each.opts) for each in command.params if each.param_type_name == "option"}


@pytest.mark.parametrize("name", sorted(GROUP.commands))
def test_every_command_has_the_common_options(name: str) -> None:
    assert {"json": ["--json"], "quiet": ["--quiet"]}.items() <= options(GROUP.commands[name]).items()


def test_an_option_has_one_name_everywhere() -> None:
    named: dict[str, set[tuple[str, ...]]] = {}
    for command in GROUP.commands.values():
        for parameter, opts in options(command).items():
            named.setdefault(parameter, set()).add(tuple(opts))
    assert {parameter: opts for parameter, opts in named.items() if len(opts) > 1} == {}


def read(*arguments: object) -> dict[str, Any]:
    """The one document that a command prints with --json."""
    found: dict[str, Any] = json.loads(good(*arguments, "--json"))
    assert found["format"].startswith("surgeon-") and found["version"] == 1
    return found


def test_results_are_one_json_document_each(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = read("inspect", SPEC)
    assert [(group["name"], group["size"]) for group in groups["groups"]] == [("0", 32)]
    assert {pin["reason"] for pin in groups["pinned"]} == {"an input of the model", "an output of the model"}
    plain = ("--ratio", 0.5, "--no-bench", "--no-compensate")
    monkeypatch.setattr("sys.argv", ["surgeon", "shrink", SPEC])  # commands are called in this process here
    made = read("shrink", SPEC, *plain, "-o", here / "out")
    assert made["groups"]["0"] == {"before": 32, "after": 16}
    assert made["command"] == f"surgeon shrink {SPEC}" and made["date"].endswith("+00:00")
    assert read("verify", SPEC, here / "out")["certificate"]["deviation"] < 1e-9
    applied = read("apply", SPEC, here / "out" / "plan.json", "-o", here / "again")
    assert applied["exports"]["slim"]["path"] == str(here / "again" / "slim.onnx")
    recovered = read("recover", SPEC, here / "again", "--data", "mine/models.py:loader", "-o", here / "better")
    assert recovered["recovery"]["samples"] == 96
    assert read("export", SPEC, "-o", here / "net.onnx")["export"]["path"] == str(here / "net.onnx")
    assert read("study", "none.py:T", "-o", here / "s", "--ratio", 0.5, "--list", "--seeds", 1)["runs"]


def test_the_page_of_the_groups_stands_alone(here: Path) -> None:
    good("shrink", SPEC, "--ratio", 0.5, "--no-bench", "--no-compensate", "-o", here / "out")
    good("inspect", SPEC, "--html", "groups.html", "--plan", here / "out" / "plan.json")
    page = (here / "groups.html").read_text()
    assert "http" not in page and "src=" not in page
    assert 'data-group="0"' in page and "32</span> <span class=\"after\">16" in page
    assert "an output of the model" in page and "docs/pinned.md" in page
    assert "give --html" in call("inspect", SPEC, "--plan", here / "out" / "plan.json").stderr


def test_quiet_leaves_errors_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []

    def loud(spec: str, *_: Any, **__: Any) -> Any:
        warnings.warn("mind the gap", UserWarning, stacklevel=1)
        shown.append((progress._piped, progress._silent))
        from surgeon.cli.options import load

        return load(spec, [], False, 0)

    monkeypatch.setattr("surgeon.cli.main.load", loud)
    result = call("inspect", SPEC, "--quiet")
    assert result.exit_code == 0 and result.stderr == "" and "group 0" in result.stdout
    assert call("inspect", "mine/models.py:nothing", "--quiet").stderr.startswith("surgeon: ")
    with pytest.warns(UserWarning, match="mind the gap"):
        call("inspect", SPEC)
    assert shown[0] == (True, True) and shown[-1] == (True, False)
    assert (progress._piped, progress._silent) == (False, False)


@pytest.mark.parametrize("spec", ["mine/nets.py:net", "mine/models.py:nett"])
def test_a_file_that_names_nothing_is_refused(spec: str) -> None:
    result = call("inspect", spec)
    assert result.exit_code == 1
    assert "mine/" in result.stderr and ("no such file" in result.stderr or "did you mean net" in result.stderr)
