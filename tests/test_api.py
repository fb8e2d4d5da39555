"""The public functions: their names and their arguments; tests/test_docstrings.py has what is said of them."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import surgeon

NAMES = """
Certificate ExportReport Masks Plan Profile Pruner Quantized Recovery Report SurgeonError SweepReport Timing
TransferReport Verdict
benchmark export inspect kit load load_onnx load_verdict plan profile project prune_connections quantize recover save
shrink sweep synthesize transfer_optimizer verify
""".split()

DECISIONS = (
    "model ratio * latency_ms budget device threads cpu_time shapes max_params data samples memory loss"
    " importance scope ignore min_width align seed"
)

# Arguments in their order; those after * are given by name.
SIGNATURES = {
    "shrink": (
        f"{DECISIONS} project compensate distill min_agreement metric metric_data min_metric example_inputs form"
        " return_report"
    ),
    "plan": f"{DECISIONS} example_inputs",
    "load_onnx": "path * fixed sizes",
    "load_verdict": "path",
    "inspect": "model example_inputs ignore",
    "verify": "model slim plan example_inputs",
    "save": "model folder plan * factory",
    "load": "folder fresh_model * factory",
    "Plan.apply": "self model example_inputs form",
    "Plan.save": "self path",
    "Plan.load": "path",
    "Plan.verify": "self model slim example_inputs",
    "Plan.align": "self profile model example_inputs",
    "Pruner": (
        "model target * scope ignore min_width align seed schedule importance example_inputs budget regularizer"
    ),
    "profile": "model example_inputs * threads cpu_time shapes path",
    "kit": "model path example_inputs * shapes",
    "prune_connections": "model amount scope threshold ignore * example_inputs",
    "transfer_optimizer": "optimizer slim * model return_report",
    "sweep": "model example_inputs * threshold return_report",
    "project": "model data * samples memory example_inputs",
    "recover": (
        "model slim plan data * samples memory ridge batch_norm compensate distill example_inputs return_report"
    ),
}
FIRST = {"export": "model path", "benchmark": "base_path slim_path", "quantize": "model calibration"}
BY_NAME = {"export": "example_inputs", "benchmark": "threads", "quantize": "path"}

DEFAULTS = {
    "example_inputs": None, "budget": "macs", "ignore": (), "min_width": None, "align": None, "importance": None,
    "scope": "global", "seed": 0, "form": "auto", "return_report": False, "ratio": None, "latency_ms": None,
    "device": None, "threads": None, "cpu_time": False, "shapes": (), "max_params": None, "data": None, "samples": 256,
    "memory": None, "loss": None,
    "compensate": True, "project": True, "distill": True, "min_agreement": None,
    "metric": None, "metric_data": None, "min_metric": None,
}


def function(name: str) -> Any:
    found: Any = surgeon
    for part in name.split("."):
        found = getattr(found, part)
    return found


def written(name: str) -> str:
    """The arguments of a function as in the tables above."""
    words: list[str] = []
    for parameter in inspect.signature(function(name)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append(parameter.name)
    return " ".join(words)


def test_the_names_are_these_and_no_others() -> None:
    assert sorted(surgeon.__all__) == sorted(NAMES)
    assert all(hasattr(surgeon, name) for name in NAMES)
    public = {
        name for name, value in vars(surgeon).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(NAMES)


def test_type_checkers_are_told_the_same_names_from_the_same_files() -> None:
    stub = ast.parse(Path(surgeon.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    told = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    homes = {name: f"{home}.{name}" for home, names in surgeon._HOMES.items() for name in names.split()}
    assert told == homes | surgeon._MODULES


@pytest.mark.parametrize("command", ["import surgeon", "import torch, surgeon; surgeon.SurgeonError"])
def test_importing_surgeon_loads_nothing_heavy(command: str) -> None:
    heavy = ("sympy", "onnx", "onnxscript", "onnxruntime")
    code = f"import sys; {command}; sys.exit(str([name for name in {heavy} if name in sys.modules]))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stderr.strip() == "[]"
    assert re.fullmatch(r"\d+\.\d+\.\d+", surgeon.__version__)


COMMANDS = "shrink recover inspect apply verify profile kit bench quantize report study sweep demo".split()
LIGHT = [
    ["--help"], ["--version"], *([name, "--help"] for name in COMMANDS), ["shrnk"], ["shrink", "--rate", "2"],
    ["shrink", "timm:x"], ["shrink", "timm:x", "-o", "out", "--ratio", "1.5"], ["shrink", "timm:x", "-o", "out"],
    ["shrink", "timm:x", "-o", "out", "--ratio", "0.5", "--min-width", "few"],
    ["shrink", "timm:x", "-o", "out", "--ratio", "0.5", "--budget", "time"],
    ["shrink", "timm:x", "-o", "out", "--latency-ms", "5", "--align", "8"],
    ["inspect", "resnet18"], ["export", "gone.onnx", "-o", "x.onnx"], ["inspect", "timm:x", "--plan", "p.json"],
    ["shrink", "timm:x", "-o", "out", "--keep", "4"], ["shrink", "timm:x", "-o", "out", "--no-distil"],
]


def test_the_command_line_helps_and_refuses_without_torch() -> None:
    heavy = ("torch", "sympy", "onnx", "onnxruntime")
    code = (
        "import sys; from typer.testing import CliRunner; from surgeon.cli.main import app; "
        f"codes = [CliRunner().invoke(app, each).exit_code for each in {LIGHT}]; "
        f"print(codes, [name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    helped = 2 + len(COMMANDS)
    assert found.stdout.strip() == f"{[0] * helped + [2, 2, 2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1]} []"


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_have_their_names_and_their_order(name: str) -> None:
    assert written(name) == SIGNATURES[name]


@pytest.mark.parametrize("name", FIRST)
def test_further_arguments_are_given_by_name(name: str) -> None:
    first, _, rest = written(name).partition(" * ")
    assert first.startswith(FIRST[name])
    assert BY_NAME[name] in (first + " " + rest).split()


@pytest.mark.parametrize("name", ["shrink", "plan"])
def test_defaults_are_those_that_are_written_down(name: str) -> None:
    parameters = inspect.signature(function(name)).parameters
    found = {key: value.default for key, value in parameters.items() if value.default is not value.empty}
    assert found == {key: DEFAULTS[key] for key in found}


def test_errors_are_of_one_family() -> None:
    kinds = [value for value in vars(surgeon.errors).values() if isinstance(value, type)]
    assert len(kinds) > 10
    assert all(issubclass(kind, surgeon.SurgeonError) and kind.__doc__ for kind in kinds)
    assert {kind.__module__ for kind in kinds} == {"surgeon.errors"}
