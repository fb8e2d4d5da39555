"""Widths: how close the budget is met, what they are multiples of, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from surgeon.allocation.allocate import allocate
from surgeon.cost.cost import Cost
from surgeon.cost.target import TOLERANCE
from surgeon.errors import Infeasible, InvalidArgument, NothingToPrune
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Groups, couple
from surgeon.scoring import score


class Residual(nn.Module):
    """Two residual blocks of 64 and 96 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.a, self.b = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.down = nn.Conv2d(64, 96, 3, stride=2, padding=1)
        self.c, self.d = nn.Conv2d(96, 72, 3, padding=1), nn.Conv2d(72, 96, 3, padding=1)
        self.fc = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.down(x + self.b(self.a(x).relu()))
        return self.fc((x + self.d(self.c(x).relu())).mean((2, 3)))


class Attention(nn.Module):
    """Eight heads of sixteen, from one fused weight, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(32, 384), nn.Linear(128, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 8, 16).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(n, length, 128))
        return x + self.down(self.up(x).relu())


def grouped(model: nn.Module, *shape: int) -> Groups:
    return couple(trace(model.eval(), torch.randn(*shape)))


def widths_of(groups: Groups, **options: Any) -> dict[str, int]:
    importance = options.pop("importance", "magnitude")
    found = allocate(groups, score(groups, importance), Cost(groups), **options)
    return {groups.names[leaf]: width for leaf, width in found.items()}


def removed(groups: Groups, widths: dict[str, int], budget: str = "macs") -> float:
    cost = Cost(groups).of(budget)
    ids = {group.name: group.leaf.id for group in groups}
    return 1 - cost({ids[name]: width for name, width in widths.items()}) / cost({})


@pytest.fixture
def residual() -> Groups:
    return grouped(Residual(), 2, 3, 12, 12)


@pytest.mark.parametrize("scope", ["global", "local", "isomorphic"])
@pytest.mark.parametrize("budget", ["macs", "params"])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.75, 0.9])
def test_the_budget_is_met(residual: Groups, budget: str, ratio: float, scope: str) -> None:
    widths = widths_of(residual, ratio=ratio, budget=budget, scope=scope)
    assert removed(residual, widths, budget) == pytest.approx(ratio, abs=TOLERANCE)


@pytest.mark.parametrize("importance", ["magnitude", "random", "lamp", "fpgm"])
def test_at_half_all_widths_are_aligned_and_balanced(residual: Groups, importance: str) -> None:
    widths = widths_of(residual, importance=importance)
    for group in residual:
        width = widths[group.name]
        assert width % 16 == 0 or width == group.size
        assert 0.4 * group.size <= width


def test_units_worth_alike_go_in_equal_shares(residual: Groups) -> None:
    scores = {group.leaf.id: np.ones(group.size) for group in residual}
    widths = allocate(residual, scores, Cost(residual), align=1)
    shares = [widths[group.leaf.id] / group.size for group in residual]
    assert max(shares) - min(shares) < 0.2


def test_groups_with_worthless_units_are_cut_deeper(residual: Groups) -> None:
    scores = {group.leaf.id: np.ones(group.size) for group in residual}
    dead = next(group for group in residual if group.name == "a")
    scores[dead.leaf.id][:40] = 0.0
    widths = allocate(residual, scores, Cost(residual), ratio=0.5, align=1)
    assert widths[dead.leaf.id] <= 24
    assert all(widths[group.leaf.id] > 0.7 * group.size for group in residual if group is not dead)


@pytest.mark.parametrize(("align", "of"), [(1, 1), (4, 4), (8, 8), (16, 16)])
def test_widths_are_multiples_of_align(residual: Groups, align: int, of: int) -> None:
    for group in residual:
        width = widths_of(residual, align=align)[group.name]
        assert width % of == 0 or width == group.size


def test_local_takes_the_same_share_of_each_up_to_rounding(residual: Groups) -> None:
    widths = widths_of(residual, scope="local", align=1)
    shares = [widths[group.name] / group.size for group in residual]
    assert max(shares) - min(shares) < 0.05


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.7])
def test_channels_are_that_share_of_every_group(residual: Groups, ratio: float) -> None:
    widths = widths_of(residual, budget="channels", ratio=ratio, align=1)
    for group in residual:
        assert abs(widths[group.name] - (1 - ratio) * group.size) < 1
    aligned = widths_of(residual, budget="channels", ratio=ratio)
    for group in residual:
        assert abs(aligned[group.name] - (1 - ratio) * group.size) <= 8


def test_heads_are_cut_before_head_sizes() -> None:
    groups = grouped(Attention(), 2, 6, 32)
    sizes = {group.name: group.size for group in groups}
    widths = widths_of(groups, ratio=0.5)
    heads = next(name for name, size in sizes.items() if size == 8)
    inside = next(name for name, size in sizes.items() if size == 16)
    assert widths[heads] < 8
    assert widths[inside] == 16
    deep = widths_of(groups, ratio=0.9)
    assert deep[heads] / 8 < deep[inside] / 16


def test_a_layer_keeps_an_eighth_unless_the_budget_needs_it(residual: Groups) -> None:
    scores = {group.leaf.id: np.r_[np.full(1, 1e9), np.full(group.size - 1, 1e-9)] for group in residual}
    widths = allocate(residual, scores, Cost(residual), ratio=0.8, align=1)
    assert all(widths[group.leaf.id] >= math.ceil(group.size / 8) for group in residual)
    all_but_one = allocate(residual, scores, Cost(residual), ratio=0.995, align=1)
    assert min(all_but_one.values()) < 8


def test_keep_holds(residual: Groups) -> None:
    widths = widths_of(residual, min_width={"a": 48, "[cd]*": 0.75}, ratio=0.4)
    assert widths["a"] >= 48
    assert widths["c"] >= 54
    assert widths["down"] >= 72
    assert removed(residual, widths) == pytest.approx(0.4, abs=TOLERANCE)
    assert min(widths_of(residual, min_width=32, ratio=0.5).values()) >= 32


def test_narrow_groups_have_choices() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.Conv2d(6, 12, 3), nn.Conv2d(12, 24, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 2),
    )
    groups = grouped(net, 2, 1, 12, 12)
    widths = widths_of(groups, ratio=0.5)
    assert removed(groups, widths) == pytest.approx(0.5, abs=TOLERANCE)
    assert all(1 <= widths[group.name] <= group.size for group in groups)


def test_channels_in_groups_are_aligned_together() -> None:
    net = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, groups=16), nn.Conv2d(64, 8, 1))
    groups = grouped(net, 2, 3, 8, 8)
    widths = widths_of(groups, ratio=0.5)
    count = next(group for group in groups if group.size == 16)
    assert widths[count.name] == 8
    assert [widths[group.name] for group in groups if group.size == 4] == [4, 4]


def test_nothing_goes_at_zero(residual: Groups) -> None:
    assert widths_of(residual, ratio=0) == {group.name: group.size for group in residual}


@pytest.mark.parametrize("options", [{}, {"scope": "local"}, {"budget": "channels"}, {"budget": "params"}])
def test_nothing_comes_back_above_a_ceiling(residual: Groups, options: dict[str, Any]) -> None:
    cost = Cost(residual)
    rng = np.random.default_rng(0)
    tops: dict[int, int] = {}
    for ratio in (0.2, 0.4, 0.6, 0.8):
        scores = {group.leaf.id: rng.random(group.size) for group in residual}
        found = allocate(residual, scores, cost, ratio=ratio, ceilings=tops, **options)
        assert all(found[leaf] <= top for leaf, top in tops.items())
        if options.get("budget") != "channels":
            of = cost.of(options.get("budget", "macs"))
            assert 1 - of(found) / of({}) == pytest.approx(ratio, abs=TOLERANCE)
        tops = found


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.0, 1.5, float("nan"), float("inf"), True, "0.5", None])
def test_ratios_out_of_range_are_refused(residual: Groups, ratio: Any) -> None:
    with pytest.raises(InvalidArgument, match="at least 0 and less than 1"):
        widths_of(residual, ratio=ratio)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "latency"}, "macs, params, channels"),
        ({"scope": "regional"}, "global, local"),
        ({"align": 0}, "at least 1"),
        ({"align": True}, "at least 1"),
        ({"align": 2.0}, "at least 1"),
        ({"min_width": 0}, "share from 0.0 to 1.0"),
        ({"min_width": 1.5}, "share from 0.0 to 1.0"),
        ({"min_width": True}, "share from 0.0 to 1.0"),
        ({"min_width": {"stem": "all"}}, "share from 0.0 to 1.0"),
        ({"min_width": {"nowhere*": 8}}, r"'nowhere\*'.*stem"),
    ],
)
def test_arguments_out_of_range_are_refused(residual: Groups, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        widths_of(residual, **options)


def test_out_of_reach_says_how_far_and_why() -> None:
    net = nn.Sequential(nn.Linear(100, 32), nn.ReLU(), nn.Linear(32, 8))
    large = nn.Linear(200, 100)
    groups = grouped(nn.Sequential(large, nn.Softmax(-1), net), 2, 200)
    fixed = couple(groups.graph, ignore=lambda name: name.startswith("0."))
    with pytest.raises(Infeasible) as caught:
        widths_of(fixed, ratio=0.9)
    message = str(caught.value)
    assert "at most 14.3% can go" in message  # 31 of the 32 hidden units, 108 MACs each, of 23,456
    assert "linear in 0" in message
    assert "left alone, as asked by ignore" in message
    with pytest.raises(Infeasible, match=r"min_width= holds 0 at 90 of 100"):
        widths_of(groups, ratio=0.5, min_width={"0": 0.9})
    with pytest.raises(Infeasible, match=r"min_width= holds 2\.0 at 30 of 32"):
        widths_of(fixed, ratio=0.5, min_width=30, budget="channels")


def test_nothing_to_prune_names_the_reasons() -> None:
    groups = couple(trace(nn.Linear(3, 2), torch.zeros(2, 3)))
    with pytest.raises(NothingToPrune, match="an input of the model"):
        allocate(groups, {}, Cost(groups))


def test_isomorphic_scope_compares_units_with_their_like() -> None:
    class Stack(nn.Module):
        """Two groups between convolutions, two between linear layers."""

        def __init__(self) -> None:
            super().__init__()
            sizes = (4, 32, 64, 4)
            self.convolutions = nn.Sequential(*(nn.Conv1d(a, b, 1) for a, b in pairwise(sizes)))
            self.linears = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))

        def forward(self, x: Tensor) -> Tensor:
            return self.linears(self.convolutions(x).mean(2))

    groups = grouped(Stack(), 2, 4, 5)
    at = {group.name: group.leaf.id for group in groups}
    first, second, third, fourth = (at[f"{kind}.{i}"] for kind in ("convolutions", "linears") for i in (0, 1))
    # The second convolution's units are worth less than the first's, and all linear layers' ten times as much.
    scores = {first: np.full(32, 3.0), second: np.arange(64.0) / 32}
    scores |= {third: np.full(32, 30.0), fourth: np.full(64, 30.0), at["convolutions.2"]: np.ones(4)}
    scores[third] += np.arange(32) / 32
    scores[fourth] += np.arange(64) / 64
    widths = allocate(groups, scores, Cost(groups), ratio=0.5, align=1, scope="isomorphic")
    assert widths[first] == 32 and widths[second] < 48
    removed = 1 - (widths[third] + widths[fourth]) / 96
    assert abs(removed - (1 - (widths[first] + widths[second]) / 96)) < 0.06
    assert abs(widths[third] / 32 - widths[fourth] / 64) < 0.12
