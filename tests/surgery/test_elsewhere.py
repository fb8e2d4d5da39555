"""Parts of a model that do not run at the sizes of the example inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon

Use = Callable[[Any, Tensor], Tensor]


class Pooling(nn.Module):
    """Pools where there is enough to pool; `use` is what it does elsewhere."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self.use = use
        self.first, self.spare, self.last = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last(F.avg_pool2d(x, 2) if x.shape[-1] > 8 else self.use(self, x))


@pytest.mark.parametrize(("use", "form"), [(lambda m, x: x * 2, "module"), (lambda m, x: m.spare(x), "graph")])
def test_what_runs_at_no_size_does_not_cost_the_class(use: Use, form: str) -> None:
    x = torch.randn(2, 3, 16, 16)
    slim, report = surgeon.shrink(Pooling(use), 0.5, example_inputs=x, align=1, return_report=True)
    assert report.form == form and slim.first.out_channels < 32
    assert ("at other sizes, parts run that are not cut with the rest" in report.form_reason) == (form == "graph")
    if form == "module":
        assert slim(torch.randn(2, 3, 6, 6)).shape == (2, 4, 6, 6)
