"""The rooms that a model enters on its way through `shrink`, as CONTRIBUTING.md prints them."""

from __future__ import annotations

import re
import sys
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import surgeon
from surgeon.frontend.trace import Graph
from surgeon.groups.coupling import Groups

HOME = Path(surgeon.__file__).parent
CONTRIBUTING = HOME.parent / "CONTRIBUTING.md"
# What a model is on its way.
CARRIED = (nn.Module, Graph, Groups, surgeon.Plan)
# What stands between a caller and the function that it calls: the checks of its arguments.
CHECKS = ("support/arguments.py", "frontend/parameters.py")


def place(frame: FrameType | None) -> str:
    """A frame's file below surgeon/; empty where it is in none."""
    path = frame.f_code.co_filename if frame is not None else ""
    return path.removeprefix(f"{HOME}/") if path.startswith(f"{HOME}/") else ""


def arguments(frame: FrameType) -> list[Any]:
    """What a function was called with; of a method, not what it is asked of."""
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    asked = names[:1] == ("self",) and code.co_name != "__init__"
    return [frame.f_locals.get(name) for name in names[asked:]]


class Walk:
    """Notes the rooms into which the pipeline hands the model, one after the other."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        here = place(frame)
        if not here or here in CHECKS or here.startswith("pipeline/"):
            return
        caller = frame.f_back
        while caller is not None and (not place(caller) or place(caller) in CHECKS):
            caller = caller.f_back
        carried = any(isinstance(value, CARRIED) for value in arguments(frame))
        if carried and place(caller).startswith("pipeline/"):
            self.calls.append(here.split("/")[0])

    @property
    def rooms(self) -> list[str]:
        return [room for room, _ in groupby(self.calls)]


def printed(word: str) -> list[str]:
    """The rooms on the line of CONTRIBUTING.md that begins so."""
    found = re.search(rf"^ +{word}: +(.*)$", CONTRIBUTING.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1].split(" → ")


WAYS: list[tuple[str, dict[str, Any]]] = [
    ("plain cut", {"compensate": False}), ("with data", {"data": torch.randn(48, 3, 8, 8)}), ("with data", {}),
]


@pytest.mark.parametrize(("word", "options"), WAYS)
def test_a_model_goes_from_room_to_room_and_never_back(word: str, options: dict[str, Any]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
    net(torch.randn(8, 3, 8, 8))  # a batch norm that has seen nothing gets the plain cut
    walk, before = Walk(), sys.getprofile()
    sys.setprofile(walk)
    try:
        surgeon.shrink(net, 0.5, example_inputs=torch.randn(2, 3, 8, 8), distill=False, return_report=True, **options)
    finally:
        sys.setprofile(before)
    assert walk.rooms == printed(word)
    assert len(walk.rooms) == len(set(walk.rooms)) <= 12
