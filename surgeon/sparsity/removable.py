"""Which units can be removed without changing the outputs, and where their contributions are folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from surgeon.groups.coupling import Group, Groups
from surgeon.sparsity.dataflow import gather
from surgeon.sparsity.merge_constants import Merge, merge
from surgeon.sparsity.readers import STATISTIC, Reader, readers

LAST = "a layer can't be empty"


@dataclass(frozen=True)
class Found:
    """What a sweep found in one group: the removed units without input and without output, and why others are left."""

    name: str
    size: int
    kept: int
    constant: int
    unread: int
    left: Mapping[str, int]


@dataclass(frozen=True)
class Sweep:
    """The units to keep by leaf, what to add to which tensors, and an entry for each group."""

    keep: dict[int, tuple[int, ...]]
    shifts: dict[str, np.ndarray]
    found: tuple[Found, ...]


def find(groups: Groups) -> Sweep:
    """All units that can be removed because they are constant or nothing reads them.

    One forward and one backward pass find all of them: removing a constant unit changes no value, and a unit that only
    such units read is itself not read.
    """
    known: list[Reader] = []
    read = gather(groups, lambda operands: known.extend(readers(groups, operands)))
    blocked = [reader.blocked(read.get(reader.node)) for reader in known]
    keep: dict[int, tuple[int, ...]] = {}
    lines = []
    shifts: dict[str, np.ndarray] = {}
    for group in groups:
        kept, line, merged = _decide(groups, group, known, blocked)
        lines.append(line)
        if len(kept) < group.size:
            keep[group.leaf.id] = kept
        if merged is not None:
            _add(shifts, merged.shifts(groups))
    _add(shifts, _shifts(groups, keep, known))
    return Sweep(keep, shifts, tuple(lines))


def _add(total: dict[str, np.ndarray], more: Mapping[str, np.ndarray]) -> None:
    for name, shift in more.items():
        total[name] = total.get(name, 0) + shift


def _decide(
    groups: Groups, group: Group, known: list[Reader], blocked: list[dict[int, str]]
) -> tuple[tuple[int, ...], Found, Merge | None]:
    stays, alive = np.zeros(group.size, dtype=bool), np.zeros(group.size, dtype=bool)
    constant = np.ones(group.size, dtype=bool)
    reasons: dict[int, str] = {}
    blockers: dict[int, list[Reader]] = {}
    for reader, why in zip(known, blocked, strict=True):
        for units in groups.space.units(reader.axis, group.leaf):
            of_group = units >= 0
            np.logical_and.at(constant, units[of_group], reader.known[of_group])
            for position in (p for p in why if units[p] >= 0):
                unit = int(units[position])
                stays[unit] = True
                blockers.setdefault(unit, []).append(reader)
                if not reader.known[position]:
                    alive[unit] = True
                elif reader.statistic:  # the unit was constant before the statistic, but is not after it
                    reasons[unit] = f"{reader.place}: {why[position]}"
                else:
                    reasons.setdefault(unit, f"{reader.place}: {why[position]}")
    merged = merge(groups, group, blockers)
    for unit in merged.gone if merged is not None else ():
        stays[unit] = False
        del reasons[unit]
    dead = (u for u, reason in reasons.items() if not alive[u] or reason.endswith(STATISTIC))
    left = Counter(reasons[u] for u in dead)
    gone = ~stays
    if gone.all():
        gone[0] = False
        left[LAST] += 1
    kept = tuple(np.flatnonzero(~gone).tolist())
    line = Found(
        group.name, group.size, len(kept), int((gone & constant).sum()), int((gone & ~constant).sum()), dict(left)
    )
    return kept, line, merged


def _shifts(groups: Groups, keep: Mapping[int, tuple[int, ...]], known: list[Reader]) -> dict[str, np.ndarray]:
    """The changes of the model's tensors that make up for the removed constants."""
    kept = groups.kept(keep)
    found: dict[str, np.ndarray] = {}
    for reader in known:
        if reader.target is None or reader.padded or reader.values is None or not kept.changed(reader.axis):
            continue
        gone = np.setdiff1d(np.arange(reader.axis.size), kept.positions(reader.axis))
        shift = reader.target.sign * reader.shift(gone)
        if shift.any():
            _add(found, {reader.target.tensor: shift})
    return found
