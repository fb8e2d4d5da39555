"""Unlabeled batches for a file in the ONNX format, read once and checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.deploy.inputs import read_call
from surgeon.errors import InvalidArgument, InvalidInputs

Feeds = dict[str, np.ndarray]
#: What helps where a batch holds more than the inputs.
LABELS = "leave labels out: (images for images, labels in loader)"

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Input:
    """An input of a file: its name, its type as onnxruntime writes it, its sizes; a size that may vary is None."""

    name: str
    type: str
    shape: tuple[int | None, ...]


def batches(calibration: object) -> Iterator[object]:
    """The batches of `calibration`; a lone tensor, array or dict is one batch.

    Raises:
        InvalidArgument: it can't be iterated over.
        InvalidInputs: it holds no batch.
    """
    if isinstance(calibration, (Tensor, np.ndarray, Mapping)):
        calibration = [calibration]
    if isinstance(calibration, (str, bytes)) or not isinstance(calibration, Iterable):
        raise InvalidArgument(
            f"calibration is a {type(calibration).__name__}; pass an iterable of unlabeled batches, such as a list of "
            "tensors"
        )
    iterator = iter(calibration)
    try:
        first = next(iterator)
    except StopIteration:
        used_up = "; a generator gives its batches once, this one is used up: make a new one, or pass a list"
        raise InvalidInputs(f"calibration holds no batch{used_up if iterator is calibration else ''}") from None
    yield first
    yield from iterator


def check_finite(batch: object, index: int) -> None:
    """Raise InvalidInputs if any tensor or array of a batch holds NaN or infinity."""
    for leaf in pytree.tree_leaves(batch):
        value = torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f" else leaf
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            raise InvalidInputs(f"batch {index} of calibration holds NaN or infinity; remove those samples")


def collect(
    calibration: Iterable[object], inputs: Sequence[Input], model: nn.Module | None, samples: int
) -> list[Feeds]:
    """Batches as feeds of a file, as many as hold `samples` rows; the rest of `calibration` is not read.

    A batch is a tensor or array, a tuple or list of them in the order of the inputs, or a dict by name; that of
    a `model` is anything that `surgeon.export` takes. Where the file fixes its first size, larger batches are cut
    to it.

    Raises:
        InvalidInputs: a batch does not fit the inputs, or holds NaN or infinity; the message says which batch.
    """
    collected: list[Feeds] = []
    rows = 0
    for index, batch in enumerate(calibration):
        for piece in _fit(_check(_named(batch, inputs, model, index), inputs, index), inputs):
            collected.append(piece)
            rows += _rows(piece)
            if rows >= samples:
                return collected
    return collected


def divide(collected: Sequence[Feeds], inputs: Sequence[Input]) -> tuple[list[Feeds], list[Feeds], str]:
    """Batches to calibrate with, batches held back to judge by, and a note where they are the same.

    Every other batch is held back; a lone batch is halved along its first axis, if the file allows it.
    """
    if len(collected) > 1:
        return list(collected[::2]), list(collected[1::2]), ""
    only = collected[0]
    half = _rows(only) // 2
    if half and all(not each.shape or each.shape[0] is None for each in inputs):
        both = [{name: value[part] if value.ndim else value for name, value in only.items()} for part in _halves(half)]
        return [both[0]], [both[1]], ""
    return [only], [only], "there is one batch alone, so that int8 is judged by the batch it was calibrated with"


def _halves(half: int) -> tuple[slice, slice]:
    return slice(None, half), slice(half, None)


def _named(batch: object, inputs: Sequence[Input], model: nn.Module | None, index: int) -> Feeds:
    """The tensors of a batch by the names of the inputs."""
    if model is not None:
        made = pytree.tree_map_only(np.ndarray, torch.as_tensor, batch)
        call = read_call(model, made)
        return {name: tensor.numpy() for name, tensor in zip(call.names, call.tensors, strict=True)}
    if isinstance(batch, Mapping):
        return {str(name): _array(value, index) for name, value in batch.items()}
    values = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    if len(values) != len(inputs):
        raise InvalidInputs(_count(index, len(values), inputs))
    return {each.name: _array(value, index) for each, value in zip(inputs, values, strict=True)}


def _array(value: object, index: int) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray):
        raise InvalidInputs(f"batch {index} of calibration holds a {type(value).__name__}, not a tensor or an array")
    return value


def _count(index: int, found: int, inputs: Sequence[Input]) -> str:
    names = ", ".join(each.name for each in inputs)
    return (
        f"batch {index} of calibration holds {found} tensors, the model takes {len(inputs)} ({names}); {LABELS}"
    )


def _check(feeds: Feeds, inputs: Sequence[Input], index: int) -> Feeds:
    names = {each.name for each in inputs}
    if missing := names - feeds.keys():
        raise InvalidInputs(f"batch {index} of calibration has no {', '.join(sorted(missing))}; it has {sorted(feeds)}")
    # An input that the model doesn't read is not in the file; more tensors than that are labels.
    if len(names) == 1 and len(feeds) > 1:
        raise InvalidInputs(_count(index, len(feeds), inputs))
    checked: Feeds = {}
    for each in inputs:
        value = feeds[each.name]
        place = f"batch {index} of calibration: {each.name}"
        fits = value.ndim == len(each.shape) and all(
            want is None or size == want or (not axis and size % want == 0)
            for axis, (size, want) in enumerate(zip(value.shape, each.shape, strict=True))
        )
        if not fits or not value.size:
            wanted = tuple("any" if size is None else size for size in each.shape)
            raise InvalidInputs(f"{place} has shape {value.shape}, the model wants {wanted}".replace("'any'", "any"))
        wanted_type = np.dtype(_TYPES.get(each.type, value.dtype))
        if np.issubdtype(wanted_type, np.floating) != np.issubdtype(value.dtype, np.floating):
            raise InvalidInputs(f"{place} is {value.dtype}, the model wants {wanted_type}")
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise InvalidInputs(f"{place} holds NaN or infinity")
        checked[each.name] = np.ascontiguousarray(value, dtype=wanted_type)
    return checked


def _fit(feeds: Feeds, inputs: Sequence[Input]) -> Iterator[Feeds]:
    """The batch, cut along the first axis to what the file has fixed."""
    fixed = {each.name: each.shape[0] for each in inputs if each.shape and each.shape[0] is not None}
    pieces = max((len(feeds[name]) // size for name, size in fixed.items() if size), default=1)
    for piece in range(pieces):
        yield {
            name: value[piece * size : (piece + 1) * size]
            if (size := fixed.get(name)) and len(value) == pieces * size
            else value
            for name, value in feeds.items()
        }


def _rows(feeds: Feeds) -> int:
    return max((len(value) for value in feeds.values() if value.ndim), default=1)
