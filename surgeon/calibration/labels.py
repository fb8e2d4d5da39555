"""What batches hold besides the inputs, such as labels: split into samples, joined again, and passed to a loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.errors import InvalidArgument, InvalidInputs

Loss = Callable[..., Tensor]


def per_sample(rest: tuple[Any, ...], count: int, place: str, most: int | None = None) -> list[tuple[Any, ...]]:
    """What a batch of `count` samples holds besides its inputs, as batches of one; of the first `most` samples.

    Tensors are split along their first axis, and so are lists with one entry for each sample; all else goes to each.

    >>> per_sample((torch.tensor([3, 4]), ["a", "b"], 0.1), 2, "batch 0")
    [(tensor([3]), ['a'], 0.1), (tensor([4]), ['b'], 0.1)]

    Raises:
        InvalidInputs: a tensor's first axis is not that of the samples.
    """
    wanted = range(count if most is None else min(count, most))
    return [tuple(_cut(value, index, count, place) for value in rest) for index in wanted]


def _cut(value: Any, index: int, count: int, place: str) -> Any:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    match value:
        case Tensor() if value.dim():
            if len(value) != count:
                raise InvalidInputs(
                    f"{place}: an entry besides the inputs has shape {tuple(value.shape)}; expected {count} rows, one "
                    "for each sample"
                )
            return value[index : index + 1]
        case Mapping():
            return {key: _cut(each, index, count, place) for key, each in value.items()}
        case list() if len(value) == count:
            return [value[index]]
        case list() | tuple():
            return tuple(_cut(each, index, count, place) for each in value)
    return value


def joined(samples: Sequence[Any]) -> Any:
    """Batches of one, as `per_sample` makes them, as one batch.

    >>> joined([(torch.tensor([3]), ["a"]), (torch.tensor([4]), ["b"])])
    (tensor([3, 4]), ['a', 'b'])

    Raises:
        InvalidInputs: their tensors have different shapes.
    """
    first = samples[0]
    match first:
        case Tensor() if first.dim():
            shapes = sorted({tuple(each.shape[1:]) for each in samples})
            if len(shapes) > 1:
                raise InvalidInputs(f"entries besides the inputs have different shapes: {shapes}; pad them")
            return torch.cat(list(samples))
        case Mapping():
            return {key: joined([each[key] for each in samples]) for key in first}
        case list():
            return [value for each in samples for value in each]
        case tuple():
            return tuple(joined(each) for each in zip(*samples, strict=True))
    return first


def evaluate(loss: Loss, output: Any, rest: tuple[Any, ...], device: torch.device) -> Tensor:
    """`loss(output, *rest)`, a finite scalar that can be differentiated.

    Raises:
        InvalidArgument: the loss takes other arguments, fails, or returns something other than a scalar that depends
            on the output.
        InvalidInputs: it is NaN or infinite.
    """
    rest = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device), rest)
    try:
        inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).bind(output, *rest)
    except TypeError as error:
        raise InvalidArgument(
            f"loss takes other arguments than the model's output and the {len(rest)} entries that each batch of data "
            f"holds besides the inputs ({error}); give batches such as (inputs, labels)"
        ) from error
    except ValueError:
        pass  # functions that are not written in Python may have no signature
    try:
        value = loss(output, *rest)
    except Exception as error:
        raise InvalidArgument(f"loss fails on the model's output and the rest of a batch of data: {error}") from error
    if not isinstance(value, Tensor):
        raise InvalidArgument(f"loss returns a {type(value).__name__}; expected a scalar tensor, to differentiate")
    if value.numel() != 1:
        raise InvalidArgument(f"loss returns shape {tuple(value.shape)}; expected a scalar, such as its mean")
    if not value.requires_grad:
        raise InvalidArgument("loss returns a constant; it must be computed from the model's output, without detaching")
    if not bool(torch.isfinite(value)):
        raise InvalidInputs(f"loss is {float(value.detach())} on a batch of data; check its labels and its scale")
    return value.reshape(())
