"""Wrong arguments: every public function and method, each parameter, each value of a table that is wrong for it.

The calls are generated from the signatures. What a parameter takes is written here by its name, apart from the sources;
each value that it does not take must be refused with an error that names it, before any work, and nothing may change.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import surgeon
from surgeon import training
from surgeon.errors import SurgeonError
from surgeon.reporting.report import Change
from surgeon.scoring import Gradients, register, score
from surgeon.training import schedules
from surgeon.training.unit_masks import UnitMasks

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Rude:
    """It can't even be printed."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def closed() -> io.StringIO:
    file = io.StringIO()
    file.close()
    return file


def used_up() -> Iterator[int]:
    yield from ()


VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "numpy's True": lambda: np.True_,
    "0": lambda: 0,
    "-1": lambda: -1,
    "3": lambda: 3,
    "numpy's 3": lambda: np.int64(3),
    "10 ** 400": lambda: 10**400,
    "10 ** 6000": lambda: 10**6000,
    "0.5": lambda: 0.5,
    "numpy's 0.5": lambda: np.float32(0.5),
    "1/2": lambda: Fraction(1, 2),
    "2.0": lambda: 2.0,
    "NaN": lambda: float("nan"),
    "numpy's NaN": lambda: np.float16("nan"),
    "infinity": lambda: float("inf"),
    "1j": lambda: 1j,
    "text": lambda: "x",
    "no text": lambda: "",
    "text with NUL": lambda: "a\0b",
    "text with lines": lambda: "a\nb\n",
    "half a letter": lambda: "\ud800",
    "long text": lambda: "x" * 10000,
    "bytes": lambda: b"x",
    "a path": lambda: Path("nowhere") / "at all",
    "a list": list,
    "a list of 3": lambda: [3],
    "a list of things": lambda: [object()],
    "a tuple": tuple,
    "a dict": dict,
    "a dict by number": lambda: {1: 3},
    "a dict by name": lambda: {"x": "y"},
    "a set": set,
    "a range": lambda: range(3),
    "a generator": used_up,
    "a thing": object,
    "a rude thing": Rude,
    "a class": lambda: nn.Linear,
    "a type": lambda: dict,
    "a function of nothing": lambda: lambda: None,
    "a function of nine": lambda: lambda a, b, c, d, e, f, g, h, i: None,
    "a closed file": closed,
    "a scalar tensor": lambda: torch.tensor(0.5),
    "a nested tensor": lambda: torch.nested.nested_tensor([torch.ones(2, 8), torch.ones(3, 8)], layout=torch.jagged),
    "a sparse tensor": lambda: torch.eye(8).to_sparse(),
    "an array": lambda: np.zeros((4, 8), np.float32),
    "an array of text": lambda: np.array([["a"] * 8]),
    "an array of things": lambda: np.array([[None] * 8]),
    "an array of another byte order": lambda: np.zeros((4, 8), ">f4"),
    "an array of long doubles": lambda: np.zeros((4, 8), np.longdouble),
    "an array of no axis": lambda: np.array(3),
    "a module": lambda: nn.Linear(2, 2),
    "an error": lambda: ValueError("x"),
}

NUMBERS = {"0", "3", "numpy's 3", "0.5", "numpy's 0.5", "1/2", "2.0"}
TEXTS = {"text", "no text", "text with NUL", "text with lines", "half a letter", "long text"}
DICTS = {"a dict", "a dict by number", "a dict by name"}
EMPTY = {"a list", "a tuple", "a set", "a generator"}
ARRAYS = {name for name in VALUES if name.startswith("an array")}
CALLABLE = {"a class", "a type", "a function of nothing", "a function of nine", "a module"}
KINDS: dict[str, set[str]] = {
    "module": {"a module"},
    "inputs": {"a scalar tensor"},
    "share": {"0", "0.5", "numpy's 0.5", "1/2"},
    "choice": set(),
    "flag": {"True", "numpy's True"},
    "free axes": {"True", "numpy's True", "a dict"},
    "names": EMPTY,
    "natural": {"0", "3", "numpy's 3"},
    "positive": {"3", "numpy's 3"},
    "number from 0": NUMBERS,
    "number above 0": NUMBERS - {"0"},
    "part": {"0.5", "numpy's 0.5", "1/2"},
    "unit": {"0", "0.5", "numpy's 0.5", "1/2"},
    "ignore": EMPTY,
    "least width": {"3", "numpy's 3", "10 ** 400", "10 ** 6000", "0.5", "numpy's 0.5", "1/2", "a dict"},
    "file or module": {"a module", "text", "text with lines", "a path"},
    "path": {"text", "text with lines", "a path"},
    "text": TEXTS,
    "plan": set(),
    "groups": set(),
    "graph": set(),
    "profile": set(),
    # whatever gives batches is read before anything can be said of them
    "data": {"an array", "a list of 3", "a list of things", "a range", *EMPTY, *DICTS},
    "loader": {"a list of 3", "a list of things", "a range", *EMPTY, *DICTS, *ARRAYS, "a scalar tensor",
               "a nested tensor", "a sparse tensor", "an error"},
    "any function": CALLABLE,
    "function of one": {"a type", "a class", "a module"},
    "function of two": {"a type", "a class", "a module"},
    "schedule": set(),
    "criterion": set(),
    "functions of one": {"a type", "a module", *EMPTY},
    "maker": {"a type", "a module"},
    "mapping": DICTS,
    "names to masks": {"a dict", "a dict by name"},
    "names to tensors": {"a dict"},
    "units": {"a dict"},
    "shapes": {"a list", "a list of 3", "a tuple"},
    "cuts": EMPTY,
    "anything": set(VALUES),
}

# by function and parameter, or by parameter
TAKES = {
    "model": "module", "slim": "module", "fresh_model": "module", "teacher": "module", "example_inputs": "inputs",
    "ratio": "share", "target": "share", "amount": "share", "budget": "choice", "scope": "choice", "form": "choice",
    "kind": "choice", "judge": "choice", "ignore": "ignore", "min_width": "least width", "align": "positive",
    "importance": "criterion", "criterion": "criterion", "seed": "natural", "step": "natural", "samples": "positive",
    "memory": "part", "min_agreement": "part", "min_metric": "part", "metric": "function of two", "metric_data": "data",
    "latency_ms": "number above 0", "max_params": "number above 0", "device": "path", "threads": "positive",
    "cpu_time": "flag", "spin": "flag", "clock": "choice", "peak_memory": "flag", "shapes": "shapes",
    "about": "mapping",
    "data": "data", "calibration": "data", "loss": "any function", "plan": "plan", "path": "path", "folder": "path",
    "base": "path", "base_path": "path", "slim_path": "path", "quantize.model": "file or module",
    "threshold": "number from 0",
    "ridge": "number from 0", "strength": "number from 0", "tolerance": "number above 0", "seconds": "number above 0",
    "deviation": "number above 0", "agreement": "unit", "runs": "positive", "feeds": "names to masks",
    "progress": "function of two", "schedule": "schedule", "at": "natural", "start": "natural", "end": "positive",
    "n": "positive", "every": "positive", "rate": "number above 0",
    "Steps.end": "natural", "Cubic.end": "natural", "Exponential.end": "natural", "profile": "profile",
    "other": "profile",
    "groups": "groups", "graph": "graph", "name": "text", "fingerprint": "text", "cpu": "text", "arch": "text",
    "runtime": "text", "block": "natural", "cpus": "natural", "rules": "mapping", "models": "mapping",
    "Profile.samples": "mapping", "cuts": "cuts", "inputs": "mapping", "settings": "mapping", "keep": "units",
    "Plan.steps": "cuts", "Masks.set.keep": "names to masks", "state": "names to tensors",
    "Pruner.load_state_dict.state": "mapping", "earlier": "names to tensors", "gradients": "names to tensors",
    "regularizer": "functions of one", "optimizer": "anything", "fit.loss": "function of two",
    "distillation.loss": "function of two", "fit.optimizer": "maker", "scheduler": "maker", "pruner": "choice",
    "callbacks": "functions of one", "clip": "number above 0", "epochs": "positive", "steps": "positive",
    "checkpoint": "path", "loader": "loader", "accelerator": "choice", "temperature": "number above 0",
    "weight": "unit", "logits": "function of one", "Pruner.attach.optimizer": "choice",
    "transfer_optimizer.optimizer": "choice",
    **dict.fromkeys(
        ("project", "compensate", "distill", "batch_norm", "return_report", "resume", "split", "cpu_time"), "flag"
    ),
    "fixed": "names to masks", "sizes": "names to tensors",
    "factory": "choice", "dynamic": "free axes", "opset": "choice", "input_names": "names", "output_names": "names",
}
#: What an error calls a parameter where it is not by its own name.
CALLED = {"criterion": "importance"}


class Net(nn.Sequential):
    """Two layers with units of their own between them."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))


def digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode() + value.numpy().tobytes())
    found.update(repr([(m.training, sorted(vars(m))) for m in model.modules()]).encode())
    return found.hexdigest()


class Place:
    """What the functions are called on."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.net = Net()
        self.plan = surgeon.plan(self.net, 0.5, example_inputs=X, align=1)
        self.slim = self.plan.apply(self.net)
        self.groups = surgeon.inspect(self.net, X)
        self.pruned = Net()
        self.pruner = surgeon.Pruner(self.pruned, 0.5, schedule=schedules.one_shot(5), example_inputs=X, align=1)
        self.profile = surgeon.Profile("a CPU", "x86_64", 1, "1.0")
        self.report = surgeon.Report("Net", "module", "", "macs", 0.5, 0.5, Change(2, 1),
                                     Change(2, 1), {})
        self.folder = folder
        self.valid: dict[str, Any] = {
            "model": self.net, "slim": self.slim, "fresh_model": self.net, "teacher": self.net, "plan": self.plan,
            "ratio": 0.5, "target": 0.5, "data": X, "path": folder / "none.pyz", "folder": folder / "none",
            "base_path": folder / "none", "slim_path": folder / "none", "example_inputs": X, "amount": 0.5,
            "schedule": schedules.one_shot(1), "at": 1, "start": 1, "end": 9, "n": 2, "step": 1, "strength": 0.1,
            "groups": self.groups, "graph": self.groups.graph, "keep": {}, "name": "0.weight", "profile": self.profile,
            "other": self.profile, "fingerprint": "0", "cuts": (), "cpu": "a", "arch": "b", "runtime": "c",
            "threads": 1, "state": {}, "earlier": {}, "kind": "linear", "loader": [X], "loss": lambda a, b: None,
            "optimizer": torch.optim.SGD(self.net.parameters(), 0.1), "epochs": 1, "criterion": "l1", "every": 1,
            "rate": 1.0,
        }


SUBJECTS: dict[str, Callable[[Place], Any]] = {
    **{name: lambda place, name=name: getattr(surgeon, name)  # type: ignore[misc]
       for name in surgeon.__all__ if inspect.isfunction(getattr(surgeon, name))},
    **{name: lambda place, name=name: getattr(training, name)  # type: ignore[misc]
       for name in training.__all__ if inspect.isfunction(getattr(training, name))},
    **{name: lambda place, name=name: getattr(schedules, name)  # type: ignore[misc]
       for name in ("one_shot", "steps", "cubic", "exponential", "share_at",
                    "OneShot", "Steps", "Cubic", "Exponential")},
    **{name.__name__: lambda place, name=name: name  # type: ignore[misc]
       for name in (score, register, Gradients, UnitMasks, surgeon.Masks, surgeon.Plan,
                    surgeon.Profile, surgeon.Pruner)},
    "the one of l1": lambda place: training.l1(0.1),
    "the one of group_lasso": lambda place: training.group_lasso(0.1),
    "the one of one_shot": lambda place: schedules.one_shot(3).__call__,
}
OBJECTS: dict[str, Callable[[Place], Any]] = {
    "Plan": lambda place: place.plan,
    "Profile": lambda place: place.profile,
    "Pruner": lambda place: place.pruner,
    "Masks": lambda place: surgeon.Masks(place.net),
    "UnitMasks": lambda place: UnitMasks(place.net, place.groups),
    "Gradients": lambda place: Gradients(place.groups),
    "Report": lambda place: place.report,
}
CLASSES = {**{name: getattr(surgeon, name) for name in surgeon.__all__}, "UnitMasks": UnitMasks, "Gradients": Gradients}
SUBJECTS |= {
    f"{owner}.{name}": lambda place, make=make, name=name: getattr(make(place), name)  # type: ignore[misc]
    for owner, make in OBJECTS.items()
    for name in vars(CLASSES[owner])
    if not name.startswith("_") and callable(getattr(CLASSES[owner], name))
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("arguments"))


def wrong(subject: str, called: Any) -> Iterator[tuple[str, str]]:
    """The parameters of a function, each with the names of the values that are wrong for it."""
    for name, parameter in inspect.signature(called).parameters.items():
        takes = KINDS[TAKES.get(f"{subject}.{name}", TAKES.get(f"{subject.split('.')[0]}.{name}", TAKES[name]))]
        for value in VALUES:
            if value not in takes and not (value == "None" and parameter.default is None):
                yield name, value


@pytest.mark.parametrize("subject", SUBJECTS)
def test_wrong_arguments_are_refused_by_name(subject: str, place: Place) -> None:
    called = SUBJECTS[subject](place)
    needed = [name for name, parameter in inspect.signature(called).parameters.items()
              if parameter.default is parameter.empty or name in ("ratio", "amount")]
    before = [digest(model) for model in (place.net, place.slim, place.pruned)]
    faults = []
    for name, value in wrong(subject, called):
        arguments = {each: place.valid[each] for each in needed if each != name}
        try:
            called(**arguments, **{name: VALUES[value]()})
        except SurgeonError as error:
            text = str(error)
            if not (name in text or CALLED.get(name, name) in text) or len(text) > 700:
                faults.append(f"{name}={value}: the error does not name it: {text[:300]}")
        except Exception as error:  # noqa: BLE001  (that is what is looked for)
            faults.append(f"{name}={value}: somebody else's {type(error).__name__}: {error}")
        else:
            faults.append(f"{name}={value}: taken")
    assert not faults, "\n".join(faults)
    assert [digest(model) for model in (place.net, place.slim, place.pruned)] == before
    assert not list(place.folder.iterdir())


def required(called: Any) -> list[str]:
    """The parameters that are given in their order, and have to be."""
    return [name for name, parameter in inspect.signature(called).parameters.items()
            if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD]


def test_arguments_in_the_wrong_order_are_refused(place: Place) -> None:
    tried = 0
    for subject, find in SUBJECTS.items():
        called = find(place)
        names = required(called)
        kinds = [TAKES.get(f"{subject}.{name}", TAKES[name]) for name in names]
        for first, second in itertools.combinations(range(len(names)), 2):
            if kinds[first] == kinds[second] or {kinds[first], kinds[second]} <= {"natural", "positive"}:
                continue
            values = [place.valid[name] for name in names]
            values[first], values[second] = values[second], values[first]
            tried += 1
            named = {name: place.valid[name] for name, parameter in inspect.signature(called).parameters.items()
                     if parameter.default is parameter.empty and name not in names}
            with pytest.raises(SurgeonError):
                called(*values, **named)
    assert tried > 20


def test_the_signatures_give_thousands_of_calls(place: Place) -> None:
    assert sum(len(list(wrong(name, find(place)))) for name, find in SUBJECTS.items()) > 5000
