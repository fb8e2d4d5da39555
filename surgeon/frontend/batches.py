"""Batches of inputs, whatever yields them: one after the other, and what of each the model takes."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from surgeon.errors import InvalidInputs, first_line


def batches(name: str, data: Any) -> Generator[Any]:
    """The batches of `data`, an argument of this name that was checked; a lone tensor, array or dict is one batch.

    Close it, as with `contextlib.closing`, where not all of them are read: that ends the processes of a DataLoader.

    Raises:
        InvalidInputs: there is none, or the next one can't be had, since the user's own code fails.

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
    iterator: Iterator[Any] | None = None
    count = 0
    try:
        while True:
            try:
                iterator = iter(source) if iterator is None else iterator
                batch = next(iterator)
            except StopIteration:
                break
            except Exception as error:
                raise InvalidInputs(f"batch {count} of {name} can't be read: {_told(error)}") from error
            count += 1
            yield batch
    finally:
        if iterator is not None and iterator is not data:
            _end(source, iterator)
    if not count:
        raise nothing(name, used_up=iterator is data)


def _end(source: Any, iterator: Any) -> None:
    """End the processes that read for a DataLoader, which live on while an error's traceback holds the iterator."""
    end = getattr(iterator, "_shutdown_workers", None)
    if callable(end) and isinstance(source, DataLoader) and not source.persistent_workers:
        end()


def _told(error: Exception) -> str:
    """What went wrong; of an error in a DataLoader's process, whose message is a traceback, the last line tells it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if len(lines) > 1 and "Traceback" in str(error) else f"{type(error).__name__}: {first_line(error)}"


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
        if any(name not in batch for name in names):  # an input of an ONNX file may have a name that no parameter can
            batch = {**{_parameter(name): value for name, value in batch.items()}, **batch}
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


UNUSED = "labels, and whatever else batches of the data hold beside the inputs, were not used to fit layers"


def beside(batch: Any, names: Sequence[str]) -> bool:
    """Whether a batch holds more than the inputs of these names, such as labels.

    >>> beside((1, 2), ["x"]), beside({"x": 1}, ["x"]), beside([1, 2], ["x", "y"])
    (True, False, False)
    """
    if isinstance(batch, Mapping):
        return any(name not in names and _parameter(name) not in names for name in batch)
    return isinstance(batch, tuple | list) and len(batch) > len(names)


def _parameter(name: Any) -> Any:
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name) if isinstance(name, str) else name


def check_finite(value: Tensor, place: str) -> None:
    """Raise InvalidInputs if a tensor holds NaN or infinity."""
    if value.is_floating_point() and not (finite := torch.isfinite(value)).all():
        raise InvalidInputs(
            f"{place} holds NaN or infinity in {int((~finite).sum())} of {value.numel()} places; remove those samples"
        )
