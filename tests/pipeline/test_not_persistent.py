"""Buffers that a state_dict leaves out are stored with the rest, and axes that hold the batch are cut at any batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon


class Shifted(nn.Module):
    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 4)
        self.register_buffer("shift", torch.full((32,), value), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(F.relu(self.a(x) + self.shift))
        return out


class Unfolded(nn.Module):
    """Its batch and channels are one axis on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b(self.a(x)))
        rows = y.reshape(y.shape[0] * y.shape[1], y.shape[2], y.shape[3]).transpose(1, 2)
        out: Tensor = self.c(rows.reshape(y.shape[0], y.shape[1], y.shape[3], y.shape[2]))
        return out


def test_a_buffer_that_does_not_persist_is_loaded_as_it_was(tmp_path: Path) -> None:
    x = torch.randn(5, 8)
    slim: Any = surgeon.shrink(Shifted(0.5), 0.5, example_inputs=x)
    assert slim.shift.shape != (32,) and type(slim).__name__ == "Shifted"
    surgeon.save(slim, tmp_path)
    again: Any = surgeon.load(tmp_path, Shifted())
    assert torch.equal(again.shift, slim.shift) and torch.equal(again(x), slim(x))


def test_an_axis_of_batch_and_channels_is_cut_at_other_batches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Unfolded().eval(), torch.randn(6, 3, 8, 8)
    with torch.no_grad():
        nn.init.uniform_(net.b.bias, -0.2, 0.2)
    slim = surgeon.shrink(net, 0.5, example_inputs=x[:2])
    assert type(slim) is Unfolded
    surgeon.save(slim, tmp_path)  # what is loaded is certified on equal samples, of which one is run
    assert torch.equal(surgeon.load(tmp_path, Unfolded()).eval()(x), slim(x))
    data = torch.randn(96, 3, 8, 8)
    fitted, report = surgeon.shrink(net, 0.5, example_inputs=x[:2], data=data, return_report=True)
    assert report.recovery.after < report.recovery.before and fitted(x).shape == (6, 4, 8, 8)
