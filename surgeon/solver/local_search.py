"""Local search: improves a point within the budgets by one or two moves at a time."""

from __future__ import annotations

import numpy as np

from surgeon.solver.problem import Problem

#: By how many candidates a variable can move, up or down, in a pair of moves; alone it can move anywhere.
REACH = (1, 2, 3, 5, 8, 13)
#: The most moves that are combined in pairs: with more variables, each has a shorter reach.
MOVES = 700
_ROUNDS = 200
_TRIES = 20
_SLACK = 1e-6


def improve(problem: Problem, point: np.ndarray) -> np.ndarray:
    """The point after repeatedly taking the best single move or pair of moves, until none reduces the damage.

    `point` must be within the budgets, and all points on the way are.
    """
    point = point.copy()
    least = 1e-9 * max(1.0, abs(problem.harm(point)))
    for _ in range(_ROUNDS):
        step = _best_step(problem, point, least)
        if step is None:
            break
        for variable, at in step:
            point[variable] = at
    return point


def repair(problem: Problem, point: np.ndarray) -> np.ndarray | None:
    """A point within the budgets, by moves that reduce the excess most for their damage; None if that fails."""
    point = point.copy()
    cost = problem.cost(point)
    for _ in range(20 * len(point)):
        if problem.fits(cost):
            return point
        over = np.maximum(cost - problem.limits, 0.0)
        best: tuple[float, int, int] | None = None
        for variable in range(len(point)):
            change = problem.changes(variable, point)
            left = np.maximum(cost[:, None] + change - problem.limits[:, None], 0.0)
            freed = ((over[:, None] - left) / problem.limits[:, None]).sum(axis=0)
            harm = np.maximum(problem.damage[variable] - problem.damage[variable][point[variable]], 0.0)
            worth = np.where(freed > 1e-12, (harm + 1e-12) / np.maximum(freed, 1e-300), np.inf)
            at = int(np.argmin(worth))
            if np.isfinite(worth[at]) and (best is None or worth[at] < best[0]):
                best = float(worth[at]), variable, at
        if best is None:
            return None
        point[best[1]] = best[2]
        cost = problem.cost(point)
    return None


def widen(problem: Problem, point: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The point with each variable as wide as is free of cost, and the variables that changed.

    Free means at most the share `_SLACK` of a budget, which is still met.
    """
    point, raised = point.copy(), set()
    changed = True
    while changed:
        changed = False
        for variable in range(len(point)):
            change = problem.changes(variable, point)
            cost = problem.cost(point)
            free = (change <= _SLACK * np.abs(cost)[:, None]).all(axis=0)
            free &= np.array([problem.fits(cost + each) for each in change.T])
            free &= problem.damage[variable] <= problem.damage[variable][point[variable]]
            widest = int(np.flatnonzero(free)[-1]) if free.any() else 0
            if widest > point[variable]:
                point[variable] = widest
                raised.add(variable)
                changed = True
    return point, sorted(raised)


def _best_step(problem: Problem, point: np.ndarray, least: float) -> list[tuple[int, int]] | None:
    """The move or pair of moves, as variables and indices, that reduces the damage most, and by more than `least`."""
    cost = problem.cost(point)
    reach = REACH[: max(1, MOVES // max(2 * len(point), 1))]
    offsets = np.array([*(-each for each in reversed(reach)), *reach])
    variables, indices = [np.array([-1])], [np.array([-1])]
    harms, changes = [np.zeros(1)], [np.zeros((len(cost), 1))]
    spans: dict[int, slice] = {}
    single: tuple[float, list[tuple[int, int]]] | None = None
    start = 1
    for variable in range(len(point)):
        change = problem.changes(variable, point)
        harm = problem.damage[variable] - problem.damage[variable][point[variable]]
        allowed = (cost[:, None] + change <= problem.limits[:, None]).all(axis=0)
        at = int(np.argmin(np.where(allowed, harm, np.inf)))
        if allowed[at] and harm[at] < -least and (single is None or harm[at] < single[0]):
            single = float(harm[at]), [(variable, at)]
        near = point[variable] + offsets
        near = near[(near >= 0) & (near < problem.sizes[variable])]
        variables.append(np.full(near.size, variable))
        indices.append(near)
        harms.append(harm[near])
        changes.append(change[:, near])
        spans[variable] = slice(start, start + near.size)
        start += near.size
    of, at_, harm_, change_ = (np.concatenate(v, axis=-1) for v in (variables, indices, harms, changes))
    joint = harm_[:, None] + harm_[None, :]
    joint[of[:, None] >= of[None, :]] = np.inf
    margin = np.zeros((len(cost), *joint.shape))
    for one, other in problem.shared:
        a, b = spans[one], spans[other]
        margin[:, a, b] = problem.interaction(one, other, at_[a], at_[b], point)
    joint[joint >= -least] = np.inf
    for row in range(len(cost)):
        together = change_[row][:, None] + change_[row][None, :] + margin[row]
        joint[cost[row] + together > problem.limits[row]] = np.inf
    order = np.argpartition(joint, min(_TRIES, joint.size - 1), axis=None)[:_TRIES]
    for flat in order[np.argsort(joint.ravel()[order])]:
        i, j = np.unravel_index(flat, joint.shape)
        if not np.isfinite(joint[i, j]) or (single is not None and single[0] <= joint[i, j]):
            break
        step = [(int(of[k]), int(at_[k])) for k in (i, j) if of[k] >= 0]
        trial = point.copy()
        for variable, at in step:
            trial[variable] = at
        # Only now is it known how parts without a table change together.
        if problem.fits(problem.cost(trial)):
            return step
    return single[1] if single is not None else None
