"""What the command line says of an error: its own options and commands, never Python's arguments and calls."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main

import surgeon
from surgeon import errors
from surgeon.cli.main import app
from surgeon.cli.terms import Table, in_terms, options_of
from tests.cli.commands import call

PACKAGE = Path(surgeon.__file__).parent
GROUP: Any = typer.main.get_command(app)
COMMANDS = {name: options_of(command) for name, command in GROUP.commands.items()}
KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type)}

#: What no command can raise: these take Python objects, or arguments that have no option.
NOT_REACHED = (
    r"^(ridge|max_params|form|rate|n)='X'", r"not a surgeon\.",
    r"neither a surgeon\.Profile", r"surgeon\.schedules", r"surgeon\.study", r"loss\.backward",
)  # fmt: skip
PYTHON = re.compile(r"\b[a-z_]+=(?!=)|\bsurgeon\.[a-zA-Z]+|\bPlan\.|\bexample_inputs\b|\bfresh_model\b|\blatency_ms\b")


def text(node: ast.AST) -> str:
    """A message with X for what is filled in."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=values):
            return "".join(map(text, values))
        case ast.FormattedValue():
            return "'X'"
        case ast.BinOp(left=left, right=right):
            return text(left) + text(right)
    return ""


def messages() -> Iterator[str]:
    """Those of all errors that are raised outside of training, which has no command but `study`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if "training" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name in KINDS and text(first):
                    yield text(first)


def test_no_message_is_left_in_the_terms_of_python() -> None:
    found = list(messages())
    assert len(found) > 200
    told = {in_terms(message, Table.of("shrink", COMMANDS)) for message in found}
    left = [each for each in told if PYTHON.search(each) and not any(re.search(known, each) for known in NOT_REACHED)]
    assert not left, "\n".join(left)


# the command, what the error says, what is printed
TOLD = [
    ("shrink", "ratio=1.5: give a share", "--ratio 1.5: give a share"),
    ("shrink", "it holds CPU time: give cpu_time=True, or", "it holds CPU time: give --cpu-time, or"),
    ("shrink", "shapes: 3×8 has 2 axes", "--shapes: 3×8 has 2 axes"),
    ("shrink", "latency_ms=-1: give milliseconds", "--latency-ms -1: give milliseconds"),
    ("shrink", "ask for budget=\"latency\" or latency_ms=", '--budget "latency" or --latency-ms'),
    ("shrink", "with project=False", "with --no-project"),
    ("shrink", "min_width: no group is named 'a'", "--min-width: no group is named 'a'"),
    ("sweep", "amount=2: give a number", "--amount 2: give a number"),
    ("verify", "or more with align=, say", "or more with --align of `surgeon shrink`, say"),
    ("shrink", "with ignore=, min_width= and align=.", "with --ignore, --min-width and --align."),
    ("kit", "path='net.zip': a kit is", "-o net.zip: a kit is"),
    ("inspect", "make a plan with surgeon.plan", "make a plan with `surgeon shrink`"),
    ("verify", "what can be verified is plan.apply(model)", "what `surgeon apply` makes of the plan"),
]


@pytest.mark.parametrize(("command", "said", "printed"), TOLD)
def test_python_is_translated(command: str, said: str, printed: str) -> None:
    assert printed in in_terms(said, Table.of(command, COMMANDS))


@pytest.mark.parametrize("said", [
    "TypeError: f() got x == 3", "layers.ratio is (3, 4) there", "net.py has no 'keep'", "C:/data/my_folder/a.npy",
])
def test_what_is_no_argument_stays(said: str) -> None:
    assert in_terms(said, Table.of("shrink", COMMANDS)) == said


def test_outside_of_a_command_nothing_is_translated() -> None:
    assert in_terms("ratio=1.5") == "ratio=1.5"


NETS = '''
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 32), nn.Linear(32, 4)
    def forward(self, x, y):
        return self.b(torch.relu(self.a(x + y)))

class Branches(Two):
    def forward(self, x):
        return super().forward(x, x) if x.sum() > -1e9 else x

def ready():
    return nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 4))

def words():
    return ready(), "words"

def lazy():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(4))

def wider():
    return nn.Sequential(nn.Linear(5, 48), nn.ReLU(), nn.Linear(48, 4))
'''
SHRINK = ("shrink", "terms_nets:ready", "--no-bench", "-o", "out")
HALF = (*SHRINK, "--ratio", "0.5")

# the arguments, what is printed
SAID: list[tuple[tuple[str, ...], str]] = [
    ((*SHRINK, "--ratio", "1.5"), r"--ratio 1\.5: give the share"),
    (SHRINK, "give --ratio, --latency-ms, --min-agreement or --min-metric"),
    ((*HALF, "--latency-ms", "3"), r"--ratio 0\.5 and --latency-ms 3"),
    ((*SHRINK, "--latency-ms", "-3"), r"--latency-ms -3\.0: give a number above 0"),
    ((*HALF, "--min-width", "nothing=4"), "--min-width: no group is named 'nothing'"),
    ((*HALF, "--min-width", "0"), "--min-width 0: give a share"),
    ((*HALF, "--align", "0"), "--align 0: give an integer of at least 1"),
    ((*HALF, "--importance", "magic"), "--importance 'magic' is not a criterion; choose one of magnitude"),
    ((*HALF, "--importance", "taylor"), "gradients: pass batches .* as --data, and .* as --loss"),
    ((*HALF, "--importance", "activation"), "--importance 'activation' .* as --data, or --data"),
    ((*HALF, "--device", "nets.json"), "--device .* is for a latency; ask for --budget \"latency\" or --latency-ms"),
    ((*HALF, "--ignore", "conv9"), "--ignore: 'conv9' is not a part"),
    ((*HALF, "--ignore", "*"), "left alone, as asked by --ignore"),
    ((*HALF, "--seed", "-1"), "--seed -1: give an integer"),
    ((*SHRINK, "--ratio", "0.99"), "Remedy: lower the ratio, .*or relax --ignore"),
    (("inspect", "terms_nets:Two"), r"could not be inferred; .*Remedy: give --shape once for each input of Two\.forw"),
    (("inspect", "terms_nets:ready", "--shape", "2,6"), "Remedy: give --shape once for each input"),
    (("inspect", "terms_nets:words"), "what SPEC gives as inputs is a str; let the factory return"),
    (("inspect", "terms_nets:lazy"), "has no shape yet; run the model once"),
    (("inspect", "terms_nets:Branches", "--shape", "2,5"), "can't trace Branches"),
    (("sweep", "terms_nets:ready", "--amount", "2", "-o", "out"), r"--amount 2\.0: give the share"),
    (("sweep", "terms_nets:ready", "--threshold", "-1", "-o", "out"), r"--threshold -1\.0: give a number"),
    (("kit", "terms_nets:ready", "-o", "kit.zip"), "-o kit.zip: a kit is a Python archive"),
    (("apply", "terms_nets:wider", "made/plan.json", "-o", "out"), "make a plan for this model with `surgeon shrink`"),
    (("verify", "terms_nets:ready", "."), "plan.json"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with networks, and with what `surgeon shrink` made of one."""
    folder, before = tmp_path_factory.mktemp("terms"), os.getcwd()
    (folder / "terms_nets.py").write_text(NETS)
    os.chdir(folder)
    yield folder
    os.chdir(before)
    sys.modules.pop("terms_nets", None)


@pytest.fixture(scope="module")
def made(place: Path) -> Path:
    model = torch.nn.Sequential(torch.nn.Linear(5, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    surgeon.save(surgeon.shrink(model, 0.5, example_inputs=torch.randn(2, 5)), place / "made")
    return place


@pytest.mark.parametrize(("arguments", "message"), SAID, ids=[" ".join(row[0]) for row in SAID])
def test_a_mistake_is_told_in_the_terms_of_the_command_line(
    made: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    result = call(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("surgeon: ")
    assert re.search(message, result.stderr, re.DOTALL), result.stderr
    assert not PYTHON.search(result.stderr), result.stderr
    assert capfd.readouterr() == ("", "")
