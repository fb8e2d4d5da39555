"""The same seed gives the same plan and the same weights, whatever the number of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from surgeon.ir.fingerprint import named_tensors
from surgeon.plans.carried import attached
from surgeon.projection.bases import Rotation, balanced, nested, weighted
from surgeon.scoring.optimal_brain_surgeon import _ascending


class Residual(nn.Module):
    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.a, self.b = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.n, self.m = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.m(self.b(self.n(self.a(x)).relu()))).relu()
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self, size: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.places = nn.Linear(8, size), nn.Parameter(torch.randn(10, size) / 10)
        self.q, self.k, self.v, self.o = (nn.Linear(size, size) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(size, 32), nn.Linear(32, size), nn.Linear(size, 5)
        self.n, self.m, self.last = (nn.LayerNorm(size) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.places
        y = self.n(x)
        q, k, v = (layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.m(x))))
        return self.head(self.last(x).mean(1))


def residual() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Residual().train()
    with torch.no_grad():
        model(torch.randn(64, 3, 8, 8))
    return model.eval(), torch.randn(80, 3, 8, 8)


def transformer() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Transformer().eval(), torch.randn(80, 10, 8)


@pytest.mark.parametrize("distill", [False, True], ids=["fitted", "distilled"])
@pytest.mark.parametrize("make", [residual, transformer])
def test_one_thread_or_two(make: Callable[[], tuple[nn.Module, Tensor]], distill: bool) -> None:
    found: list[tuple[nn.Module, Any]] = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            model, data = make()
            found.append(surgeon.shrink(
                model, 0.5, example_inputs=data[:2], data=data.split(32), distill=distill, align=1, return_report=True
            ))
    finally:
        torch.set_num_threads(before)
    (one, first), (two, second) = found
    plans = attached(one), attached(two)
    assert plans[0] is not None and plans[1] is not None and plans[0].cuts == plans[1].cuts
    assert first.groups == second.groups
    if distill:
        a, b = one(data).detach(), two(data).detach()
        assert float((a - b).norm()) <= 1e-3 * float(a.norm())
        return
    for (name, a), (_, b) in zip(named_tensors(one), named_tensors(two), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=name)


def test_units_of_equal_damage_go_in_their_order() -> None:
    noise = 1 + 1e-12 * np.random.default_rng(0).standard_normal(6)
    damages = np.array([3.0, 1.0, 1.0, 0.0, 2.0, 1.0])
    noisy = damages * noise + np.array([0, 0, 0, 1e-15, 0, 0])
    assert _ascending(noisy).tolist() == _ascending(damages).tolist() == [3, 1, 2, 5, 4, 0]
    assert _ascending(np.array([0.0, -1e-15, 1e-16])).tolist() == [0, 1, 2]


def spread(rank: int, seed: int) -> Tensor:
    rows = torch.randn(12, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows @ rows.t()


# Of few directions only, so that nothing but rounding tells the others apart.
BASES: dict[str, Callable[[Tensor, Tensor], Rotation]] = {
    "weighted": weighted, "nested": lambda a, b: nested(a, b, False), "centered": lambda a, b: nested(a, b, True),
    "balanced": balanced,
}


@pytest.mark.parametrize("rank", [12, 3])
@pytest.mark.parametrize("basis", BASES)
def test_bases_do_not_depend_on_rounding(basis: str, rank: int) -> None:
    covariance, metric = spread(12, 0), spread(rank, 1)
    noise = 1 + 1e-15 * torch.randn(12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    factors = torch.ones(12, 12), (noise + noise.t()) / 2
    plain, noisy = (BASES[basis](covariance * each, metric * each) for each in factors)
    torch.testing.assert_close(plain.forth, noisy.forth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain.forth @ plain.back, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-7)
