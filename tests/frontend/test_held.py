"""Tensors that a model holds in lists, tuples and dicts."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import surgeon


class Pair(NamedTuple):
    shift: Tensor
    scale: Tensor


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 32), nn.Linear(32, 4)
        self.norm = Pair(torch.randn(32), torch.randn(32))
        self.stats: dict[str, Any] = {"mean.of": torch.randn(32), "deep": [(torch.randn(4), "text")]}
        self.norm_shift = 0  # the name that one of them would have
        self.shared = self.stats

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * self.norm.scale + self.norm.shift - self.shared["mean.of"]
        deep = self.stats["deep"]
        return self.last(x.relu()) + deep[0][0]


@pytest.mark.parametrize("form", ["module", "graph"])
def test_they_are_cut_with_the_rest(form: Any) -> None:
    model: Any = Net().eval()
    x = torch.randn(3, 6)
    slim, report = surgeon.shrink(model, 0.5, example_inputs=x, align=1, form=form, return_report=True)
    assert report.certificate.deviation < 1e-6
    assert model.norm.shift.shape == model.stats["mean.of"].shape == (32,)
    if form == "module":
        assert type(slim.norm) is Pair
        assert slim.norm.shift.shape == slim.stats["mean.of"].shape == (16,)
        assert slim.shared["mean.of"] is slim.stats["mean.of"]
        assert slim.stats["deep"][0][1] == "text"
    else:
        assert {"norm_scale", "norm_shift_", "stats_mean_of"} <= dict(slim.named_buffers()).keys()
    again = surgeon.plan(model, 0.5, example_inputs=x, align=1).apply(Net().eval(), form=form)
    assert again(x).shape == (3, 4)
