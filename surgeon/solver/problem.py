"""The allocation problem: candidates, damages, and costs as tables over the candidates of a few variables.

A point is an array of indices into the candidates, one for each variable; a variable is the place of a leaf.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from surgeon.errors import InvalidArgument
from surgeon.solver.factors import Factor

#: A factor over more combinations than this is not tabulated, but evaluated where needed.
WIDE = 2_000_000


@dataclass(frozen=True)
class Budget:
    """The sum of `factors` may be at most `limit`; `name` and `unit` are for messages.

    Where all allocations are enumerated, those that use at least `least` of it are preferred.
    """

    name: str
    unit: str
    factors: tuple[Factor, ...]
    limit: float
    least: float = 0.0


@dataclass(frozen=True)
class Part:
    """All factors of one budget over the same variables: as a table, or as functions if that would be too large."""

    variables: tuple[int, ...]
    table: np.ndarray | None
    factors: tuple[Factor, ...] = ()


class Problem:
    """Choose a candidate for each leaf: least damage within the budgets.

    `candidates` are widths by leaf, ascending; `damage` is a number for each of them. They cover the factors' leaves.
    """

    def __init__(
        self,
        candidates: Mapping[int, Sequence[int]],
        damage: Mapping[int, np.ndarray],
        budgets: Sequence[Budget],
        wide: int = WIDE,
    ) -> None:
        self.leaves = tuple(sorted(candidates))
        self.candidates = [np.asarray(candidates[leaf], dtype=np.float64) for leaf in self.leaves]
        self.damage = [np.asarray(damage[leaf], dtype=np.float64) for leaf in self.leaves]
        self.sizes = [len(each) for each in self.candidates]
        self.budgets = tuple(budgets)
        self.limits = np.array([budget.limit for budget in budgets], dtype=np.float64)
        place = {leaf: at for at, leaf in enumerate(self.leaves)}
        self.constants = np.zeros(len(budgets))
        self.parts = [self._collect(row, budget, place, wide) for row, budget in enumerate(budgets)]
        self.tabular = all(part.table is not None for parts in self.parts for part in parts)
        self.parts_of: list[list[tuple[int, Part, int]]] = [[] for _ in self.leaves]
        self.shared: dict[tuple[int, int], list[tuple[int, Part]]] = {}
        for row, parts in enumerate(self.parts):
            for part in parts:
                for axis, variable in enumerate(part.variables):
                    self.parts_of[variable].append((row, part, axis))
                    for other in part.variables[axis + 1 :] if part.table is not None else ():
                        self.shared.setdefault((variable, other), []).append((row, part))

    def _collect(self, row: int, budget: Budget, place: Mapping[int, int], wide: int) -> list[Part]:
        tables: dict[tuple[int, ...], np.ndarray] = {}
        large: dict[tuple[int, ...], list[Factor]] = {}
        for factor in budget.factors:
            if any(leaf not in place for leaf in factor.leaves):
                raise InvalidArgument(f"{factor.label} depends on leaves {factor.leaves}, not all of which have widths")
            variables = tuple(place[leaf] for leaf in factor.leaves)
            if math.prod(self.sizes[variable] for variable in variables) > wide:
                large.setdefault(variables, []).append(factor)
                continue
            table = factor.table([self.candidates[variable] for variable in variables])  # type: ignore[misc]
            if not np.isfinite(table).all():
                raise InvalidArgument(f"the {budget.name} of {factor.label} is not finite at all of its widths")
            if variables:
                tables[variables] = tables[variables] + table if variables in tables else table
            else:
                self.constants[row] += float(table)
        found = [Part(variables, table) for variables, table in tables.items()]
        return found + [Part(variables, None, tuple(factors)) for variables, factors in large.items()]

    def cost(self, point: np.ndarray) -> np.ndarray:
        """The cost in each budget, `(budgets,)`."""
        total = self.constants.copy()
        for row, parts in enumerate(self.parts):
            for part in parts:
                total[row] += self.values(part, {}, point)
        return total

    def harm(self, point: np.ndarray) -> float:
        return float(sum(damage[at] for damage, at in zip(self.damage, point, strict=True)))

    def along(self, variable: int, point: np.ndarray) -> np.ndarray:
        """The cost of the parts with this variable at each of its candidates, `(budgets, candidates)`."""
        total = np.zeros((len(self.budgets), self.sizes[variable]))
        every = np.arange(self.sizes[variable])
        for row, part, _ in self.parts_of[variable]:
            total[row] += self.values(part, {variable: every}, point)
        return total

    def changes(self, variable: int, point: np.ndarray) -> np.ndarray:
        """The change of cost when only this variable moves to each of its candidates, `(budgets, candidates)`."""
        along = self.along(variable, point)
        return along - along[:, point[variable]][:, None]

    def interaction(
        self, one: int, other: int, at: np.ndarray, other_at: np.ndarray, point: np.ndarray
    ) -> np.ndarray:
        """Changing two variables at once, less the sum of changing each alone, `(budgets, at, other_at)`.

        Parts without a table are left out.
        """
        total = np.zeros((len(self.budgets), at.size, other_at.size))
        for row, part in self.shared.get((min(one, other), max(one, other)), ()):
            free = {one: np.append(at, point[one])[:, None], other: np.append(other_at, point[other])}
            both = self.values(part, free, point)
            total[row] += both[:-1, :-1] - both[:-1, -1:] - both[-1:, :-1] + both[-1, -1]
        return total

    def fits(self, cost: np.ndarray) -> bool:
        """Whether a cost is within all budgets, up to rounding."""
        return bool((cost <= self.limits * (1 + 1e-12) + 1e-15).all())

    def values(self, part: Part, free: Mapping[int, np.ndarray], point: np.ndarray) -> np.ndarray:
        """A part's cost at the point, with the variables in `free` at these broadcastable indices instead."""
        if part.table is not None:
            return part.table[tuple(free.get(variable, point[variable]) for variable in part.variables)]
        widths = [self.candidates[variable][free.get(variable, point[variable])] for variable in part.variables]
        value = sum(np.asarray(factor.function(*widths), dtype=np.float64) for factor in part.factors)
        shape = np.broadcast_shapes(*(each.shape for each in free.values())) if free else ()
        return np.broadcast_to(np.asarray(value), shape)

    def widths(self, point: np.ndarray) -> dict[int, int]:
        """The widths of a point, by leaf."""
        return {leaf: int(each[at]) for leaf, each, at in zip(self.leaves, self.candidates, point, strict=True)}

    def point(self, widths: Mapping[int, int]) -> np.ndarray:
        """The point of these widths, each of which must be a candidate."""
        pairs = zip(self.leaves, self.candidates, strict=True)
        return np.array([each.tolist().index(widths[leaf]) for leaf, each in pairs])
