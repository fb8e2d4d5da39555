"""A tensor with several names is zeroed under each of them where the original is run at a second size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import surgeon


class Tied(nn.Module):
    """The weight of the first layer is known by another name first, which no operator of the graph reads by."""

    def __init__(self) -> None:
        super().__init__()
        self.alias = nn.ParameterList()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 6, bias=False)
        self.alias.append(self.first.weight)
        self.alias.append(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


def test_a_tied_tensor_is_certified_at_a_second_size() -> None:
    slim, report = surgeon.shrink(
        Tied(), 0.5, example_inputs=torch.randn(2, 6), align=1, compensate=False, return_report=True
    )
    assert slim.first.weight.shape[0] < 16 and slim.alias[0] is slim.first.weight
    second = report.certificate.second_size
    assert second is not None and second.deviation is not None and second.deviation < 1e-12
