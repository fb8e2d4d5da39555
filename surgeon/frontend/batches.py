"""Batches of inputs, whatever yields them: one after the other, and what of each the model takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surgeon.errors import InvalidInputs


def batches(name: str, data: Any) -> Iterator[Any]:
    """The batches of `data`, an argument of this name that was checked; a lone tensor, array or dict is one batch.

    Raises:
        InvalidInputs: there is none.

    >>> list(batches("data", {"x": 1})), list(batches("data", range(2)))
    ([{'x': 1}], [0, 1])
    """
    source: Iterable[Any]
    match data:
        case Tensor() | np.ndarray() | Mapping():
            source = [data]
        case Iterable():
            source = data
        case _:
            source = (data[index] for index in range(len(data)))
    empty, iterator = True, iter(source)
    for batch in iterator:
        empty = False
        yield batch
    if empty:
        raise nothing(name, used_up=iterator is data)


def nothing(name: str, used_up: bool = False) -> InvalidInputs:
    """The error for data that hold no sample."""
    if used_up:
        return InvalidInputs(
            f"{name} is an iterator that has nothing left: it was read before; give the DataLoader or list itself"
        )
    return InvalidInputs(f"{name} is empty: give at least one batch of inputs")


def chosen(batch: Any, names: Sequence[str], place: str) -> list[Any]:
    """The inputs of these names in a batch: a dict's by name, else the first ones. The rest, such as labels, is left.

    Raises:
        InvalidInputs: the batch lacks one.

    >>> chosen((1, 2, 3), ["x", "y"], "batch 0"), chosen({"y": 2, "label": 3, "x": 1}, ["x", "y"], "batch 0")
    ([1, 2], [1, 2])
    """
    if isinstance(batch, Mapping):
        if missing := [name for name in names if name not in batch]:
            raise InvalidInputs(
                f"{place} is a dict of {', '.join(map(repr, batch))} without {', '.join(map(repr, missing))}; "
                "name every input that the example inputs had"
            )
        return [batch[name] for name in names]
    values = list(batch) if isinstance(batch, tuple | list) else [batch]
    if len(values) < len(names):
        raise InvalidInputs(f"{place} holds {len(values)} tensors, the model takes {len(names)}: {', '.join(names)}")
    return values[: len(names)]


def check_finite(value: Tensor, place: str) -> None:
    """Raise InvalidInputs if a tensor holds NaN or infinity."""
    if value.is_floating_point() and not (finite := torch.isfinite(value)).all():
        raise InvalidInputs(
            f"{place} holds NaN or infinity in {int((~finite).sum())} of {value.numel()} places; remove those samples"
        )
