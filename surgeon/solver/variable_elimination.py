"""The exact minimum of damage + multipliers · costs, by variable elimination.

A variable is eliminated by minimizing over it for every combination of those that share a table with it, which leaves
one table over these. In a good order the tables stay small for networks whose layers depend on few widths each: three
axes for a residual stream of any number of blocks. Where every layer depends on the width of every other, they don't.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import networkx as nx
import numpy as np
from networkx.algorithms.approximation import treewidth_min_degree, treewidth_min_fill_in

from surgeon.solver.problem import Problem

#: The entries that a table may have.
LARGEST = 4_000_000


@dataclass
class _Bucket:
    """The step that eliminates a variable, the first of `scope`, for all combinations of the others."""

    scope: tuple[int, ...]
    rows: list[tuple[int, np.ndarray]] = field(default_factory=list)
    messages: list[int] = field(default_factory=list)


class Elimination:
    """The order and the tables, made once; `minimum` is then evaluated for any multipliers.

    All costs of the problem must be tables.
    """

    def __init__(self, problem: Problem, order: Order) -> None:
        self.problem = problem
        position = {variable: at for at, variable in enumerate(order.scopes)}
        self._buckets = [
            _Bucket((variable, *sorted(near, key=position.__getitem__)))
            for variable, near in order.scopes.items()
        ]
        for row, parts in enumerate(problem.parts):
            for part in parts:
                assert part.table is not None
                at = min(position[variable] for variable in part.variables)
                self._buckets[at].rows.append((row, _aligned(part.table, part.variables, self._buckets[at].scope)))
        for at, bucket in enumerate(self._buckets):
            if len(bucket.scope) > 1:
                self._buckets[position[bucket.scope[1]]].messages.append(at)
            bucket.rows = _merged(bucket.rows)

    def minimum(self, multipliers: np.ndarray, damage: float = 1.0) -> np.ndarray:
        """The point at which `damage` · damages + multipliers · costs is least."""
        problem = self.problem
        messages: list[np.ndarray] = []
        parts: list[list[np.ndarray]] = []
        for bucket in self._buckets:
            own = problem.damage[bucket.scope[0]] * damage
            terms = [own.reshape(-1, *[1] * (len(bucket.scope) - 1))]
            terms += [table * multipliers[row] for row, table in bucket.rows if multipliers[row]]
            terms += [_aligned(messages[at], self._buckets[at].scope[1:], bucket.scope) for at in bucket.messages]
            joint = np.zeros(tuple(problem.sizes[variable] for variable in bucket.scope))
            for term in terms:
                joint += term
            messages.append(joint.min(axis=0))
            parts.append(terms)
        point = np.zeros(len(problem.leaves), dtype=np.int64)
        for bucket, terms in zip(reversed(self._buckets), reversed(parts), strict=True):
            line = np.zeros(problem.sizes[bucket.scope[0]])
            for term in terms:
                at = tuple(
                    point[variable] if size > 1 else 0
                    for variable, size in zip(bucket.scope[1:], term.shape[1:], strict=True)
                )
                line = line + term[(slice(None), *at)]
            # Of equals the widest.
            point[bucket.scope[0]] = line.size - 1 - int(np.argmin(line[::-1]))
        return point


@dataclass(frozen=True)
class Order:
    """The order in which variables are eliminated, and the neighbors that each has then."""

    scopes: dict[int, set[int]]
    entries: dict[int, int]

    @property
    def largest(self) -> int:
        return max(self.entries.values(), default=1)

    def widest(self, problem: Problem) -> int:
        """The variable with the most candidates of those in the largest table."""
        first = max(self.entries, key=self.entries.__getitem__)
        return max((first, *self.scopes[first]), key=lambda variable: problem.sizes[variable])


def find_order(problem: Problem, largest: int = LARGEST) -> Order | None:
    """An order with small tables; None if a table would have more than a thousand times `largest` entries.

    The best order is NP-hard to find; the better of the two usual heuristics, fewest neighbors and fewest new pairs, is
    taken.
    """
    if not problem.tabular:
        return None
    graph = nx.Graph()
    graph.add_nodes_from(range(len(problem.leaves)))
    graph.add_edges_from(pair for parts in problem.parts for part in parts for pair in combinations(part.variables, 2))
    trees = (decompose(graph)[1] for decompose in (treewidth_min_degree, treewidth_min_fill_in))
    best = min((_order(problem, tree) for tree in trees), key=lambda order: order.largest)
    return best if best.largest <= 1000 * largest else None


def _order(problem: Problem, tree: nx.Graph) -> Order:
    """The order of a tree decomposition: for each bag, the deepest first, the variables that its parent lacks."""
    order, root = Order({}, {}), next(iter(tree))
    above = dict(nx.bfs_predecessors(tree, root))
    for bag in reversed([root, *above]):
        near = set(bag)
        for variable in sorted(near - above.get(bag, frozenset())):
            order.entries[variable] = math.prod(problem.sizes[each] for each in near)
            near.remove(variable)
            order.scopes[variable] = set(near)
    return order


def _aligned(table: np.ndarray, variables: Sequence[int], scope: Sequence[int]) -> np.ndarray:
    """The table with an axis for each variable of the scope, of length 1 for those that it doesn't depend on."""
    order = sorted(range(len(variables)), key=lambda axis: scope.index(variables[axis]))
    present = set(variables)
    sizes = iter(np.array(table.shape)[order])
    return table.transpose(order).reshape([next(sizes) if each in present else 1 for each in scope])


def _merged(rows: list[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
    """The tables, with those of the same budget and shape added up."""
    found: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}
    for row, table in rows:
        key = row, table.shape
        found[key] = found[key] + table if key in found else table
    return [(row, table) for (row, _), table in found.items()]
