"""Scripted and traced parts of a model, which are run as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.frontend.stand_ins import as_traced

pytestmark = pytest.mark.filterwarnings("ignore")


class Branching(nn.Module):
    """Looks at values, which no trace can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if bool(x.sum() > 0):
            x = x + 1
        return self.layer(x), x.mean(1)


class Around(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.up, self.down, self.part = nn.Linear(8, 32), nn.Linear(32, 16), part
        self.wide, self.out = nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.part(self.down(self.up(x).relu()))
        y, mean = y if isinstance(y, tuple) else (y, x.mean(1))
        return self.out(self.wide(y).relu()), mean


PARTS = {
    "scripted": lambda: torch.jit.script(Branching()),
    "traced": lambda: torch.jit.trace(nn.Sequential(nn.Linear(16, 16), nn.ReLU()), torch.randn(2, 16)),
    "inside of others": lambda: nn.Sequential(nn.ReLU(), torch.jit.script(nn.Linear(16, 16))),
}


@pytest.mark.parametrize("name", PARTS)
def test_what_is_around_them_is_pruned(name: str) -> None:
    model, x = Around(PARTS[name]()).eval(), torch.randn(4, 8)
    slim, report = surgeon.shrink(model, 0.3, example_inputs=x, return_report=True)
    assert type(slim) is Around
    assert slim.up.out_features < 32 and slim.wide.out_features < 32
    assert any("a scripted module, which is kept as it is" in pin.reason for pin in report.pinned)
    assert report.certificate.deviation < 1e-6
    assert slim(torch.randn(7, 8))[0].shape == (7, 3)
    slim.train()(x)[0].sum().backward()
    for value, own in zip(slim.part.parameters(), model.part.parameters(), strict=True):
        assert torch.equal(value, own) and value is not own


def test_data_pass_through_them() -> None:
    model, data = Around(PARTS["scripted"]()).eval(), [torch.randn(32, 8) for _ in range(3)]
    slim, report = surgeon.shrink(model, 0.3, example_inputs=data[0][:2], data=data, return_report=True)
    assert type(slim) is Around
    assert report.recovery.after <= report.recovery.before


def test_they_stand_where_they_stood() -> None:
    model, x = Around(PARTS["scripted"]()).eval(), torch.randn(4, 8)
    part, wanted = model.part, model(x)
    with as_traced(model):
        assert not isinstance(model.part, torch.jit.ScriptModule)
        found = model(x)
    assert model.part is part
    for a, b in zip(wanted, found, strict=True):
        assert torch.equal(a, b)
