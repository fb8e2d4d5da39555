"""`surgeon sweep`: what it writes, and how it refuses."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import surgeon
from surgeon.cli.main import app

NETS = '''
import torch
from torch import nn

def sparse():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))
    with torch.no_grad():
        net[0].weight[:10] = 0
        net[2].weight[:, 20:] = 0
    return net, torch.randn(2, 6)
'''


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a user's own networks as the current one."""
    (tmp_path / "swept_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("swept_nets", None)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["sweep", "swept_nets:sparse", *map(str, arguments)])


def test_dead_neurons_go_and_what_is_written_loads(here: Path) -> None:
    result = call("-o", "out")
    assert result.exit_code == 0, result.output
    assert "22 dead units removed (10 without input, 12 without output)" in result.stdout
    report = json.loads((here / "out" / "report.json").read_text())
    assert (report["removed"], report["form"], report["groups"][0]["kept"]) == (22, "module", 10)
    assert {path.name for path in (here / "out").iterdir()} >= {"base.onnx", "slim.onnx", "plan.json"}
    sys.path.insert(0, str(here))
    try:
        import swept_nets  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(here))
    model, x = swept_nets.sparse()
    torch.testing.assert_close(surgeon.load(here / "out", swept_nets.sparse()[0])(x), model(x))


def test_connections_are_pruned_before_on_request(here: Path) -> None:
    result = call("-o", "out", "--amount", 0.95, "--scope", "local")
    assert result.exit_code == 0, result.output
    assert json.loads((here / "out" / "report.json").read_text())["removed"] > 22


@pytest.mark.parametrize(("option", "value", "message"), [
    ("--amount", 90, "--amount 90"), ("--threshold", -1, "--threshold -1"),
])
def test_careless_options_are_refused_and_write_nothing(here: Path, option: str, value: float, message: str) -> None:
    result = call("-o", "out", option, value)
    assert result.exit_code == 1 and message in result.stderr
    assert not (here / "out").exists()
