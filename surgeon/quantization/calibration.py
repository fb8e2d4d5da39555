"""Unlabeled batches for an ONNX model, read once and checked."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.deploy.inputs import read_call
from surgeon.errors import InvalidInputs
from surgeon.frontend.batches import beside, check_finite, chosen
from surgeon.frontend.parameters import tensor_of

Feeds = dict[str, np.ndarray]
_LABELS = "labels, and whatever else batches of the data hold beside the inputs, were not used"

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
    """An input of an ONNX model: its name, its type as onnxruntime writes it, its shape with None for free sizes."""

    name: str
    type: str
    shape: tuple[int | None, ...]

    @property
    def free(self) -> bool:
        """Whether the batch size is free."""
        return bool(self.shape) and self.shape[0] is None


def collect(
    calibration: Iterable[object], inputs: Sequence[Input], model: nn.Module | None, samples: int
) -> tuple[list[Feeds], str]:
    """Batches as feeds for onnxruntime, up to `samples` rows, and a note if they held labels, which are left out.

    The rest of `calibration` is not read.

    A batch is a tensor or array, a tuple or list of them in the order of the inputs, or a dict by name; with a `model`,
    anything that `surgeon.export` takes. If the batch size of the ONNX model is fixed, larger batches are split.

    Raises:
        InvalidInputs: a batch does not fit the inputs, or holds NaN or infinity; the message says which batch.
    """
    collected: list[Feeds] = []
    rows, note = 0, ""
    names = [each.name for each in inputs]
    for index, batch in enumerate(calibration):
        place = f"batch {index} of calibration"
        note = note or (_LABELS if beside(batch, names) else "")
        for piece in _fit(_check(_named(batch, inputs, model, place), inputs, place), inputs):
            collected.append(piece)
            rows += _rows(piece)
            if rows >= samples:
                return collected, note
    return collected, note


def divide(collected: Sequence[Feeds], inputs: Sequence[Input]) -> tuple[list[Feeds], list[Feeds], str]:
    """Batches for calibration, held-out batches to measure accuracy on, and a note if they are the same.

    Every other batch is held out; a single batch is split in two along its first axis, if the batch size is free.
    """
    if len(collected) > 1:
        return list(collected[::2]), list(collected[1::2]), ""
    only = collected[0]
    half = _rows(only) // 2
    if half and all(each.free or not each.shape for each in inputs):
        first, second = (
            {name: value[part] if value.ndim else value for name, value in only.items()}
            for part in (slice(None, half), slice(half, None))
        )
        return [first], [second], ""
    return [only], [only], "there is a single batch, so accuracy is measured on the batch that int8 was calibrated with"


def accepted(model: nn.Module, batch: Any) -> Any:
    """The part of a batch that `forward` accepts: as many values as it has arguments, or a dict's entries by name."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = {each.kind for each in parameters}
    if isinstance(batch, Mapping):
        names = {each.name for each in parameters}
        anything = inspect.Parameter.VAR_KEYWORD in kinds
        return {name: value for name, value in batch.items() if anything or name in names}
    if not isinstance(batch, tuple | list) or inspect.Parameter.VAR_POSITIONAL in kinds:
        return batch
    return batch[: sum(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters)]


def tensors(batch: Any, place: str) -> Any:
    """A batch with its arrays converted to tensors.

    Raises:
        InvalidInputs: one holds NaN or infinity.
    """
    made = pytree.tree_map_only((np.ndarray, Tensor), lambda value: tensor_of(value, place), batch)
    pytree.tree_map_only(Tensor, lambda value: check_finite(value, place), made)
    return made


def _named(batch: Any, inputs: Sequence[Input], model: nn.Module | None, place: str) -> Feeds:
    """The arrays of a batch by input name; the rest of it, such as labels, is dropped."""
    names = [each.name for each in inputs]
    if model is not None:
        call = read_call(model, tensors(accepted(model, batch), place))
        batch = dict(zip(call.names, call.tensors, strict=True))
    return {
        name: tensor_of(value, f"{place}: {name}").detach().cpu().numpy()
        for name, value in zip(names, chosen(batch, names, place), strict=True)
    }


def _check(feeds: Feeds, inputs: Sequence[Input], batch: str) -> Feeds:
    checked: Feeds = {}
    for each in inputs:
        value = feeds[each.name]
        place = f"{batch}: {each.name}"
        fits = value.ndim == len(each.shape) and all(
            want is None or size == want or (not axis and size % want == 0)
            for axis, (size, want) in enumerate(zip(value.shape, each.shape, strict=True))
        )
        if not fits or not value.size:
            wanted = tuple("any" if size is None else size for size in each.shape)
            raise InvalidInputs(f"{place} has shape {value.shape}, the model takes {wanted}".replace("'any'", "any"))
        wanted_type = np.dtype(_TYPES.get(each.type, value.dtype))
        if np.issubdtype(wanted_type, np.floating) != np.issubdtype(value.dtype, np.floating):
            raise InvalidInputs(f"{place} is {value.dtype}, the model takes {wanted_type}")
        check_finite(torch.from_numpy(value), place)
        checked[each.name] = np.ascontiguousarray(value, dtype=wanted_type)
    return checked


def _fit(feeds: Feeds, inputs: Sequence[Input]) -> Iterator[Feeds]:
    """The batch, split along the first axis if the ONNX model fixes its size."""
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
