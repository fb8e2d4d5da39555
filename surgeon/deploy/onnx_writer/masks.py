"""Which positions of a tensor's axes stay: one mask an axis that loses any, and how a reshape carries them over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import numpy as np

Mask = np.ndarray
#: The masks of a tensor's axes; an axis that keeps all of its positions has none.
Masks = Mapping[int, Mask]
#: The size of an axis; a text where it isn't known before the model runs, the same text for the same size.
Size = int | str


class DoesNotFactor(Exception):
    """What stays of the merged axes is no product of what stays of each."""


def of_positions(cuts: Mapping[int, Sequence[int] | np.ndarray], sizes: Sequence[int]) -> dict[int, Mask]:
    """Masks from kept positions.

    >>> of_positions({0: [0, 2], 1: [0, 1]}, (3, 2))
    {0: array([ True, False,  True])}
    """
    found = {}
    for axis, positions in cuts.items():
        mask = np.zeros(sizes[axis], dtype=bool)
        mask[np.asarray(positions, dtype=np.int64)] = True
        found[axis] = mask
    return lossy(found)


def lossy(masks: Masks) -> dict[int, Mask]:
    """The masks that remove something."""
    return {axis: mask for axis, mask in masks.items() if not mask.all()}


def same(a: Mask | None, b: Mask | None) -> bool:
    """Whether two axes keep the same positions."""
    return a is b if a is None or b is None else bool(np.array_equal(a, b))


def first(masks: Iterable[Mask | None]) -> Mask | None:
    """The first mask that there is."""
    return next((mask for mask in masks if mask is not None), None)


def count(mask: Mask) -> int:
    """How many positions stay."""
    return int(np.count_nonzero(mask))


def factor(mask: Mask, sizes: Sequence[int]) -> list[Mask]:
    """The masks of the axes that `mask`'s axis is the row-major product of.

    >>> [each.tolist() for each in factor(np.array([True, False, True, False]), (2, 2))]
    [[True, True], [True, False]]

    Raises:
        DoesNotFactor: there are none, as where each head loses other channels.
    """
    box = mask.reshape(tuple(sizes))
    axes = range(len(sizes))
    parts = [np.asarray(box.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    if not np.array_equal(merge(parts), mask):
        raise DoesNotFactor(f"what stays of {mask.size} positions is no product over {tuple(sizes)}")
    return parts


def merge(parts: Sequence[Mask]) -> Mask:
    """The mask of the row-major product of axes."""
    box = np.ones(1, dtype=bool)
    for part in parts:
        box = np.logical_and.outer(box, part).reshape(-1)
    return box


def reshaped(masks: Masks, old: Sequence[Size], new: Sequence[Size]) -> dict[int, Mask]:
    """The masks of a tensor of sizes `old` once it is reshaped to `new`.

    >>> mask = np.array([True, False])
    >>> {axis: each.tolist() for axis, each in reshaped({1: mask}, ("batch", 2, 3), ("batch", 6)).items()}
    {1: [True, True, True, False, False, False]}

    Raises:
        DoesNotFactor: an axis that loses positions is merged with one of unknown size, or divided so that what stays is
            no product.
    """
    if (divided := _divided(masks, old, new)) is not None:
        return divided
    found: dict[int, Mask] = {}
    spans, rest = _aligned(old, new)
    for axes, onto in spans:
        if not any(axis in masks for axis in axes):
            continue
        joint = merge([masks.get(axis, np.ones(int(old[axis]), dtype=bool)) for axis in axes])
        found |= dict(zip(onto, factor(joint, [int(new[axis]) for axis in onto]), strict=True))
    if any(axis in masks for axis in rest):
        raise DoesNotFactor(f"{tuple(old)} can't be aligned with {tuple(new)}, where sizes are not known")
    return lossy(found)


def _divided(masks: Masks, old: Sequence[Size], new: Sequence[Size]) -> dict[int, Mask] | None:
    """As `reshaped`, where a part of a known axis goes to, or comes from, one of unknown size beside it, as heads do.

    The axis is divided in two, so that what stays outside of the unknown size can be aligned; None where none can be.
    """
    _, i, j = _runs(old[::-1], new[::-1])
    at, onto = len(old) - 1 - i, len(new) - 1 - j
    if at < 1 or onto < 1:
        return None
    have, want = old[at], new[onto]
    if not (isinstance(have, int) and isinstance(want, int)) or have == want or min(have, want) < 2:
        return None
    if have > want and have % want == 0 and isinstance(new[onto - 1], str):
        parts = dict(zip((at, at + 1), factor(masks[at], (have // want, want)), strict=True)) if at in masks else {}
        shifted = {axis if axis < at else axis + 1: mask for axis, mask in masks.items() if axis != at}
        return reshaped(lossy({**shifted, **parts}), (*old[:at], have // want, want, *old[at + 1 :]), new)
    if want > have and want % have == 0 and isinstance(old[at - 1], str):
        outer, inner = want // have, have
        found = reshaped(masks, old, (*new[:onto], outer, inner, *new[onto + 1 :]))
        joint = {axis: found.pop(axis, None) for axis in (onto, onto + 1)}
        back = {axis if axis < onto else axis - 1: mask for axis, mask in found.items()}
        if any(mask is not None for mask in joint.values()):
            sizes = {onto: outer, onto + 1: inner}
            back[onto] = merge([
                np.ones(sizes[axis], dtype=bool) if mask is None else mask for axis, mask in joint.items()
            ])
        return back
    return None


def _aligned(old: Sequence[Size], new: Sequence[Size]) -> tuple[list[tuple[list[int], list[int]]], list[int]]:
    """Runs of axes of `old` and of `new` that hold as many elements, from both ends; and the axes of `old` between."""
    left, i, j = _runs(old, new)
    right, k, _ = _runs(old[i:][::-1], new[j:][::-1])
    spans = left + [
        (sorted(len(old) - 1 - axis for axis in axes), sorted(len(new) - 1 - axis for axis in onto))
        for axes, onto in right
    ]
    return spans, [axis for axis in range(i, len(old) - k) if old[axis] != 1]


def _runs(old: Sequence[Size], new: Sequence[Size]) -> tuple[list[tuple[list[int], list[int]]], int, int]:
    """The shortest runs of known sizes from the front that multiply to the same, and how far they reach."""
    spans: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) and j < len(new):
        if isinstance(old[i], str) and old[i] == new[j]:
            i, j = i + 1, j + 1
            continue
        to, onto = i + 1, j + 1
        while _known(old[i:to]) and _known(new[j:onto]) and _product(old[i:to]) != _product(new[j:onto]):
            if _product(old[i:to]) < _product(new[j:onto]):
                to += 1
            else:
                onto += 1
            if to > len(old) or onto > len(new):
                return spans, i, j
        if not (_known(old[i:to]) and _known(new[j:onto])):
            return spans, i, j
        spans.append((list(range(i, to)), list(range(j, onto))))
        i, j = to, onto
    return spans, i, j


def _known(sizes: Sequence[Size]) -> bool:
    return all(isinstance(size, int) for size in sizes)


def _product(sizes: Sequence[Size]) -> int:
    return prod(int(size) for size in sizes)
