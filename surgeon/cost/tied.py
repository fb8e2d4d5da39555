"""The allocation problem of groups of which some are tied: a variable for each class of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from surgeon.cost.alignment import Alignment
from surgeon.cost.cost import Cost, Share
from surgeon.groups.coupling import Group, Groups
from surgeon.groups.ties import Ties
from surgeon.ir.axes import Leaf
from surgeon.ir.polynomial import Terms


class TiedCost(Cost):
    """The costs of the same graph as functions of the steps of classes; leaves that are held are numbers."""

    def __init__(self, groups: Groups, cost: Cost, ties: Ties) -> None:
        super().__init__(groups)
        self.whole, self._ties = cost, ties

    def shares(self, budget: str) -> list[Share]:
        if self.check(budget) == "channels":
            return [replace(share, terms=self._in_steps(share.terms)) for share in self.whole.shares(budget)]
        if budget not in self._made:
            self._made[budget] = [
                replace(share, terms=self._in_steps(share.terms)) for share in self.whole.shares(budget)
            ]
        return self._made[budget]

    def channels(self, widths: Mapping[int, int]) -> int:
        return self.whole.channels(self._ties.expand({**self.sizes, **widths}))

    def inside(self) -> tuple[dict[int, set[int]], set[int]]:
        whole = Alignment(self.whole.groups, self.whole)
        inside, inner = {}, set()
        for leaf in self.order:
            members = self._ties.of(leaf)
            inside[leaf] = {each * self._ties.unit(m) for m in members for each in whole.inside[m]}
            if whole.inner.issuperset(members):
                inner.add(leaf)
        return inside, inner

    @cached_property
    def _made(self) -> dict[str, list[Share]]:
        return {}

    def _in_steps(self, terms: Terms) -> Terms:
        found: Terms = {}
        for leaves, factor in terms.items():
            left: list[int] = []
            for leaf in leaves:
                if leaf in self._ties.held:
                    factor *= self._ties.sizes[leaf]
                else:
                    factor *= self._ties.unit(leaf)
                    left.append(self._ties.of(leaf)[0])
            key = tuple(sorted(left))
            found[key] = found.get(key, 0.0) + factor
        return found


@dataclass(frozen=True)
class Tied:
    """Groups, one for each class, in which a unit is one step of the class; their `cost`; and what `whole` is."""

    whole: Groups
    ties: Ties
    groups: Groups
    cost: TiedCost

    @classmethod
    def of(cls, groups: Groups, cost: Cost, ties: Ties) -> Tied:
        by_leaf = {group.leaf.id: group for group in groups}
        made = []
        for group in groups:
            leaves = ties.of(group.leaf.id)
            if group.leaf.id in ties.held or leaves[0] != group.leaf.id:
                continue
            members = tuple(dict.fromkeys(member for leaf in leaves for member in by_leaf[leaf].members))
            size = ties.steps(leaves) if len(leaves) > 1 else group.size
            made.append(Group(group.name, Leaf(group.leaf.id, size), members))
        tied = replace(groups, groups=tuple(made))
        return cls(groups, ties, tied, TiedCost(tied, cost, ties))

    def curves(self, damages: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """The damage of 1, 2, … steps of each class: that of all its leaves together."""
        found = {}
        for group in self.groups:
            steps = np.arange(1, group.size + 1)
            found[group.leaf.id] = sum(
                (np.asarray(damages[leaf])[steps * self.ties.unit(leaf) - 1] for leaf in self.ties.of(group.leaf.id)),
                start=np.zeros(group.size),
            )
        return found

    def scores(self, scores: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """The importance of the steps of each class, the best first: the mean of their units'."""
        found = {}
        for group in self.groups:
            leaves = self.ties.of(group.leaf.id)
            if len(leaves) == 1:
                found[group.leaf.id] = scores[leaves[0]]
                continue
            parts = [np.sort(scores[leaf])[::-1].reshape(group.size, -1).mean(axis=1) for leaf in leaves]
            found[group.leaf.id] = np.mean(parts, axis=0)
        return found

    def floors(self, floors: Mapping[int, int]) -> dict[str, int]:
        """The least steps of each class by its name, from the least widths of its leaves."""
        found = {}
        for group in self.groups:
            leaves = [leaf for leaf in self.ties.of(group.leaf.id) if leaf in floors]
            if leaves:
                found[group.name] = max(-(-floors[leaf] // self.ties.unit(leaf)) for leaf in leaves)
        return found

    def ceilings(self, tops: Mapping[int, int]) -> dict[int, int]:
        """The most steps of each class, from the most that its leaves may keep."""
        return {
            group.leaf.id: max(1, min(tops.get(leaf, self.ties.sizes[leaf]) // self.ties.unit(leaf)
                                      for leaf in self.ties.of(group.leaf.id)))
            for group in self.groups
        }
