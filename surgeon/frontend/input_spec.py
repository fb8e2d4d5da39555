"""Example inputs: which argument each is, and as JSON, enough to rebuild inputs of the same types and shapes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.errors import InvalidInputs

_VALUES = 1 << 27
"""The most values of an input that is rebuilt."""


def by_argument(model: nn.Module, inputs: tuple[tuple[Any, ...], Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """The arguments of `forward` that the inputs are, each with its leaves.

    >>> by_argument(nn.Linear(2, 2), ((1, (2, 3)), {"x": 4}))
    [('input', [1]), ('input_1', [2, 3]), ('x', [4])]
    """
    args, kwargs = inputs
    parameters = inspect.signature(model.forward).parameters.values()
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    names += [f"input_{index}" for index in range(len(names), len(args))]
    found = [*zip(names, args, strict=False), *kwargs.items()]
    return [(name, pytree.tree_leaves(value)) for name, value in found]


def describe(inputs: tuple[tuple[Any, ...], Mapping[str, Any]]) -> dict[str, Any]:
    """Example inputs as JSON: tensors by dtype and shape, numbers and strings as they are."""
    args, kwargs = inputs
    return {"args": [_described(v) for v in args], "kwargs": {name: _described(v) for name, v in kwargs.items()}}


def _described(value: Any) -> Any:
    match value:
        case Tensor():
            found = {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
            return found | ({"value": int(value.max())} if _counts(value) else {})
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [_described(item) for item in value]
        case tuple() if type(value) is tuple:
            return {"tuple": [_described(item) for item in value]}
        case dict() if all(isinstance(key, str) for key in value):
            return {"dict": {key: _described(item) for key, item in value.items()}}
        case _:
            return {"unknown": type(value).__name__}


def _counts(value: Tensor) -> bool:
    """Whether a tensor holds a number for each sample, such as its length, of which zeros may be none."""
    whole = not (value.is_floating_point() or value.is_complex() or value.dtype is torch.bool)
    return whole and value.dim() == 1 and value.numel() > 0 and not value.is_meta and bool(value.max() > 0)


def rebuilt(value: Any) -> Any:
    """An input as described, its tensors filled with zeros, or with their greatest number where that is told.

    Raises:
        InvalidInputs: it was neither a tensor nor made of plain values.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [rebuilt(item) for item in value]
        case {"tuple": list(items)}:
            return tuple(rebuilt(item) for item in items)
        case {"dict": dict(items)}:
            return {key: rebuilt(item) for key, item in items.items()}
        case {"dtype": str(name), "shape": list(shape)} if isinstance(getattr(torch, name, None), torch.dtype):
            if all(type(size) is int and size >= 0 for size in shape) and math.prod(shape) <= _VALUES:
                return torch.full(shape, _filling(value.get("value", 0), name), dtype=getattr(torch, name))
    raise InvalidInputs(f"the plan's inputs hold {str(value)[:200]}, which can't be rebuilt; pass example_inputs=")


def _filling(value: Any, dtype: str) -> int:
    kind = getattr(torch, dtype)
    if kind.is_floating_point or kind.is_complex or kind is torch.bool:
        return 0
    if type(value) is int and torch.iinfo(kind).min <= value <= torch.iinfo(kind).max:
        return value
    raise InvalidInputs(f"the plan's inputs hold the value {str(value)[:80]} of {dtype}; pass example_inputs=")
