"""Costs at any widths against those of a network that was built with these widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from surgeon.cost.cost import Cost
from surgeon.errors import InvalidArgument
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Groups, couple


class Block(nn.Module):
    """A residual block with an expanded depthwise convolution, its outputs concatenated with its input."""

    def __init__(self, stem: int, hidden: int, out: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, padding=1)
        self.expand = nn.Conv2d(stem, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.project = nn.Conv2d(hidden, stem, 1)
        self.out = nn.Conv2d(2 * stem, out, 1)
        self.fc = nn.Linear(out * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x + self.project(self.depthwise(self.expand(x)))
        return self.fc(self.out(torch.cat([x, y], 1)).flatten(1))


def grouped(model: nn.Module, *shape: int) -> Groups:
    return couple(trace(model.eval(), torch.zeros(*shape)))


def counted(model: nn.Module, x: Tensor) -> float:
    """Multiply-accumulate operations as torch counts them, a sample."""
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() / 2 / x.shape[0]


@pytest.mark.parametrize("widths", [(8, 24, 10), (8, 12, 10), (3, 24, 10), (5, 7, 4), (1, 1, 1)])
def test_costs_are_those_of_the_network_of_these_widths(widths: tuple[int, int, int]) -> None:
    groups = grouped(Block(8, 24, 10), 2, 3, 4, 4)
    cost = Cost(groups)
    names = {group.name: group.leaf.id for group in groups}
    chosen = {names["stem"]: widths[0], names["expand"]: widths[1], names["out"]: widths[2]}
    built = Block(*widths)
    assert cost.params(chosen) == sum(p.numel() for p in built.parameters())
    assert cost.macs(chosen) == counted(built, torch.zeros(2, 3, 4, 4))
    assert cost.channels(chosen) == sum(widths)


def test_macs_are_a_sample_whatever_the_batch() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))
    assert Cost(grouped(model, 2, 6)).macs({}) == Cost(grouped(model, 7, 6)).macs({}) == 64


def test_attention_counts_both_of_its_products() -> None:
    class Attention(nn.Module):
        def __init__(self, heads: int, size: int) -> None:
            super().__init__()
            self.heads = heads
            self.qkv = nn.Linear(12, 3 * heads * size)
            self.proj = nn.Linear(heads * size, 12)

        def forward(self, x: Tensor) -> Tensor:
            n, length, _ = x.shape
            q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            y = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
            return self.proj(y.transpose(1, 2).flatten(2))

    groups = grouped(Attention(4, 8), 2, 5, 12)
    cost = Cost(groups)
    heads, size = (group.leaf.id for group in sorted(groups, key=lambda group: group.size))
    assert cost.macs({heads: 3, size: 6}) == counted(Attention(3, 6), torch.zeros(2, 5, 12))


def test_tied_weights_are_counted_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 8)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x))

    groups = couple(trace(Tied(), torch.zeros(2, 3, dtype=torch.long)))
    assert Cost(groups).params({}) == 160
    assert Cost(groups).params({groups.groups[0].leaf.id: 4}) == 80


def test_a_change_is_the_difference_of_two_evaluations() -> None:
    cost = Cost(grouped(Block(8, 24, 10), 2, 3, 4, 4))
    rng = np.random.default_rng(0)
    sizes = np.array(list(cost.sizes.values()))
    for polynomial in (cost.polynomial("macs"), cost.polynomial("params"), cost.polynomial("channels"), cost.time):
        for place in range(len(sizes)):
            now = rng.integers(1, sizes + 1).astype(float)
            then = now.copy()
            then[place] = rng.integers(1, sizes[place] + 1)
            change = polynomial.change(now, place, int(then[place]))
            np.testing.assert_allclose(change, polynomial(then) - polynomial(now), rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("budget", ["macs", "params", "channels"])
def test_shares_add_up(budget: str) -> None:
    cost = Cost(grouped(Block(8, 24, 10), 2, 3, 4, 4))
    widths = {leaf: 1 + size // 2 for leaf, size in cost.sizes.items()}
    total = sum(share.at(widths, cost.sizes) for share in cost.shares(budget))
    assert total == pytest.approx(cost.of(budget)(widths))


@pytest.mark.parametrize("budget", ["latency", "flops", None, 3])
def test_an_unknown_budget_is_refused_with_those_there_are(budget: object) -> None:
    cost = Cost(grouped(nn.Linear(2, 2), 2, 2))
    with pytest.raises(InvalidArgument, match="macs, params, channels"):
        cost.of(budget)  # type: ignore[arg-type]
