"""The widths that do the least damage within one budget or two, and a bound of their distance from the best.

Of the points that the search for the best bound finds (`dual`), those within the budgets are improved by local search,
and the best is taken. In small problems, all allocations are enumerated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from surgeon.solver.factors import Factor
from surgeon.solver.lagrangian import descent, dual, out_of_reach
from surgeon.solver.local_search import improve, repair, widen
from surgeon.solver.problem import Budget, Problem
from surgeon.solver.variable_elimination import LARGEST, Elimination, find_order

#: Up to this many allocations are enumerated.
FEW = 200_000
#: The relative distance to the bound at which an allocation counts as the best there is.
PROVEN = 1e-6

_STARTS = 3
_REPAIRED = 2
_USED = 0.99
_LISTED = 6


@dataclass(frozen=True)
class Allocation:
    """A width for each leaf.

    `ms` is the cost in the first budget. No allocation within the budgets does less damage than `bound`, and `gap` is
    the relative distance of `damage` from it; both are None where no bound is known. `exact` means that none is better.
    """

    widths: dict[int, int]
    ms: float
    damage: float
    bound: float | None
    gap: float | None
    exact: bool
    notes: tuple[str, ...] = ()


def solve(
    candidates: Mapping[int, Sequence[int]],
    damage: Mapping[int, np.ndarray],
    budgets: Sequence[Budget],
    *,
    names: Mapping[int, str] | None = None,
    largest: int = LARGEST,
    few: int = FEW,
) -> Allocation:
    """Choose one of its candidates for each leaf: the least sum of damages within all budgets.

    Args:
        candidates: the widths that each leaf may take, ascending.
        damage: a number for each of them, never increasing.
        budgets: one or two; `Allocation.ms` is that of the first.
        names: of the leaves, for notes.
        largest: the entries that a table may have before candidates are skipped.
        few: up to how many allocations are enumerated.

    Raises:
        Infeasible: the budgets can't be met; the message says how far it could go and which factors hold the rest.

    >>> time = Factor("conv", (0, 1), lambda a, b: a * b / 100)
    >>> widths = {0: (8, 16, 24, 32), 1: (8, 16, 24, 32)}
    >>> found = solve(widths, {leaf: [9, 3, 1, 0] for leaf in widths}, [Budget("latency", "ms", (time,), 6.0)])
    >>> found.widths, found.ms, found.damage, found.exact
    ({0: 24, 1: 24}, 5.76, 2.0, True)
    """
    problem = Problem(candidates, damage, budgets)
    if math.prod(problem.sizes) <= few and problem.tabular:
        return _finish(problem, _best_of_all(problem), None, names, [], exact=True)
    coarse, strides = _thinned(problem, candidates, damage, largest)
    bound: float | None = None
    notes = []
    order = find_order(coarse, largest)
    if order is not None and order.largest <= largest:
        points, bound = dual(coarse, Elimination(coarse, order).minimum)
    else:
        coarse = problem
        notes.append(
            "the costs tie too many widths together for an exact minimum: widths were improved one and two at a "
            "time, and how far from the best they are is not known"
        )
        points, _ = dual(coarse, descent(coarse, np.array(coarse.sizes) - 1))
    if strides and coarse is not problem:
        notes.append(
            f"of {len(strides)} groups with many widths every {max(strides.values())}th was tried at first, "
            "so how far from the best the widths are is not known"
        )
        points, bound = [problem.point(coarse.widths(point)) for point in points], None
    best = _refine(problem, points, thorough=bound is not None or coarse is not problem)
    return _finish(problem, best, bound, names, notes, exact=False)


def cheapest(candidates: Mapping[int, Sequence[int]], factors: Iterable[Factor]) -> dict[int, int]:
    """The widths at which the sum of the factors is least, whatever the damage; of equals the widest.

    >>> stairs = Factor("conv", (0, 1), lambda a, b: a * np.ceil(b / 16))
    >>> cheapest({0: (8, 16), 1: (8, 16, 24)}, [stairs])
    {0: 8, 1: 16}
    """
    none = {leaf: np.zeros(len(each)) for leaf, each in candidates.items()}
    problem = Problem(candidates, none, [Budget("cost", "", tuple(factors), np.inf)])
    order = find_order(problem)
    if order is not None and order.largest <= LARGEST:
        point = Elimination(problem, order).minimum(np.ones(1), 0.0)
    else:
        point = descent(problem, np.zeros(len(candidates), dtype=np.int64))(np.ones(1), 0.0)
    return problem.widths(widen(problem, point)[0])


def _thinned(
    problem: Problem, candidates: Mapping[int, Sequence[int]], damage: Mapping[int, np.ndarray], largest: int
) -> tuple[Problem, dict[int, int]]:
    """The problem with every 2nd, 4th, … candidate of the groups with most, until its tables are small enough."""
    strides: dict[int, int] = {}
    while (order := find_order(problem, largest)) is not None and order.largest > largest:
        variable = order.widest(problem)
        if problem.sizes[variable] <= 4:
            break
        leaf = problem.leaves[variable]
        strides[leaf] = strides.get(leaf, 1) * 2
        # From the widest down, and always the narrowest, which decides whether the budget can be met.
        chosen = {
            each: sorted({0, *range(len(candidates[each]) - 1, -1, -strides.get(each, 1))})
            for each in candidates
        }
        problem = Problem(
            {each: [candidates[each][at] for at in chosen[each]] for each in candidates},
            {each: np.asarray(damage[each])[chosen[each]] for each in candidates},
            problem.budgets,
        )
    return problem, strides


def _best_of_all(problem: Problem) -> np.ndarray:
    """The best point within the budgets, by enumeration."""
    free = [variable for variable, size in enumerate(problem.sizes) if size > 1]
    shape = tuple(problem.sizes[variable] for variable in free)
    axes = dict(zip(free, np.ix_(*(np.arange(size) for size in shape)), strict=True))
    point = np.zeros(len(problem.sizes), dtype=np.int64)
    harm, most, used = np.zeros(shape), np.zeros(shape), np.ones(shape, dtype=bool)
    for variable in free:
        harm = harm + problem.damage[variable][axes[variable]]
    for row, parts in enumerate(problem.parts):
        cost = np.full(shape, problem.constants[row])
        for part in parts:
            cost = cost + problem.values(part, axes, point)
        most = np.maximum(most, cost / problem.limits[row])
        used &= cost >= problem.budgets[row].least
    within = most <= 1 + 1e-12
    if (within & used).any():
        within &= used
    at = np.argmin(np.where(within, harm, np.inf)) if within.any() else np.argmin(most)
    point[free] = np.unravel_index(int(at), shape)
    if not within.any():
        raise out_of_reach(problem, point)
    return point


def _refine(problem: Problem, points: Sequence[np.ndarray], thorough: bool) -> np.ndarray:
    """The best point within the budgets that local search reaches from the most promising of `points`."""
    fitting = [point for point in points if problem.fits(problem.cost(point))]
    over = [point for point in points if not problem.fits(problem.cost(point))]
    over.sort(key=lambda point: float((problem.cost(point) / problem.limits).max()))
    repaired = (repair(problem, point) for point in over[:_REPAIRED])
    found = {tuple(point.tolist()): point for point in (*fitting, *repaired) if point is not None}
    starts = sorted(found.values(), key=problem.harm)[: _STARTS if thorough else 1]
    return min((improve(problem, start) for start in starts), key=problem.harm)


def _finish(
    problem: Problem,
    point: np.ndarray,
    bound: float | None,
    names: Mapping[int, str] | None,
    notes: Sequence[str],
    *,
    exact: bool,
) -> Allocation:
    before = problem.widths(point)
    point, raised = widen(problem, point)
    widths, harm = problem.widths(point), problem.harm(point)
    called = [(names or {}).get(leaf, f"leaf {leaf}") for leaf in problem.leaves]
    found = list(notes)
    if raised:
        texts = [f"{called[v]} {before[problem.leaves[v]]} → {widths[problem.leaves[v]]}" for v in raised]
        found.append(f"widths that cost nothing were given back: {_some(texts)}")
    whole = [variable for variable in range(len(point)) if _saves_nothing(problem, variable, point)]
    if whole:
        found.append(f"left whole, since fewer units would save nothing: {_some([called[v] for v in whole])}")
    if (problem.cost(point) < _USED * problem.limits).all() and (point < np.array(problem.sizes) - 1).any():
        first = problem.budgets[0]
        found.append(
            f"{problem.cost(point)[0]:.4g} of {first.limit:.4g} {first.unit} are used: the next width is too wide"
        )
    bound = harm if exact else bound
    gap = None if bound is None else max(harm - bound, 0.0) / harm if harm > 0 else 0.0
    proven = gap is not None and gap <= PROVEN
    return Allocation(widths, float(problem.cost(point)[0]), harm, bound, gap, proven, tuple(found))


def _saves_nothing(problem: Problem, variable: int, point: np.ndarray) -> bool:
    """Whether a group of several candidates is whole, and no narrower one lowers any cost."""
    if problem.sizes[variable] < 2 or point[variable] < problem.sizes[variable] - 1:
        return False
    along = problem.along(variable, point)
    return bool((along >= along[:, -1:] - 1e-6 * np.abs(problem.cost(point))[:, None]).all())


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return ", ".join(texts[:_LISTED]) + more
