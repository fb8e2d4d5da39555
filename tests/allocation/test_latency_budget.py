"""A latency as a budget, and odd widths rounded up, on a made-up device whose operators work on blocks of eight."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from surgeon.allocation.damage_curves import damages
from surgeon.allocation.fast_widths import round_up_to_fast_widths
from surgeon.allocation.latency_budget import allocate_latency
from surgeon.cost.cost import Cost, Share
from surgeon.errors import Infeasible, InvalidArgument, NothingToPrune
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Groups, couple
from surgeon.plans.plan import Plan
from surgeon.scoring import score
from surgeon.solver.factors import Factor, polynomial_factors, total

BLOCK = 8


class Blocks(nn.Module):
    """A stream of 32 channels with two blocks on it, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.a, self.b = nn.Conv2d(32, 24, 3, padding=1), nn.Conv2d(24, 32, 1)
        self.c, self.d = nn.Conv2d(32, 20, 3, padding=1), nn.Conv2d(20, 32, 1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(self.a(x).relu())
        x = x + self.d(self.c(x).relu())
        return self.fc(x.mean((2, 3)))


class Device:
    """Milliseconds as blocks of eight channels times positions; off the fast widths an operator takes longer.

    At `slowdown` times as long, unless it touches a leaf of `indifferent`, where it takes what its channels ask for.
    """

    def __init__(self, cost: Cost, slowdown: float = 3.0, indifferent: frozenset[int] = frozenset()) -> None:
        self.sizes, self.shares, self.slowdown, self.indifferent = (
            cost.sizes,
            cost.shares("macs"),
            slowdown,
            indifferent,
        )
        self.factors = tuple(
            Factor(
                factor.label,
                factor.leaves,
                lambda *widths, f=factor: 1e-5 * f.function(*map(_rounded, widths)),
            )
            for share in self.shares
            for factor in polynomial_factors(share.terms, share.label)
        )

    def steps(self, leaf: int) -> tuple[int, ...]:
        size = self.sizes[leaf]
        return (*range(BLOCK, size, BLOCK), size)

    def finest(self, leaf: int) -> tuple[int, ...]:
        return self.steps(leaf)

    def ms(self, widths: Mapping[int, int]) -> float:
        return sum(self._share(share, {**self.sizes, **widths}) for share in self.shares)

    def _share(self, share: Share, widths: Mapping[int, int]) -> float:
        leaves = {leaf for each in share.terms for leaf in each}
        odd = {leaf for leaf in leaves if widths[leaf] not in self.steps(leaf)}
        if odd & self.indifferent:
            return 1e-5 * share.at(widths, self.sizes)
        fast = {leaf: int(_rounded(np.array(width))) for leaf, width in widths.items()}
        return 1e-5 * share.at(fast, self.sizes) * (self.slowdown if odd else 1.0)


def _rounded(widths: np.ndarray) -> np.ndarray:
    return np.ceil(np.asarray(widths) / BLOCK) * BLOCK


def grouped(model: nn.Module, *shape: int) -> Groups:
    return couple(trace(model.eval(), torch.randn(*shape)))


torch.manual_seed(0)
GROUPS = grouped(Blocks(), 2, 3, 8, 8)
COST = Cost(GROUPS)
SCORES = score(GROUPS, "magnitude")
DEVICE = Device(COST)
FULL = DEVICE.ms({})
LEAVES = {group.name: group.leaf.id for group in GROUPS}


def allocated(share: float, **options: Any) -> tuple[dict[str, int], Any]:
    widths, found = allocate_latency(GROUPS, SCORES, COST, DEVICE, ms=share * FULL, **options)
    return {GROUPS.names[leaf]: width for leaf, width in widths.items()}, found


def test_the_device_is_consistent() -> None:
    for widths in ({}, dict.fromkeys(COST.sizes, 8), {LEAVES["stem"]: 16}):
        assert total(DEVICE.factors, {**COST.sizes, **widths}) == pytest.approx(DEVICE.ms(widths))


@pytest.mark.parametrize("share", [1.0, 0.8, 0.6, 0.4])
def test_the_latency_is_met_at_fast_widths(share: float) -> None:
    widths, found = allocated(share)
    assert found.ms == pytest.approx(DEVICE.ms({LEAVES[name]: width for name, width in widths.items()}))
    assert found.ms <= share * FULL * (1 + 1e-9)
    assert found.exact
    assert all(width % BLOCK == 0 or width == COST.sizes[LEAVES[name]] for name, width in widths.items())


def test_a_budget_for_all_leaves_all() -> None:
    widths, found = allocated(1.0)
    assert {LEAVES[name]: width for name, width in widths.items()} == COST.sizes
    assert found.damage == 0


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_a_cut_inside_a_step_gives_its_units_back(share: float) -> None:
    class Fine(Device):
        def steps(self, leaf: int) -> tuple[int, ...]:
            return tuple(range(1, self.sizes[leaf] + 1))

    worthless = {leaf: np.r_[1.0, np.zeros(size - 1)] for leaf, size in COST.sizes.items()}
    for scores in (SCORES, worthless):
        widths, found = allocate_latency(GROUPS, scores, COST, Fine(COST), ms=share * FULL)
        assert 0.7 * share * FULL <= found.ms <= share * FULL
        assert all(width % BLOCK == 0 or width == COST.sizes[leaf] for leaf, width in widths.items())


def test_a_size_binds_beside_the_latency() -> None:
    _, free = allocated(0.6)
    size = 0.7 * COST.params(free.widths)
    _, found = allocated(0.6, size=size)
    assert COST.params(found.widths) <= size
    assert found.ms <= 0.6 * FULL
    assert found.damage > free.damage
    with pytest.raises(
        Infeasible, match=r"size of 10 parameters is out of reach together with the other budget"
    ):
        allocated(0.9, size=10)


def test_keep_holds_and_an_eighth_stays() -> None:
    widths, _ = allocated(0.5, min_width={"a": 24, "c": 0.9})
    assert widths["a"] == 24
    assert widths["c"] == 20
    wide = grouped(
        nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 4)), 2, 16
    )
    cost = Cost(wide)
    device = Device(cost)
    top = {group.leaf.id: np.r_[np.full(8, 1e9), np.full(group.size - 8, 1e-9)] for group in wide}
    first = max(wide, key=lambda group: group.size).leaf.id
    assert allocate_latency(wide, top, cost, device, ms=0.2 * device.ms({}))[0][first] >= 32
    least = device.ms(dict.fromkeys(cost.sizes, 8))
    assert allocate_latency(wide, top, cost, device, ms=least)[0][first] == 8


def test_out_of_reach_names_what_holds() -> None:
    with pytest.raises(Infeasible) as caught:
        allocated(0.01)
    message = str(caught.value)
    assert "a latency of" in message and "ms in conv2d in a" in message and "Remedy:" in message
    assert caught.value.reachable == pytest.approx(1 - DEVICE.ms(dict.fromkeys(COST.sizes, 8)) / FULL)
    with pytest.raises(Infeasible, match="min_width= holds a at 24 of 24"):
        allocated(0.3, min_width=1.0)


@pytest.mark.parametrize("option", [{"ms": 0}, {"ms": -1.0}, {"ms": float("nan")}, {"ms": True}, {"ms": "4"}])
def test_budgets_are_numbers_above_zero(option: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"ms=.*: give a number above 0"):
        allocate_latency(GROUPS, SCORES, COST, DEVICE, **option)
    with pytest.raises(InvalidArgument, match=r"size=.*: give a number above 0"):
        allocate_latency(GROUPS, SCORES, COST, DEVICE, ms=1.0, size=option["ms"])


@pytest.mark.parametrize(("scale", "power"), [(1.3, 0.0), (0.8, 0.0), (1.0, 0.3), (0.7, -0.2)])
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_the_latency_of_the_whole_is_met_where_it_is_no_sum(share: float, scale: float, power: float) -> None:
    class Cached(Device):
        def ms(self, widths: Mapping[int, int]) -> float:
            summed = super().ms(widths)
            return summed * scale * (summed / FULL) ** power

    device = Cached(COST)
    full = device.ms({})
    widths, found = allocate_latency(GROUPS, SCORES, COST, device, ms=share * full)
    assert found.ms == pytest.approx(device.ms(widths))
    assert found.ms <= share * full * (1 + 1e-9)
    # No group can go up a step without exceeding the budget.
    for leaf, width in widths.items():
        wider = [step for step in device.steps(leaf) if step > width][:1]
        assert all(device.ms({**widths, leaf: step}) > share * full for step in wider)


def test_factors_that_exceed_the_whole_refuse_nothing_that_is_in_reach() -> None:
    class Overrated(Device):
        def ms(self, widths: Mapping[int, int]) -> float:
            return 0.5 * super().ms(widths)

    device = Overrated(COST)
    least = device.ms(dict.fromkeys(COST.sizes, 8))
    widths, found = allocate_latency(GROUPS, SCORES, COST, device, ms=least * (1 + 1e-9))
    assert set(widths.values()) == {8}
    assert found.ms == pytest.approx(least)
    with pytest.raises(
        Infeasible, match=f"a latency of {0.9 * least:.4g} ms is out of reach: the least is {least:.4g} of"
    ):
        allocate_latency(GROUPS, SCORES, COST, device, ms=0.9 * least)


def test_factors_that_fall_short_of_the_whole_promise_nothing() -> None:
    class Underrated(Device):
        def ms(self, widths: Mapping[int, int]) -> float:
            return 2.0 * super().ms(widths)

    device = Underrated(COST)
    least = device.ms(dict.fromkeys(COST.sizes, 8))
    widths, _ = allocate_latency(GROUPS, SCORES, COST, device, ms=1.05 * least)
    assert device.ms(widths) <= 1.05 * least
    with pytest.raises(
        Infeasible, match=f"a latency of {0.9 * least:.4g} ms is out of reach.*{least:.4g} of"
    ):
        allocate_latency(GROUPS, SCORES, COST, device, ms=0.9 * least)


def test_nothing_to_prune_is_said() -> None:
    groups = grouped(nn.Linear(3, 2), 2, 3)
    with pytest.raises(NothingToPrune, match="an input of the model"):
        allocate_latency(groups, {}, Cost(groups), Device(Cost(groups)), ms=1.0)


def test_a_stream_is_worth_all_operators_on_it() -> None:
    alike = damages(GROUPS, {group.leaf.id: np.ones(group.size) for group in GROUPS}, COST)
    assert all(curve[-1] == 0 and (np.diff(curve) < 0).all() for curve in alike.values())
    assert all((np.diff(curve, 2) > 0).all() for curve in alike.values())
    positions = 8 * 8
    stem, a, b = positions * 3 * 32 * 9, positions * 32 * 24 * 9, positions * 24 * 32
    c, d, fc = positions * 32 * 20 * 9, positions * 20 * 32, 32 * 10
    ratio = alike[LEAVES["stem"]][15] / alike[LEAVES["a"]][11]  # at half of either
    assert ratio == pytest.approx((stem + a + b + c + d + fc) / (a + b))


odd_widths = st.fixed_dictionaries({group.leaf.id: st.integers(1, group.size) for group in GROUPS})


@given(odd_widths, st.sampled_from([1.0, 1.1, 3.0]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_rounded_up_plans_remove_no_more_and_are_no_slower(
    own: dict[int, int], slowdown: float, indifferent: bool
) -> None:
    device = Device(COST, slowdown, frozenset([LEAVES["a"]] if indifferent else []))
    keep = {leaf: range(COST.sizes[leaf] - width, COST.sizes[leaf]) for leaf, width in own.items()}
    legal = round_up_to_fast_widths(GROUPS, keep, device)
    widths = {leaf: len(legal.get(leaf, range(size))) for leaf, size in COST.sizes.items()}
    assert all(set(units) >= set(keep[leaf]) for leaf, units in legal.items())
    assert device.ms(widths) <= device.ms(own) * (1 + 1e-9)
    choices = [
        {own[leaf]} | {step for step in device.steps(leaf) if step >= own[leaf]} for leaf in COST.sizes
    ]
    fast = [
        device.ms(dict(zip(COST.sizes, each, strict=True)))
        for each in product(*choices)
        if all(width in device.steps(leaf) for leaf, width in zip(COST.sizes, each, strict=True))
    ]
    assert device.ms(widths) <= min(fast) * (1 + 1e-9)


def test_odd_widths_go_up_together() -> None:
    own = {LEAVES["stem"]: 17, LEAVES["a"]: 9, LEAVES["c"]: 15}
    legal = round_up_to_fast_widths(GROUPS, {leaf: range(width) for leaf, width in own.items()}, DEVICE)
    assert {GROUPS.names[leaf]: len(units) for leaf, units in legal.items()} == {"stem": 24, "a": 16, "c": 16}


def test_an_odd_width_stays_where_it_is_faster() -> None:
    device = Device(COST, indifferent=frozenset(LEAVES.values()))
    own = {LEAVES["stem"]: 32, LEAVES["a"]: 9, LEAVES["c"]: 15}
    legal = round_up_to_fast_widths(GROUPS, {leaf: range(width) for leaf, width in own.items()}, device)
    assert {GROUPS.names[leaf]: len(units) for leaf, units in legal.items()} == {"a": 9, "c": 15}


def test_the_best_units_come_back() -> None:
    stem = LEAVES["stem"]
    scores = {leaf: np.zeros(size) for leaf, size in COST.sizes.items()}
    scores[stem][[30, 11]] = 2.0, 1.0
    keep = {stem: (1, 5, 8, 9, 13, 20)}
    assert round_up_to_fast_widths(GROUPS, keep, DEVICE, scores) == {stem: (1, 5, 8, 9, 11, 13, 20, 30)}
    assert round_up_to_fast_widths(GROUPS, keep, DEVICE) == {stem: (0, 1, 2, 5, 8, 9, 13, 20)}
    assert round_up_to_fast_widths(GROUPS, {}, DEVICE) == {}


def test_a_legal_plan_is_a_plan() -> None:
    plan = Plan.of(GROUPS, {LEAVES["a"]: (3, 4, 5), LEAVES["stem"]: range(17)})
    legal = Plan.of(GROUPS, round_up_to_fast_widths(GROUPS, plan.keep(GROUPS), DEVICE))
    kept = legal.keep(GROUPS)
    assert {GROUPS.names[leaf]: len(units) for leaf, units in kept.items()} == {"stem": 24, "a": 8}


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({999: (0,)}, "no group of leaf 999"),
        ({"a": ()}, "a has units 0 to 23"),
        ({"a": (24,)}, "a has units 0 to 23"),
    ],
)
def test_units_that_are_not_there_are_refused(keep: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        round_up_to_fast_widths(GROUPS, {LEAVES.get(leaf, leaf): units for leaf, units in keep.items()}, DEVICE)
