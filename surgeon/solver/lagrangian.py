"""The best lower bound of the damage within budgets, and the points found on the way to it.

Every budget gets a multiplier. At fixed multipliers the least damage + multipliers · (costs - limits) of all points
is a lower bound of the damage of those within the budgets. It is a concave function of the multipliers, and every
point found bounds it from above by a plane: the next multipliers are where the minimum of the planes is highest.
Everett, "Generalized Lagrange multiplier method for solving problems of optimum allocation of resources", Operations
Research 11 (1963); Kelley, "The cutting-plane method for solving convex programs", SIAM Journal 8 (1960).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import linprog

from surgeon.errors import Infeasible
from surgeon.solver.local_search import repair
from surgeon.solver.problem import Problem

#: Minimizes the sum of multiples of the costs, `(budgets,)`, and a multiple of the damage.
Minimum = Callable[[np.ndarray, float], np.ndarray]

_CUTS = 40
_KEPT = 20
_SWEEPS = 4
_LISTED = 6


def dual(problem: Problem, minimum: Minimum) -> tuple[list[np.ndarray], float]:
    """The points found while searching for the multipliers, and the highest lower bound of the damage."""
    limits = problem.limits
    whole = minimum(np.zeros(limits.size), 1.0)
    if problem.fits(problem.cost(whole)):
        return [whole], problem.harm(whole)
    points = [whole, _cheapest(problem, minimum)]
    cuts = [(problem.harm(point), problem.cost(point) / limits - 1) for point in points]
    # At the best multipliers the bound is at least that of cuts[0], and the cheapest point limits it by cuts[1]: so the
    # multipliers are at most this large.
    ceiling = (cuts[1][0] - cuts[0][0]) / np.maximum(-cuts[1][1], 1e-9) + 1e-9
    bound = cuts[0][0]
    for _ in range(_CUTS):
        multipliers, above = _master(cuts, ceiling)
        point = minimum(multipliers / limits, 1.0)
        harm, excess = problem.harm(point), problem.cost(point) / limits - 1
        points.append(point)
        bound = max(bound, harm + float(multipliers @ excess))
        if above - bound <= 1e-9 * max(1.0, abs(above)):
            break
        if any(harm == each[0] and (excess == each[1]).all() for each in cuts):
            break
        cuts.append((harm, excess))
        if len(cuts) > _KEPT:  # those far above the bound no longer matter
            heights = [each[0] + float(multipliers @ each[1]) for each in cuts]
            cuts.pop(max(range(2, len(cuts)), key=heights.__getitem__))
    return points, bound


def _master(cuts: Sequence[tuple[float, np.ndarray]], ceiling: np.ndarray) -> tuple[np.ndarray, float]:
    """The multipliers, up to `ceiling`, at which the minimum of the planes harm + multipliers · excess is highest."""
    harms, excesses = np.array([harm for harm, _ in cuts]), np.array([excess for _, excess in cuts])
    scale = np.ptp(harms) or 1.0  # the tolerances of the linear program are absolute
    found = linprog(
        [*np.zeros(ceiling.size), -1.0],
        A_ub=np.column_stack([-excesses, np.ones(len(cuts))]), b_ub=harms / scale,
        bounds=[*((0.0, most) for most in ceiling / scale), (None, None)],
    )
    best = found.x * scale
    return np.clip(best[:-1], 0.0, ceiling), float(best[-1])


def _cheapest(problem: Problem, minimum: Minimum) -> np.ndarray:
    """A point within all budgets, far within if there is one."""
    count = problem.limits.size
    mixes = [np.ones(1)] if count == 1 else [np.array([a, 1 - a]) for a in (0.5, 0.0, 1.0, 0.25, 0.75)]
    found = [minimum(mix / problem.limits, 0.0) for mix in mixes]
    best = min(found, key=lambda point: float((problem.cost(point) / problem.limits).max()))
    if problem.fits(problem.cost(best)):
        return best
    repaired = repair(problem, best)
    if repaired is None:
        raise out_of_reach(problem, best)
    return repaired


def descent(problem: Problem, start: np.ndarray) -> Minimum:
    """Coordinate descent, from `start` at first, and then from the last point that it found."""
    point = start.copy()

    def minimum(multipliers: np.ndarray, damage: float) -> np.ndarray:
        for _ in range(_SWEEPS):
            before = point.copy()
            for variable in range(point.size):
                line = damage * problem.damage[variable] + multipliers @ problem.along(variable, point)
                point[variable] = line.size - 1 - int(np.argmin(line[::-1]))
            if (point == before).all():
                break
        return point.copy()

    return minimum


def out_of_reach(problem: Problem, point: np.ndarray) -> Infeasible:
    """The error for budgets that can't be met, given the point that comes closest."""
    cost = problem.cost(point)
    row = int(np.argmax(cost / problem.limits))
    budget, widths = problem.budgets[row], problem.widths(point)
    full = problem.cost(np.array(problem.sizes) - 1)[row]
    shares: dict[str, float] = {}
    for factor in budget.factors:
        shares[factor.label] = shares.get(factor.label, 0.0) + factor.at(widths)
    held = sorted(shares.items(), key=lambda pair: -pair[1])[:_LISTED]
    lines = [f"  {value:.3g} {budget.unit} in {label or 'a constant'}" for label, value in held]
    together = " together with the other budget" if len(problem.budgets) > 1 else ""
    return Infeasible(
        f"a {budget.name} of {budget.limit:.4g} {budget.unit} is out of reach{together}: the least is "
        f"{cost[row]:.4g} of {full:.4g} {budget.unit}. What holds the rest:\n" + "\n".join(lines),
        reachable=float(1 - cost[row] / full) if full else 0.0,
    )
