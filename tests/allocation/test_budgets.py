"""A budget is met from the side asked for, as closely as widths allow, or refused with the nearest that can be met."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import surgeon
from surgeon.allocation.allocate import allocate
from surgeon.cost.alignment import Alignment
from surgeon.cost.cost import Cost
from surgeon.cost.target import Target
from surgeon.errors import Infeasible
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Groups, couple
from surgeon.scoring import score
from testbed.networks import random_network

RATIOS = (1e-6, 0.01, 0.3, 0.5, 0.9, 0.97, 0.98, 0.9999)
SCOPES = ("global", "local", "isomorphic")


def perceptron(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def groups_of(net: nn.Module, *shape: int) -> Groups:
    return couple(trace(net.eval(), torch.randn(*shape)))


NARROW = perceptron(5, 3, 1, 6, 2), (2, 5)  # groups of three, of one and of six
CONVOLUTIONS = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 12, 1), nn.Flatten(), nn.Linear(48, 4)
), (2, 3, 6, 6)


def least(groups: Groups, budget: str) -> float:
    """The least that any combination of widths leaves, by looking at each."""
    cost = Cost(groups).of(budget)
    ids = [group.leaf.id for group in groups]
    every = itertools.product(*(range(1, group.size + 1) for group in groups))
    return min(cost(dict(zip(ids, widths, strict=True))) for widths in every)


def assert_met(cost: Cost, budget: str, ratio: float, widths: dict[int, int], steps: dict[int, int]) -> None:
    """At most what is to be left is left, and at least 98 % of it, or as much as no step of a group would allow."""
    of = cost.of(budget)
    limit, left = (1 - ratio) * of({}), of(widths)
    assert left <= limit * (1 + 1e-8)
    assert left < of({})
    wider = {leaf: min((width // steps[leaf] + 1) * steps[leaf], cost.sizes[leaf]) for leaf, width in widths.items()}
    costs = [of({**widths, leaf: width}) - left for leaf, width in wider.items()]
    assert left >= 0.98 * limit or limit - left < min(each for each in costs if each > 0)


@pytest.mark.parametrize("budget", ["macs", "params", "channels"])
@pytest.mark.parametrize(("net", "shape"), [NARROW, CONVOLUTIONS])
def test_met_or_refused_and_refused_only_where_no_widths_meet_it(
    net: nn.Module, shape: tuple[int, ...], budget: str
) -> None:
    groups = groups_of(net, *shape)
    cost, scores, whole = Cost(groups), score(groups, "magnitude"), Cost(groups).of(budget)({})
    lowest, ones = least(groups, budget), {group.leaf.id: 1 for group in groups}
    refused = 0
    for ratio, scope in itertools.product(RATIOS, SCOPES):
        options: dict[str, Any] = {"budget": budget, "scope": scope}
        if lowest <= (1 - ratio) * whole:
            assert_met(cost, budget, ratio, allocate(groups, scores, cost, ratio=ratio, **options), ones)
            continue
        with pytest.raises(Infeasible) as caught:
            allocate(groups, scores, cost, ratio=ratio, **options)
        refused += 1
        reachable = 1 - lowest / whole
        assert caught.value.reachable == pytest.approx(reachable)
        nearest = float(str(caught.value).partition("nearest ratio that can be met is ")[2].partition(";")[0])
        assert 0.99 * reachable < nearest <= reachable
        assert_met(cost, budget, nearest, allocate(groups, scores, cost, ratio=nearest, **options), ones)
    assert 0 < refused < len(RATIOS) * len(SCOPES)


@pytest.mark.parametrize("align", [None, 3])
@pytest.mark.parametrize("seed", range(4))
def test_random_networks(seed: int, align: int | None) -> None:
    net, inputs = random_network(seed)
    groups = couple(trace(net, inputs))
    cost, scores = Cost(groups), score(groups, "magnitude")
    steps = Alignment(groups, cost).steps(align, 1)
    for ratio, budget, scope in itertools.product((0.01, 0.4, 0.9), ("macs", "params", "channels"), SCOPES):
        options: dict[str, Any] = {"budget": budget, "ratio": ratio, "scope": scope, "align": align}
        lowest = {leaf: min(step, cost.sizes[leaf]) for leaf, step in steps.items()}
        if cost.of(budget)(lowest) > (1 - ratio) * cost.of(budget)({}):
            with pytest.raises(Infeasible):
                allocate(groups, scores, cost, **options)
            continue
        widths = allocate(groups, scores, cost, **options)
        assert_met(cost, budget, ratio, widths, steps)
        assert all(width % steps[leaf] == 0 or width == cost.sizes[leaf] for leaf, width in widths.items())


def test_the_default_alignment_gives_way_and_the_report_names_the_widths() -> None:
    net = perceptron(8, 64, 4)
    x = torch.randn(2, 8)
    _, coarse = surgeon.shrink(net, 0.5, example_inputs=x, return_report=True)
    assert coarse.groups["0"].after == 32 and not coarse.unaligned
    _, report = surgeon.shrink(net, 0.9, example_inputs=x, return_report=True)
    assert report.groups["0"].after == 6 and report.unaligned == {"0": 16}
    assert (report.requested, report.reached) == (0.9, 1 - 6 / 64)
    assert report.possible == 1 - 1 / 64
    assert "90.6 % of macs removed (90.0 % asked, 98.4 % possible)" in str(report)
    assert "0 6 (16)" in str(report)


def test_the_users_own_options_are_kept_to_and_the_refusal_tells_what_they_cost() -> None:
    net = perceptron(8, 64, 4)
    options: dict[str, Any] = {"example_inputs": torch.randn(2, 8)}
    assert surgeon.shrink(net, 0.6, align=16, **options)[0].out_features == 16
    assert surgeon.shrink(net, 0.01, align=32, **options)[0].out_features == 32  # one step
    with pytest.raises(Infeasible, match=r"at most 75\.0% can go(?s:.*)met is 0\.75; (?s:.*)align=1 allows 0\.9843"):
        surgeon.shrink(net, 0.8, align=16, **options)
    message = r"min_width= holds 0 at 20 of 64(?s:.*)met is 0\.6875; (?s:.*)no min_width= allows 0\.9843"
    with pytest.raises(Infeasible, match=message):
        surgeon.shrink(net, 0.7, min_width=20, **options)
    assert surgeon.shrink(net, 0.6875, min_width=20, **options)[0].out_features == 20


def test_an_alignment_that_is_given_holds_for_the_narrowest_groups_too() -> None:
    groups = groups_of(perceptron(8, 6, 4), 2, 8)
    widths = allocate(groups, score(groups, "magnitude"), Cost(groups), ratio=0.2, align=4)
    assert list(widths.values()) == [4]


def test_channels_go_in_equal_shares_and_are_met_together() -> None:
    groups = groups_of(perceptron(4, 7, 7, 7, 7, 2), 2, 4)
    widths = allocate(groups, score(groups, "magnitude"), Cost(groups), ratio=0.5, budget="channels")
    assert sorted(widths.values()) == [3, 3, 4, 4]
    groups = groups_of(perceptron(4, 3, 100, 2), 2, 4)  # the first keeps a unit of three at least, the second makes up
    widths = allocate(groups, score(groups, "magnitude"), Cost(groups), ratio=0.9, budget="channels")
    assert list(widths.values()) == [1, 9]


def test_units_worth_nothing_go_no_further_than_was_asked() -> None:
    groups = groups_of(perceptron(4, 64, 64, 2), 2, 4)
    cost = Cost(groups)
    curves = {group.leaf.id: np.zeros(group.size) for group in groups}
    scores = {group.leaf.id: np.ones(group.size) for group in groups}
    for ratio in (0.1, 0.5, 0.9):
        widths = allocate(groups, scores, cost, ratio=ratio, curves=curves)
        assert_met(cost, "macs", ratio, widths, dict.fromkeys(widths, 1))


def test_groups_that_cost_nothing_are_left_whole() -> None:
    class Scaled(nn.Module):
        """The first layer's units are only multiplied with a parameter, and summed."""

        def __init__(self) -> None:
            super().__init__()
            self.scale, self.up, self.down = nn.Parameter(torch.randn(16)), nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(self.up(x).relu()) + (x.sum(1, keepdim=True) * self.scale).sum(1, keepdim=True)

    groups = groups_of(Scaled(), 2, 4)
    free = next(group for group in groups if any(member.tensor == "scale" for member in group.members))
    widths = allocate(groups, score(groups, "magnitude"), Cost(groups), ratio=0.5)
    assert widths[free.leaf.id] == 16


def test_a_model_without_macs_has_none_to_remove() -> None:
    class Weighted(nn.Module):
        """One parameter, multiplied with a sum."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.sum(1, keepdim=True) * self.scale).sum(1)

    groups = groups_of(Weighted(), 2, 4)
    cost, scores = Cost(groups), score(groups, "magnitude")
    with pytest.raises(Infeasible, match=r"the model has no macs\. Remedy: choose another budget"):
        allocate(groups, scores, cost, ratio=0.5)
    assert list(allocate(groups, scores, cost, ratio=0.5, budget="params").values()) == [8]


def test_a_target_is_its_own_nearest() -> None:
    groups = groups_of(perceptron(8, 64, 4), 2, 8)
    cost = Cost(groups)
    for width in range(1, 65):
        widths = {groups.groups[0].leaf.id: width}
        target = Target(cost, "macs", Target(cost, "macs", 0.5).removed(widths))
        assert math.isclose(target.unused(widths), 0, abs_tol=1e-8) and target.unused(widths) >= 0
