"""Operators on numbers alone: what sizes and shapes are computed with, in Python, so that free sizes stay free."""

from __future__ import annotations

import functools
import math
import operator as python
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from surgeon.onnx_import.operators.slicing import slices
from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.table import axes_of, numeric
from surgeon.onnx_import.tensors import torch_type
from surgeon.onnx_import.values import Numbers, integers, normalized, number, product, whole

#: The most numbers that are made of few.
MOST = 1024


def _divided(a: Any, b: Any) -> Any:
    """Whole numbers are cut towards zero; sizes, which are symbols in a trace, are never below zero."""
    if isinstance(a, float | torch.SymFloat) or isinstance(b, float | torch.SymFloat):
        return a / b
    if isinstance(a, int) and isinstance(b, int):
        found = abs(a) // abs(b)
        return found if (a < 0) == (b < 0) else -found
    return a // b


def _remainder(a: Any, b: Any) -> Any:
    return a - b * math.floor(a / b) if isinstance(a, float) else a % b


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": python.add, "Sub": python.sub, "Mul": python.mul, "Div": _divided, "Pow": python.pow,
}
_COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    "Equal": python.eq, "Greater": python.gt, "Less": python.lt, "GreaterOrEqual": python.ge, "LessOrEqual": python.le,
    "And": lambda a, b: bool(a) and bool(b), "Or": lambda a, b: bool(a) or bool(b),
    "Xor": lambda a, b: bool(a) != bool(b),
}
_UNARY: dict[str, Callable[[Any], Any]] = {
    "Neg": python.neg, "Abs": abs, "Identity": lambda a: a,
    "Floor": lambda a: _as_float(math.floor(a)), "Ceil": lambda a: _as_float(math.ceil(a)),
    "Sqrt": lambda a: a**0.5, "Round": lambda a: _as_float(round(a)),
}


def _as_float(value: Any) -> Any:
    return float(value) if isinstance(value, int) else torch.sym_float(value)


def _each(function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    made = np.frompyfunc(function, len(arrays), 1)(*arrays)
    if isinstance(made, np.ndarray):
        return made
    found = np.empty((), dtype=object)
    found[()] = made
    return found


def _array(items: list[Any]) -> np.ndarray:
    return Numbers.of(items, torch.int64).array


def _with(kinds: dict[str, Callable[..., Any]], boolean: bool) -> None:
    def make(function: Callable[..., Any]) -> Callable[..., Numbers]:
        def run(o: Operator, *values: Numbers) -> Numbers:
            made = _each(function, *(value.array for value in values))
            return Numbers(made, torch.bool if boolean else values[0].dtype)

        return run

    for name, function in kinds.items():
        numeric(name)(make(function))


_with(_BINARY, False)
_with(_COMPARED, True)
_with(_UNARY, False)


@numeric("Not")
def negation(o: Operator, x: Numbers) -> Numbers:
    return Numbers(_each(lambda a: not a, x.array), torch.bool)


@numeric("Mod")
def mod(o: Operator, a: Numbers, b: Numbers) -> Numbers:
    if o.get("fmod", 0):
        return NotImplemented
    return Numbers(_each(_remainder, a.array, b.array), a.dtype)


@numeric("Max", "Min")
def extreme(o: Operator, *values: Numbers) -> Numbers:
    choose = torch.sym_max if o.kind == "Max" else torch.sym_min
    made = functools.reduce(lambda a, b: _each(choose, a, b), (value.array for value in values))
    return Numbers(made, values[0].dtype)


@numeric("Where")
def where(o: Operator, condition: Numbers, a: Numbers, b: Numbers) -> Numbers:
    return Numbers(_each(lambda c, x, y: x if c else y, condition.array, a.array, b.array), a.dtype)


@numeric("Cast", "CastLike")
def cast(o: Operator, x: Numbers, like: Numbers | None = None) -> Numbers:
    kind = like.dtype if like is not None else torch_type(o.get("to", 0), o.place)
    if kind.is_complex:
        return NotImplemented
    if kind.is_floating_point:
        if kind is not torch.float64 and not all(abs(each) < 1 << 24 for each in x.items if isinstance(each, int)):
            return NotImplemented
        made = _each(lambda a: float(a) if isinstance(a, int | float) else torch.sym_float(a), x.array)
    elif kind is torch.bool:
        made = _each(lambda a: bool(a != 0), x.array)
    else:
        if kind is not torch.int64 and not all(abs(each) < 128 or kind.itemsize > 1 for each in x.items if (
            isinstance(each, int | float)
        )):
            return NotImplemented
        made = _each(whole, x.array)
    return Numbers(made, kind)


@numeric("Shape")
def shape(o: Operator, x: Numbers) -> Numbers:
    sizes = list(x.array.shape)
    return Numbers.of(sizes[slice(o.get("start", 0), o.get("end", None))], torch.int64)


@numeric("Size")
def size(o: Operator, x: Numbers) -> Numbers:
    return Numbers.of(x.array.size, torch.int64)


@numeric("Gather")
def gather(o: Operator, x: Numbers, index: Numbers) -> Numbers:
    if not index.plain:
        return NotImplemented
    made = np.take(x.array, index.array.astype(np.int64), axis=o.get("axis", 0))
    if not isinstance(made, np.ndarray):
        return Numbers.of(made, x.dtype)
    return Numbers(made, x.dtype)


@numeric("Concat")
def concat(o: Operator, *values: Numbers) -> Numbers:
    return Numbers(np.concatenate([value.array for value in values], axis=o.get("axis", 0)), values[0].dtype)


@numeric("Slice")
def slice_(o: Operator, x: Numbers, *bounds: Numbers | None) -> Numbers:
    if not all(each is None or each.plain for each in bounds):
        return NotImplemented
    index: list[Any] = [slice(None)] * x.array.ndim
    for axis, start, end, step in slices(o, x.array.ndim, *bounds):
        size = x.array.shape[axis]
        if step < 0 and end < -size:
            end = None
        index[axis] = slice(start, end, step)
    return Numbers(x.array[tuple(index)], x.dtype)


@numeric("Squeeze")
def squeeze(o: Operator, x: Numbers, axes: Numbers | None = None) -> Numbers:
    chosen = axes_of(o, axes)
    made = x.array.squeeze() if chosen is None else x.array.squeeze(tuple(chosen))
    return Numbers(made, x.dtype)


@numeric("Unsqueeze")
def unsqueeze(o: Operator, x: Numbers, axes: Numbers | None = None) -> Numbers:
    return Numbers(np.expand_dims(x.array, tuple(axes_of(o, axes) or ())), x.dtype)


@numeric("Reshape")
def reshape(o: Operator, x: Numbers, sizes: Numbers) -> Numbers:
    if not sizes.plain:
        return NotImplemented
    wanted = [x.array.shape[place] if size == 0 else size for place, size in enumerate(integers(sizes))]
    return Numbers(x.array.reshape(wanted), x.dtype)


@numeric("Flatten")
def flatten(o: Operator, x: Numbers) -> Numbers:
    return Numbers(x.array.reshape(math.prod(x.array.shape[: o.get("axis", 1)]), -1), x.dtype)


@numeric("Transpose")
def transpose(o: Operator, x: Numbers) -> Numbers:
    return Numbers(x.array.transpose(o.get("perm", None)), x.dtype)


@numeric("ConstantOfShape")
def constant_of_shape(o: Operator, sizes: Numbers) -> Numbers:
    if not sizes.plain or product(integers(sizes)) > MOST:
        return NotImplemented
    value = o.get("value", None)
    given = value.numbers() if value is not None else Numbers.of([0.0], torch.float32)
    made = np.empty(tuple(integers(sizes)), dtype=object)
    made[...] = given.items[0]
    return Numbers(made, given.dtype)


@numeric("Expand")
def expand(o: Operator, x: Numbers, sizes: Numbers) -> Numbers:
    wanted = integers(sizes)
    if not sizes.plain or product(wanted) * x.array.size > MOST:
        return NotImplemented
    return Numbers(x.array * np.ones(wanted, dtype=object) if wanted else x.array, x.dtype)


@numeric("Tile")
def tile(o: Operator, x: Numbers, repeats: Numbers) -> Numbers:
    if not repeats.plain or product(integers(repeats)) * x.array.size > MOST:
        return NotImplemented
    return Numbers(np.tile(x.array, integers(repeats)), x.dtype)


@numeric("Range")
def range_(o: Operator, start: Numbers, limit: Numbers, step: Numbers) -> Numbers:
    bounds = [number(each) for each in (start, limit, step)]
    if not all(isinstance(each, int) for each in bounds) or len(range(*bounds)) > 64:
        return NotImplemented
    return Numbers.of(list(range(*bounds)), start.dtype)


@numeric("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")
def reduce_(o: Operator, x: Numbers, axes: Numbers | None = None) -> Numbers:
    chosen = axes_of(o, axes)
    if chosen is None and o.get("noop_with_empty_axes", 0):
        return x
    kinds: dict[str, Callable[[Any, Any], Any]] = {
        "ReduceProd": python.mul, "ReduceSum": python.add, "ReduceMax": torch.sym_max, "ReduceMin": torch.sym_min,
    }
    if x.array.ndim != 1 or (chosen is not None and [normalized(a, 1) for a in chosen] != [0]) or not x.array.size:
        return NotImplemented
    made = functools.reduce(kinds[o.kind], x.items)
    return Numbers.of([made] if o.get("keepdims", 1) else made, x.dtype)


@numeric("Split")
def split(o: Operator, x: Numbers, sizes: Numbers | None = None) -> list[Numbers]:
    axis = o.get("axis", 0)
    lengths = integers(sizes) if sizes is not None else o.get("split", None)
    if lengths is None:
        lengths = [x.array.shape[axis] // o.outputs] * o.outputs
    cuts = np.cumsum(lengths)[:-1]
    return [Numbers(part, x.dtype) for part in np.split(x.array, cuts, axis=axis)]
