"""Rounds a plan's widths up to widths that are fast on a device, where that makes the model no slower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from surgeon.errors import InvalidArgument
from surgeon.groups.coupling import Groups
from surgeon.solver.factors import LatencyModel
from surgeon.solver.solve import cheapest

#: A width that is not fast is only kept if that saves more than this share of the latency: less is within the error of
#: the prediction, and units that come back are a gain.
_WORTH = 1e-3
_SWEEPS = 3


def round_up_to_fast_widths(
    groups: Groups,
    keep: Mapping[int, Iterable[int]],
    latency: LatencyModel,
    scores: Mapping[int, np.ndarray] | None = None,
) -> dict[int, tuple[int, ...]]:
    """The kept units, ascending, of every leaf that still loses some; each leaf keeps at least those of `keep`.

    Args:
        keep: the units that the plan keeps, by leaf; other leaves stay whole.
        latency: the milliseconds of the same groups on some device.
        scores: a number for each unit, by leaf: of the removed units the best come back; by default the first.

    Raises:
        InvalidArgument: `keep` has a leaf or a unit that the groups don't have, or a leaf without units.

    The best width of a group depends on the widths of those that share operators with it. Among fast widths, the
    cheapest combination is found by variable elimination. Any other width takes the operators that read it, and those
    that depend on their layout, out of the fast layout. No sum over operators gives that cost, so each of the plan's
    own widths is tried in turn on the latency of the whole, from the cheapest fast combination: from the plan itself,
    the gain of rounding up several widths at once would not show.
    """
    kept = _checked(groups, keep)
    sizes = {group.leaf.id: group.size for group in groups}
    own = {leaf: len(kept.get(leaf, range(size))) for leaf, size in sizes.items()}
    fast = {
        leaf: tuple(sorted({size} | {step for step in latency.steps(leaf) if own[leaf] <= step <= size}))
        for leaf, size in sizes.items()
    }
    if not sizes:
        return {}
    widths = _descend(latency, own, cheapest(fast, latency.factors), fast)
    if latency.ms(own) < latency.ms(widths):
        widths = own
    return {
        leaf: _returned(kept[leaf], width, sizes[leaf], None if scores is None else scores[leaf])
        for leaf, width in widths.items()
        if width < sizes[leaf]
    }


def _descend(
    latency: LatencyModel, own: Mapping[int, int], widths: dict[int, int], fast: Mapping[int, tuple[int, ...]]
) -> dict[int, int]:
    """The widths after replacing single ones by the plan's own, or the next fast one, as long as that is faster."""
    least = latency.ms(widths)
    for _ in range(_SWEEPS):
        before = dict(widths)
        for leaf, width in own.items():
            for other in {width, fast[leaf][0]} - {widths[leaf]}:
                trial = {**widths, leaf: other}
                taken = latency.ms(trial)
                if taken < least * (1 - _WORTH):
                    widths, least = trial, taken
        if widths == before:
            break
    return widths


def _returned(kept: tuple[int, ...], width: int, size: int, scores: np.ndarray | None) -> tuple[int, ...]:
    """The kept units, and as many of the removed ones as it takes for the width."""
    removed = np.setdiff1d(np.arange(size), kept)
    if scores is not None:
        removed = removed[np.argsort(-scores[removed], kind="stable")]
    return tuple(sorted([*kept, *removed[: width - len(kept)].tolist()]))


def _checked(groups: Groups, keep: Mapping[int, Iterable[int]]) -> dict[int, tuple[int, ...]]:
    sizes = {group.leaf.id: group.size for group in groups}
    found = {}
    for leaf, units in keep.items():
        found[leaf] = tuple(sorted({int(unit) for unit in units}))
        size = sizes.get(leaf)
        if size is None:
            raise InvalidArgument(f"keep: the model has no group of leaf {leaf}; take the kept units of its own plan")
        if not found[leaf] or found[leaf][0] < 0 or found[leaf][-1] >= size:
            raise InvalidArgument(f"keep: {groups.names[leaf]} has units 0 to {size - 1}, and one of them must stay")
    return found
