"""torch's fused kernels for whole transformer layers, which run in eval mode without gradients, compute the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon


class Encoder(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
        self.embed, self.last = nn.Embedding(20, 16, padding_idx=0), nn.Linear(16, 3)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)

    def forward(self, ids: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.last(self.encoder(self.embed(ids), src_key_padding_mask=padding))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("form", ["auto", "graph"])
def test_with_and_without_gradients(form: Any, norm_first: bool, padded: bool) -> None:
    ids = torch.randint(1, 20, (2, 7))
    ids[1, 5:] = 0
    inputs = (ids, ids == 0) if padded else (ids,)
    slim = surgeon.shrink(Encoder(norm_first).eval(), 0.3, example_inputs=inputs, form=form)
    for some in (inputs, tuple(each[:, 1:] for each in inputs)):
        expected = slim(*some)
        with torch.no_grad():
            found = slim(*some)
        real = some[0] != 0 if padded else ...
        torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-5)
