"""Padding: the same samples, padded to another length, give the same plan and the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from surgeon.calibration.padding import Padding
from surgeon.frontend.trace import Inputs, trace
from surgeon.groups.coupling import couple
from surgeon.ir.fingerprint import named_tensors

LENGTHS = (5, 3, 7, 6)


class Attending(nn.Module):
    """A block of a transformer over tokens, with a mask of their padding."""

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pooled = pooled
        self.embed, self.places = nn.Embedding(20, 16), nn.Parameter(torch.randn(16, 16))
        self.norm, self.last = nn.LayerNorm(16), nn.LayerNorm(16)
        self.q, self.k, self.v, self.o = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        h = self.embed(input_ids) + self.places[: input_ids.shape[1]]
        x = self.norm(h)
        q, k, v = (layer(x).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, attention_mask.bool()[:, None, None, :])
        h = h + self.o(mixed.transpose(1, 2).flatten(2))
        h = h + self.down(F.gelu(self.up(self.last(h))))
        if not self.pooled:
            return self.head(h)
        weights = attention_mask[..., None].to(h)
        return self.head((h * weights).sum(1) / weights.sum(1))


class Flat(Attending):
    """The same, with tokens of all samples in one axis."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        h = self.last(self.embed(input_ids) + self.places[: input_ids.shape[1]])
        rows = self.down(F.gelu(self.up(h.reshape(-1, 16))))
        return self.head(rows.reshape(h.shape) + h)


class Torchs(nn.Module):
    """torch's own encoder, whose mask is true of padding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 4)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)

    def forward(self, src: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(src), src_key_padding_mask=src_key_padding_mask))


class Windows(nn.Module):
    """Convolutions along the tokens, with a batch norm between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b = nn.Conv1d(4, 16, 1), nn.BatchNorm1d(16), nn.Conv1d(16, 3, 1)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x.transpose(1, 2))).relu()).transpose(1, 2)


def padded(length: int, filler: int, samples: int = 80) -> tuple[Tensor, Tensor]:
    """Tokens of samples of several lengths, filled up to one, and their mask."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.full((samples, length), filler)
    for row in range(samples):
        own = LENGTHS[row % len(LENGTHS)]
        tokens[row, :own] = torch.randint(20, (own,), generator=generator)
    return tokens, (torch.arange(length) < torch.tensor(LENGTHS).repeat(samples // len(LENGTHS))[:, None]).long()


def form(model: nn.Module, length: int, filler: int) -> dict[str, Tensor]:
    tokens, mask = padded(length, filler)
    if isinstance(model, Torchs):
        return {"src": tokens, "src_key_padding_mask": mask == 0}
    if isinstance(model, Windows):
        table = torch.randn(20, 4, generator=torch.Generator().manual_seed(2))
        return {"x": torch.where(mask[..., None] == 1, table[tokens], float(filler)), "attention_mask": mask}
    return {"input_ids": tokens, "attention_mask": mask}


def shrunk(model: nn.Module, length: int, filler: int, **options: Any) -> tuple[nn.Module, Any]:
    data = form(model, length, filler)
    example = {name: value[:2] for name, value in data.items()}
    # MACs depend on the length
    return surgeon.shrink(
        model, 0.4, example_inputs=example, data=data, budget="params", return_report=True, **options
    )


MODELS = {
    "attention": Attending(), "pooled": Attending(pooled=True), "flat": Flat(), "torch's encoder": Torchs(),
}


@pytest.mark.parametrize("name, distill", [*((name, False) for name in MODELS), ("flat", True)])
def test_padding_counts_neither_in_moments_nor_in_losses(name: str, distill: bool) -> None:
    model = MODELS[name].eval()
    (one, first), (other, second) = (shrunk(model, n, fill, distill=distill) for n, fill in ((7, 0), (11, 13)))
    assert first.recovery.after == pytest.approx(second.recovery.after, rel=1e-3)
    assert first.groups == second.groups
    for (name, a), (_, b) in zip(named_tensors(one), named_tensors(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 if distill else 1e-4, msg=name)


@pytest.mark.parametrize("importance", ["activation", "apoz"])
def test_padding_is_not_important(importance: str) -> None:
    model = MODELS["attention"].eval()
    one, other = (shrunk(model, n, fill, importance=importance, distill=False)[1] for n, fill in ((7, 0), (11, 13)))
    assert one.groups == other.groups
    assert one.recovery.after == pytest.approx(other.recovery.after, rel=1e-3)


def test_batch_norms_see_no_padding() -> None:
    model = Windows().eval()
    (one, first), (other, second) = (shrunk(model, 7, fill, distill=False) for fill in (0, 13))
    assert first.groups == second.groups
    for (name, a), (_, b) in zip(named_tensors(one), named_tensors(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


class Two(nn.Module):
    """An encoder's and a decoder's tokens; only the former have a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, decoder_x: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.c(self.a(x) * attention_mask[..., None]), self.c(self.b(decoder_x))


def test_a_mask_is_of_the_inputs_that_it_is_named_for() -> None:
    groups = couple(trace(Two(), (torch.zeros(2, 5, 3), torch.zeros(2, 5, 3), torch.ones(2, 5))))
    batch: Inputs = ((torch.zeros(2, 5, 3), torch.zeros(2, 5, 3), torch.tensor([[1.0] * 5, [1.0] * 3 + [0.0] * 2])), {})
    encoder, decoder = Padding(groups).outputs(batch)
    assert encoder is not None and encoder.flatten().tolist() == [True] * 8 + [False] * 2
    assert decoder is None


@pytest.mark.parametrize("mask", [torch.ones(2, 5), torch.full((2, 5), -1.0), torch.rand(2, 5)])
def test_what_is_no_mask_of_zeros_and_ones_hides_nothing(mask: Tensor) -> None:
    groups = couple(trace(Two(), (torch.zeros(2, 5, 3), torch.zeros(2, 5, 3), torch.ones(2, 5))))
    assert Padding(groups).outputs(((torch.zeros(2, 5, 3), torch.zeros(2, 5, 3), mask), {})) == [None, None]
