"""Widths for a budget: against looking at every allocation, and on networks' patterns of shared widths."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.errors import Infeasible, InvalidArgument
from surgeon.solver.factors import Factor, polynomial_factors, total
from surgeon.solver.problem import Budget, Problem
from surgeon.solver.solve import Allocation, solve
from surgeon.solver.variable_elimination import Elimination, find_order

Widths = dict[int, tuple[int, ...]]
Damage = dict[int, np.ndarray]


def looked_up(label: str, leaves: tuple[int, ...], widths: Widths, values: np.ndarray) -> Factor:
    """A factor that is a table of any numbers, one a combination of widths."""

    def function(*at: np.ndarray) -> np.ndarray:
        places = [np.searchsorted(widths[leaf], each) for leaf, each in zip(leaves, at, strict=True)]
        return np.asarray(values[tuple(places)])

    return Factor(label, leaves, function)


@st.composite
def instances(draw: Any, budgets: int = 1) -> tuple[Widths, Damage, list[Budget]]:
    """Up to five leaves with up to four widths each, and factors over one to three of them."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    leaves = sorted(random.choice(30, size=draw(st.integers(1, 5)), replace=False).tolist())
    widths = {leaf: tuple((8 * np.arange(1, random.integers(1, 5) + 1)).tolist()) for leaf in leaves}
    damage = {leaf: np.cumsum(random.random(len(each)))[::-1].copy() for leaf, each in widths.items()}
    found = []
    for name in ("latency", "size")[:budgets]:
        factors = [Factor("constant", (), lambda: np.array(0.1))]
        for index in range(random.integers(1, 7)):
            chosen = random.choice(leaves, size=random.integers(1, min(3, len(leaves)) + 1), replace=False)
            of = tuple(sorted(chosen.tolist()))
            values = random.random([len(widths[leaf]) for leaf in of])
            if draw(st.booleans()):  # most costs rise with the widths, but they need not
                for axis in range(values.ndim):
                    values = np.cumsum(values, axis=axis)
            factors.append(looked_up(f"{name} {index}", of, widths, values))
        costs = [cost for _, cost in every(widths, factors)]
        share = draw(st.floats(0.05, 1.0))
        found.append(Budget(name, "ms", tuple(factors), min(costs) + share * (max(costs) - min(costs))))
    return widths, damage, found


def every(widths: Widths, factors: list[Factor] | tuple[Factor, ...]) -> list[tuple[dict[int, int], float]]:
    points = [dict(zip(widths, each, strict=True)) for each in product(*widths.values())]
    return [(point, total(factors, point)) for point in points]


def harm(widths: Widths, damage: Damage, point: dict[int, int]) -> float:
    return float(sum(damage[leaf][widths[leaf].index(width)] for leaf, width in point.items()))


def best(widths: Widths, damage: Damage, budgets: list[Budget]) -> float:
    """The least damage within the budgets, infinite where they can't be met."""
    allowed = [
        harm(widths, damage, point)
        for point, _ in every(widths, [])
        if all(total(budget.factors, point) <= budget.limit * (1 + 1e-12) for budget in budgets)
    ]
    return min(allowed, default=np.inf)


def check(found: Allocation, widths: Widths, damage: Damage, budgets: list[Budget]) -> None:
    """That an allocation is what it says."""
    assert all(found.widths[leaf] in each for leaf, each in widths.items())
    assert found.ms == pytest.approx(total(budgets[0].factors, found.widths))
    assert found.damage == pytest.approx(harm(widths, damage, found.widths))
    for budget in budgets:
        assert total(budget.factors, found.widths) <= budget.limit * (1 + 1e-9)
    if found.bound is not None:
        assert found.gap == pytest.approx(
            max(found.damage - found.bound, 0) / found.damage if found.damage else 0
        )
        assert found.exact == (found.gap is not None and found.gap <= 1e-6)


@given(st.integers(1, 2).flatmap(instances))
@settings(max_examples=150, deadline=None)
def test_small_problems_are_settled(instance: tuple[Widths, Damage, list[Budget]]) -> None:
    widths, damage, budgets = instance
    least = best(widths, damage, budgets)
    if np.isinf(least):
        with pytest.raises(Infeasible, match="out of reach"):
            solve(widths, damage, budgets)
        return
    found = solve(widths, damage, budgets)
    check(found, widths, damage, budgets)
    assert found.exact
    assert found.damage == pytest.approx(least)


@given(st.integers(1, 2).flatmap(instances))
@settings(max_examples=150, deadline=None)
def test_the_bound_holds(instance: tuple[Widths, Damage, list[Budget]]) -> None:
    widths, damage, budgets = instance
    least = best(widths, damage, budgets)
    if len(budgets) == 2 and np.isinf(least):
        with pytest.raises(Infeasible, match="out of reach"):
            solve(widths, damage, budgets, few=0)
        return
    try:
        found = solve(widths, damage, budgets, few=0)
    except Infeasible:
        assert len(budgets) == 2  # with costs that fall as widths rise, two budgets at once are a puzzle
        return
    check(found, widths, damage, budgets)
    assert found.bound is not None
    assert found.bound <= least + 1e-9
    assert least <= found.damage + 1e-9
    if found.exact:
        assert found.damage == pytest.approx(least, rel=1e-5)


@given(instances(), st.floats(0, 10), st.sampled_from([0.0, 1.0]))
@settings(max_examples=100, deadline=None)
def test_elimination_finds_the_minimum(
    instance: tuple[Widths, Damage, list[Budget]], multiplier: float, weight: float
) -> None:
    widths, damage, budgets = instance
    problem = Problem(widths, damage, budgets)
    order = find_order(problem)
    assert order is not None
    point = problem.widths(Elimination(problem, order).minimum(np.array([multiplier]), weight))

    def value(point: dict[int, int]) -> float:
        return weight * harm(widths, damage, point) + multiplier * total(budgets[0].factors, point)

    assert value(point) == pytest.approx(min(value(each) for each, _ in every(widths, [])))


# Networks' patterns of shared widths: (a factor's leaves, milliseconds of its weights) by leaf sizes.
def product_of(label: str, scale: float, *leaves: int) -> Factor:
    def function(*widths: np.ndarray) -> np.ndarray:
        value = np.full((), scale)
        for width in widths:
            value = value * width
        return 0.01 + value

    return Factor(label, tuple(sorted(leaves)), function)


def chain(size: int) -> list[Factor]:
    return [product_of(f"layer {i}", 1e-4 * (1 + i % 3), i, i + 1) for i in range(size - 1)]


def tree(size: int) -> list[Factor]:
    return [product_of(f"branch {i}", 1e-4 * (1 + i % 4), (i - 1) // 2, i) for i in range(1, size)]


def residual(size: int) -> list[Factor]:
    """A stream, leaf 0, which every block reads into an inner width and writes back from another."""
    found = []
    for i in range(1, size - 1, 2):
        found += [
            product_of("in", 1e-4, 0, i),
            product_of("mid", 3e-4, i, i + 1),
            product_of("out", 1e-4, 0, i + 1),
        ]
    return found


def dense(size: int) -> list[Factor]:
    """Every layer reads the widths of all before it: no table is small."""

    def reads(*widths: np.ndarray) -> np.ndarray:
        before = sum(widths[:-1], np.zeros(()))
        return 0.01 + 1e-4 * before * widths[-1]

    return [Factor(f"layer {i}", tuple(range(i + 1)), reads) for i in range(1, size)]


def curves(leaves: int, steps: int) -> tuple[Widths, Damage]:
    random = np.random.default_rng(0)
    widths = {leaf: tuple(range(8, 8 * steps + 1, 8)) for leaf in range(leaves)}
    damage = {}
    for leaf, each in widths.items():
        retained = np.cumsum(np.sort(random.lognormal(size=each[-1]))[::-1])
        damage[leaf] = (retained[-1] / retained[np.array(each) - 1]) ** 2 - 1
    return widths, damage


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("shape", [chain, tree, residual])
def test_networks_come_close_to_the_bound_and_use_the_budget(
    shape: Callable[[int], list[Factor]], share: float
) -> None:
    widths, damage = curves(25, 12)
    factors = tuple(shape(25))
    full = total(factors, {leaf: each[-1] for leaf, each in widths.items()})
    budgets = [Budget("latency", "ms", factors, share * full)]
    found = solve(widths, damage, budgets)
    check(found, widths, damage, budgets)
    assert found.gap is not None and found.gap < 0.02
    assert 0.99 * share * full <= found.ms


def test_dense_networks_have_no_bound_and_say_so() -> None:
    widths, damage = curves(14, 8)
    factors = tuple(dense(14))
    full = total(factors, {leaf: each[-1] for leaf, each in widths.items()})
    budgets = [Budget("latency", "ms", factors, 0.5 * full)]
    found = solve(widths, damage, budgets)
    check(found, widths, damage, budgets)
    assert (found.bound, found.gap, found.exact) == (None, None, False)
    assert any("not known" in note for note in found.notes)
    assert 0.98 * 0.5 * full <= found.ms
    # It is better than the same share of every leaf.
    uniform = next(k for k in range(8, 0, -1) if total(factors, dict.fromkeys(widths, 8 * k)) <= 0.5 * full)
    assert found.damage < harm(widths, damage, dict.fromkeys(widths, 8 * uniform))


def test_falling_back_comes_close_to_the_exact_minimum() -> None:
    widths, damage = curves(25, 12)
    factors = tuple(residual(25))
    full = total(factors, {leaf: each[-1] for leaf, each in widths.items()})
    budgets = [Budget("latency", "ms", factors, 0.5 * full)]
    exact, fallen = solve(widths, damage, budgets), solve(widths, damage, budgets, largest=0)
    assert fallen.bound is None
    assert exact.damage <= fallen.damage * (1 + 1e-9)
    assert fallen.damage < 1.1 * exact.damage


def test_many_candidates_are_thinned_and_then_tried_one_by_one() -> None:
    widths, damage = curves(7, 30)
    factors = tuple(residual(7))
    full = total(factors, {leaf: each[-1] for leaf, each in widths.items()})
    budgets = [Budget("latency", "ms", factors, 0.5 * full)]
    exact, thinned = solve(widths, damage, budgets), solve(widths, damage, budgets, largest=1000)
    check(thinned, widths, damage, budgets)
    assert thinned.bound is None
    assert any("tried at first" in note for note in thinned.notes)
    assert thinned.damage < 1.02 * exact.damage


def test_two_budgets_are_both_met() -> None:
    widths, damage = curves(25, 12)
    time = tuple(residual(25))
    weights = tuple(polynomial_factors({(leaf,): 1.0 for leaf in range(13, 25)} | {(14, 15): 0.5, (16, 16): 0.1}))
    largest = {leaf: each[-1] for leaf, each in widths.items()}
    budgets = [
        Budget("latency", "ms", time, 0.6 * total(time, largest)),
        Budget("size", "parameters", weights, 0.5 * total(weights, largest)),
    ]
    found = solve(widths, damage, budgets)
    check(found, widths, damage, budgets)
    assert found.gap is not None and found.gap < 0.03
    alone = [solve(widths, damage, [budget]) for budget in budgets]
    assert found.damage >= max(each.bound or 0.0 for each in alone) - 1e-9
    assert total(weights, alone[0].widths) > budgets[1].limit  # so the second budget binds
    assert total(time, alone[1].widths) > budgets[0].limit


def test_a_budget_that_is_met_anyway_leaves_all_whole() -> None:
    widths, damage = curves(5, 4)
    found = solve(widths, damage, [Budget("latency", "ms", tuple(chain(5)), 1e9)], few=0)
    assert found.widths == {leaf: each[-1] for leaf, each in widths.items()}
    assert (found.damage, found.exact) == (0, True)


@pytest.mark.parametrize("few", [0, 100_000])
def test_what_costs_nothing_is_given_back(few: int) -> None:
    # Leaf 1 costs the same at 16 as at 8, and its units are worth nothing; leaf 2 costs nothing at all.
    stairs = Factor("stairs", (0, 1), lambda a, b: a * np.ceil(b / 16))
    widths: Widths = {0: (8, 16, 24, 32), 1: (8, 16, 24, 32), 2: (8, 16)}
    damage = {0: np.array([9.0, 3.0, 1.0, 0.0]), 1: np.zeros(4), 2: np.zeros(2)}
    found = solve(widths, damage, [Budget("latency", "ms", (stairs,), 32.0)], names={1: "b", 2: "c"}, few=few)
    assert found.widths == {0: 32, 1: 16, 2: 16}
    assert any("left whole, since fewer units would save nothing: c" in note for note in found.notes)


def test_out_of_reach_says_how_far_and_what_holds_the_rest() -> None:
    factors = (Factor("head", (), lambda: np.array(3.0)), product_of("body", 0.01, 0, 1))
    widths: Widths = {0: (8, 32), 1: (8, 32)}
    budget = Budget("latency", "ms", factors, 2.0)
    for few in (0, 100):
        with pytest.raises(Infeasible) as caught:
            solve(widths, {leaf: np.array([1.0, 0.0]) for leaf in widths}, [budget], few=few)
        message = str(caught.value)
        assert "a latency of 2 ms is out of reach: the least is 3.65 of 13.25 ms" in message
        assert message.index("3 ms in head") < message.index("0.65 ms in body")
        assert caught.value.reachable == pytest.approx(1 - 3.65 / 13.25)


def test_factors_are_checked() -> None:
    widths, damage = curves(2, 3)
    with pytest.raises(InvalidArgument, match="depends on leaves"):
        solve(widths, damage, [Budget("latency", "ms", (product_of("conv", 1.0, 0, 9),), 1.0)])
    broken = Factor("conv", (0,), lambda a: a * np.nan)
    with pytest.raises(InvalidArgument, match="latency of conv is not finite"):
        solve(widths, damage, [Budget("latency", "ms", (broken,), 1.0)])


def test_polynomials_become_factors() -> None:
    terms = {(): 4.0, (2,): 3.0, (2, 2): 1.0, (2, 5): 2.0, (2, 2, 5): 0.5, (1, 2, 5): 7.0}
    factors = polynomial_factors(terms)
    assert sorted(factor.leaves for factor in factors) == [(), (1, 2, 5), (2,), (2, 5)]
    at = {1: 3, 2: 5, 5: 7}
    assert total(factors, at) == 4 + 15 + 25 + 70 + 0.5 * 175 + 7 * 105
    pair = next(factor for factor in factors if factor.leaves == (2, 5))
    assert pair.table([(1, 2), (3, 4, 5)]).tolist() == [[7.5, 10.0, 12.5], [18.0, 24.0, 30.0]]
