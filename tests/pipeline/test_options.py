"""One definition of the options: what Python, type checkers, the command line and plans take from it."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ForwardRef

import pytest
import torch
import typer.main
from torch import nn
from typer.testing import CliRunner

import surgeon
from surgeon.cli.main import app
from surgeon.errors import InvalidArgument
from surgeon.pipeline.options import CONCERNS, Data, Job, Options, Repair, Select, Target, keywords
from surgeon.pipeline.signatures import Planning, Selecting, Shrinking
from surgeon.training import schedules

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
OPTIONS = keywords(*CONCERNS)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))


@pytest.mark.parametrize(("typed", "taken"), [
    (Shrinking, keywords(*CONCERNS).keys() - {"ratio"}),
    (Planning, keywords(Target, Data, Select).keys() - {"ratio"}),
    (Selecting, keywords(Select).keys() - {"importance"}),
])
def test_type_checkers_are_told_the_same_names_and_types(typed: type, taken: set[str]) -> None:
    told = inspect.get_annotations(typed)
    found = {name: each.__forward_arg__ if isinstance(each, ForwardRef) else each for name, each in told.items()}
    assert found == {name: OPTIONS[name].type for name in taken}


if TYPE_CHECKING:

    def wrong_calls(model: nn.Module) -> None:
        """A type checker refuses each of these lines; it complains where one of the comments is not needed."""
        surgeon.shrink(model, 0.5, keep=16)  # type: ignore[call-arg]
        surgeon.shrink(model, 0.5, min_width="16")  # type: ignore[arg-type]
        surgeon.plan(model, 0.5, distill=True)  # type: ignore[call-arg]
        surgeon.plan(model, 0.5, samples="all")  # type: ignore[arg-type]
        surgeon.Pruner(model, 0.5, schedule=schedules.one_shot(1), data=[])  # type: ignore[call-arg]
        surgeon.Pruner(model, 0.5, schedule=schedules.one_shot(1), align=0.5)  # type: ignore[arg-type]


def test_help_tells_each_option_with_its_default() -> None:
    told = inspect.getdoc(surgeon.shrink) or ""
    found = re.findall(r"^    (\w+): ", told[: told.index("Returns:")], re.MULTILINE)
    assert found == ["model", *OPTIONS, "example_inputs", "form", "return_report"]
    parameters = inspect.signature(surgeon.shrink).parameters
    assert all(parameters[name].default == each.default for name, each in OPTIONS.items())
    assert "    distill: " not in (inspect.getdoc(surgeon.plan) or "")


def test_the_command_line_takes_all_that_can_be_written() -> None:
    commands: Any = typer.main.get_command(app)
    taken = {each.name: each for each in commands.commands["shrink"].params if not getattr(each, "hidden", False)}
    assert OPTIONS.keys() <= taken.keys()
    own = {"data", "ignore", "seed", "cpu_time", "shapes"}  # shared with other commands, or more than in Python
    for name in OPTIONS.keys() - own:
        assert taken[name].help == OPTIONS[name].option.summary
        assert taken[name].default in (OPTIONS[name].default, None)


MADE: dict[str, Callable[..., Any]] = {
    "shrink": lambda **options: surgeon.shrink(net(), 0.5, example_inputs=X, **options),
    "plan": lambda **options: surgeon.plan(net(), 0.5, example_inputs=X, **options),
    "Pruner": lambda **options: surgeon.Pruner(
        net(), 0.5, schedule=schedules.one_shot(1), example_inputs=X, **options
    ),
    "recover": lambda **options: surgeon.recover(net(), net(), surgeon.Plan("0", ()), X, **options),
}


@pytest.mark.parametrize(("name", "old", "new"), [
    ("shrink", "keep", "min_width"), ("shrink", "distil", "distill"), ("plan", "keep", "min_width"),
    ("Pruner", "keep", "min_width"), ("recover", "distil", "distill"),
])
def test_an_old_name_tells_the_new_one(name: str, old: str, new: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{old}= is called {new}= now$"):
        MADE[name](**{old: False})


@pytest.mark.parametrize(("given", "said"), [
    (("--keep", "4"), "--keep is called --min-width now"),
    (("--distil",), "--distil is called --distill now"),
    (("--no-distil",), "--no-distil is called --no-distill now"),
])
def test_an_old_option_tells_the_new_one(given: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(app, ["shrink", "timm:nothing", "--ratio", "0.5", "-o", "nowhere", *given])
    assert (result.exit_code, result.stderr) == (1, f"surgeon: {said}\n")


@pytest.mark.parametrize(("name", "option"), [("shrink", "ratios"), ("plan", "distill"), ("Pruner", "samples")])
def test_an_option_that_is_none_is_a_type_error(name: str, option: str) -> None:
    with pytest.raises(TypeError, match=rf"{name}.*\(\) got an unexpected keyword argument '{option}'"):
        MADE[name](**{option: 1})


@pytest.mark.parametrize(("concern", "given", "message"), [
    (Repair, {"min_agreement": 1.5}, "min_agreement=1.5: give a share above 0"),
    (Target, {"ratio": 0.5, "latency_ms": 3}, r"ratio=0\.5 and latency_ms=3\.0: give one of them"),
    (Target, {"latency_ms": 3, "budget": "params"}, "leave budget='params' out"),
    (Target, {"ratio": 0.5, "max_params": 9}, "max_params=9.0 is for a latency"),
    (Data, {"samples": 0}, "samples=0: give an integer"),
    (Select, {"min_width": {"*": 2.5}}, r"min_width\['\*'\]=2\.5: give a share"),
    (Job, {"min_metric": 0.9}, "min_metric is of a metric; pass metric="),
    (Job, {"metric": "accuracy"}, "metric='accuracy': give a function of a batch"),
    (Options.of, {"min_agreement": 0.9, "latency_ms": 3}, "min_agreement=0.9 is a target of its own"),
    (Options.of, {"min_agreement": 0.9, "metric": max, "min_metric": 0.9}, "leave ratio, latency_ms and min_agreement"),
    (Repair, {"distill": 1}, "distill=1: give True or False"),
    (Options.of, {"latency_ms": 3, "align": 8}, "align=8: for a latency, the device decides"),
    (Options.of, {"ratio": 0.5, "budget": "latency", "scope": "local"}, "scope='local': for a latency"),
])
def test_options_check_themselves(concern: Callable[..., Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        concern(**given)


def test_options_are_plain_and_frozen() -> None:
    made = Select(ignore=iter(["a", "b"]), min_width={"*": 1.0})
    assert made.ignore == ("a", "b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.align = 8  # type: ignore[misc]


def test_a_plan_tells_what_decided_it_by_the_names_of_the_options() -> None:
    model = net()
    made = surgeon.plan(model, 0.25, example_inputs=X, min_width={"*": 4}, ignore=[model[2].bias], data=[X], samples=2)
    assert dict(made.settings) == {
        "ratio": 0.25, "budget": "macs", "samples": 2, "importance": "reconstruction", "scope": "global",
        "ignore": ["2.bias"], "min_width": {"*": 4}, "seed": 0,
    }
    pruner = surgeon.Pruner(net(), 0.5, schedule=schedules.one_shot(1), example_inputs=X, min_width=4)
    assert pruner.plan.settings["min_width"] == 4
    assert "min_width 4" in str(pruner.plan)
    assert "keep 4" in str(surgeon.Plan("0", (), {}, {"keep": 4}))  # a plan of before the option was renamed
