"""Programs of torch.export: which sizes are symbols in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surgeon.frontend.trace import trace


class AnyNumber(nn.Module):
    """Takes as many inputs as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 8)

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        return self.layer(first) + sum(self.layer(each) for each in others)


def test_inputs_of_any_number_have_a_free_batch() -> None:
    for count in (1, 2, 4):
        assert trace(AnyNumber(), tuple(torch.randn(2, 4) for _ in range(count))).dynamic
