"""Costs, allocation and latencies of groups that keep the same share of their units."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn

from surgeon.allocation.allocate import allocate
from surgeon.allocation.latency_budget import allocate_latency, least_ms
from surgeon.cost.alignment import Alignment
from surgeon.cost.cost import Cost
from surgeon.cost.tied import Tied
from surgeon.errors import Infeasible
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Groups, couple
from surgeon.groups.ties import Ties
from surgeon.latency.tied import TiedLatency
from surgeon.solver.factors import Factor


@pytest.fixture
def groups() -> Groups:
    net = nn.Sequential(
        nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 5)
    )
    return couple(trace(net, torch.zeros(2, 10)))


@pytest.fixture
def ties(groups: Groups) -> Ties:
    """The first two groups, of 48 and 32 units, together."""
    first, second, third = (group.leaf.id for group in groups)
    return Ties(((first, second),), frozenset(), {first: 48, second: 32, third: 64})


def scores_of(groups: Groups) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(0)
    return {group.leaf.id: rng.random(group.size) for group in groups}


@pytest.mark.parametrize("budget", ["macs", "params", "channels"])
def test_the_cost_of_steps_is_that_of_the_widths(groups: Groups, ties: Ties, budget: str) -> None:
    cost = Cost(groups)
    tied = Tied.of(groups, cost, ties)
    first, third = (group.leaf.id for group in tied.groups)
    assert [group.size for group in tied.groups] == [16, 64]
    steps = {first: 5, third: 20}
    assert tied.cost.of(budget)(steps) == pytest.approx(cost.of(budget)(ties.expand(steps)))


def test_what_is_held_is_a_number(groups: Groups, ties: Ties) -> None:
    first, second, third = ties.sizes
    held = Ties((), frozenset({first}), ties.sizes)
    tied = Tied.of(groups, Cost(groups), held)
    assert [group.leaf.id for group in tied.groups] == [second, third]
    assert tied.cost.macs({second: 8, third: 8}) == Cost(groups).macs({second: 8, third: 8})
    assert allocate(groups, scores_of(groups), Cost(groups), ratio=0.3, ties=held)[first] == 48


@pytest.mark.parametrize("scope", ["global", "local", "isomorphic"])
@pytest.mark.parametrize("budget", ["macs", "params", "channels"])
def test_tied_groups_keep_the_same_share(groups: Groups, ties: Ties, scope: str, budget: str) -> None:
    first, second, _ = ties.sizes
    cost = Cost(groups)
    widths = allocate(groups, scores_of(groups), cost, budget=budget, ratio=0.5, scope=scope, ties=ties)
    assert widths.keys() == ties.sizes.keys()
    assert widths[first] / 48 == widths[second] / 32 < 1
    assert cost.of(budget)(widths) <= 0.5 * cost.of(budget)({}) * (1 + 1e-6)


def test_steps_are_aligned_where_their_widths_are(groups: Groups, ties: Ties) -> None:
    tied = Tied.of(groups, Cost(groups), ties)
    first = tied.groups.groups[0].leaf.id
    # A step is 3 units of one and 2 of the other: of 8, both are multiples of 8.
    assert Alignment(tied.groups, tied.cost).steps(8)[first] == 8


def test_floors_hold_the_whole_class(groups: Groups, ties: Ties) -> None:
    first, second, _ = ties.sizes
    names = groups.names
    widths = allocate(
        groups, scores_of(groups), Cost(groups), ratio=0.4, ties=ties, min_width={names[second]: 20}, align=1
    )
    assert widths[second] >= 20 and widths[first] >= 30
    with pytest.raises(Infeasible):
        allocate(groups, scores_of(groups), Cost(groups), ratio=0.9, ties=ties, min_width={names[second]: 32})


class Straight:
    """Milliseconds that are proportional to MACs, fast at every 8th width."""

    def __init__(self, groups: Groups) -> None:
        self.sizes = {group.leaf.id: group.size for group in groups}
        self.factors = [
            Factor(str(leaf), (leaf,), lambda width: np.asarray(width) * 0.1) for leaf in self.sizes
        ]

    def steps(self, leaf: int) -> tuple[int, ...]:
        return tuple(range(8, self.sizes[leaf] + 1, 8))

    finest = steps

    def ms(self, widths: Mapping[int, int]) -> float:
        return sum(factor.at({**self.sizes, **widths}) for factor in self.factors)


def test_a_latency_is_met_with_ties(groups: Groups, ties: Ties) -> None:
    first, second, third = ties.sizes
    latency = Straight(groups)
    tied = TiedLatency(latency, ties)
    assert tied.steps(first) == tuple(range(1, 17)) and tied.steps(third) == latency.steps(third)
    assert sum(factor.at({first: 4, third: 8}) for factor in tied.factors) == pytest.approx(
        latency.ms({first: 12, second: 8, third: 8})
    )
    widths, found = allocate_latency(groups, scores_of(groups), Cost(groups), latency, ms=7.2, ties=ties)
    assert widths[first] / 48 == widths[second] / 32
    assert latency.ms(widths) <= 7.2 + 1e-9 and found.ms == pytest.approx(latency.ms(widths))
    least = latency.ms({first: 3, second: 2, third: 8})
    assert least_ms(groups, latency, None, Cost(groups), ties) == pytest.approx(least)
