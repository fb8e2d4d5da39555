"""The parts that axes consist of, and what their sizes become."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from surgeon.groups.coupling import Groups
from surgeon.ir.axes import Axis, Prod, Sum, prod
from surgeon.rules import Kept


def becoming(groups: Groups, kept: Kept) -> dict[int, set[int]]:
    """Sizes of the axes of the model's tensors, and of their parts, and what each of these becomes.

    >>> from surgeon.frontend.trace import trace
    >>> from surgeon.groups.coupling import couple
    >>> from torch import nn, zeros
    >>> groups = couple(trace(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), zeros(2, 3)))
    >>> becoming(groups, groups.kept({groups.groups[0].leaf.id: range(5)}))
    {8: {5}, 3: {3}, 2: {2}}
    """
    found: dict[int, set[int]] = {}
    for axes in groups.tensors.values():
        for axis in axes:
            for part in _parts(groups.space.resolve(axis)):
                found.setdefault(part.size, set()).add(kept.width(part))
    return found


def _parts(axis: Axis) -> Iterator[Axis]:
    yield axis
    match axis:
        case Prod():
            for start, end in itertools.combinations(range(len(axis.factors) + 1), 2):
                if end - start < len(axis.factors):
                    yield from _parts(prod(axis.factors[start:end]))
        case Sum():
            for term in axis.terms:
                yield from _parts(term)
