"""Numbers that remember how the Python code of a model came by them, from sizes and from attributes.

A module is run on tensors without values, and each number that its code reads off a shape or an attribute is one of
these. So it is known of every call what it would be called with at other widths.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

from surgeon.surgery.aligned import Notes
from surgeon.surgery.canonical import Value

#: What a number is at other widths: a function of the sizes of tensors there, and of attributes.
Formula = Callable[[Any], Any]


class _Remembering:
    """A number made with its formula, and with the watch that notes what is compared."""

    formula: Formula
    watch: Watch | None

    def __new__(cls, value: Any, formula: Formula, watch: Watch | None = None) -> Self:
        made = super().__new__(cls, value)  # type: ignore[call-arg]  # that of int or float, which comes next
        made.formula, made.watch = formula, watch
        return made


class Tracked(_Remembering, int):
    """An integer with its formula; whatever is computed from it has one too.

    >>> six = Tracked(6, lambda at: at["six"])
    >>> ((six * 2) // 5, (six * 2 // 5).formula({"six": 11}))
    (2, 4)
    """

    __hash__ = int.__hash__

    def __deepcopy__(self, memo: Any) -> Tracked:
        return self


class TrackedFloat(_Remembering, float):
    """The same for a number that is none of an integer."""

    __hash__ = float.__hash__


def formula_of(value: Any) -> Formula:
    return value.formula if isinstance(value, Tracked | TrackedFloat) else lambda at: value


def plain(value: Any) -> Any:
    """The number itself, without its formula."""
    if isinstance(value, Tracked):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, TrackedFloat) else value


def _computed(function: Callable[..., Any], *operands: Any) -> Any:
    result = function(*map(plain, operands))
    formulas = [formula_of(each) for each in operands]
    watch = next(each.watch for each in operands if isinstance(each, Tracked | TrackedFloat))
    formula = lambda at: function(*(each(at) for each in formulas))  # noqa: E731
    if isinstance(result, bool):
        if watch is not None:
            watch.branches.append(Branch(formula, result, _line()))
        return result
    if isinstance(result, int):
        return Tracked(result, formula, watch)
    return TrackedFloat(result, formula, watch) if isinstance(result, float) else result


def _line() -> str:
    """The line of the model's code that is running."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame is not None else "its code"


def _method(function: Callable[..., Any], reverse: bool) -> Any:
    def method(self: Any, *others: Any) -> Any:
        if not all(isinstance(other, int | float) for other in others):
            return NotImplemented
        return _computed(function, *((*others, self) if reverse else (self, *others)))

    return method


_BINARY: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "floordiv": operator.floordiv,
    "mod": operator.mod, "pow": operator.pow, "truediv": operator.truediv,
}
_OTHERS: dict[str, Callable[..., Any]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "neg": operator.neg, "abs": operator.abs, "floor": math.floor, "ceil": math.ceil, "bool": bool, "round": round,
}


def _converted(plainly: Callable[[Any], Any]) -> Any:
    """A conversion of which no formula is left, as in `math.sqrt(head_size)`: what comes of it must not change."""

    def method(self: Any) -> Any:
        value = plain(self)
        if self.watch is not None:
            formula = self.formula
            self.watch.branches.append(Branch(lambda at: formula(at) == value, True, _line()))
        return plainly(value)

    return method


def _by_numpy(self: Any, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
    for each in inputs:
        if isinstance(each, Tracked | TrackedFloat):
            float(each)
    return getattr(ufunc, method)(*map(plain, inputs), **kwargs)


_CONVERSIONS = {"float": _converted(float), "array_ufunc": _by_numpy}
for _class in (Tracked, TrackedFloat):
    for _name, _function in _CONVERSIONS.items():
        setattr(_class, f"__{_name}__", _function)
    for _name, _function in _BINARY.items():
        setattr(_class, f"__{_name}__", _method(_function, False))
        setattr(_class, f"__r{_name}__", _method(_function, True))
    for _name, _function in _OTHERS.items():
        setattr(_class, f"__{_name}__", _method(_function, False))
for _name in ("int", "trunc"):
    setattr(TrackedFloat, f"__{_name}__", _converted(int))


class Branch(NamedTuple):
    """A comparison of numbers that the code makes, its outcome, and the line of the code."""

    formula: Formula
    outcome: bool
    line: str


@dataclass(frozen=True)
class Operand:
    """A tensor that is given to a call: where it is from, and its sizes and type."""

    value: Value | None
    sizes: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class TorchCall:
    """A call of a function of torch as the model's code makes it: tensors as Operands, numbers with formulas.

    `made` are the places of the calls of operators that it made.
    """

    function: Any
    args: Any
    kwargs: Any
    results: Any = None
    made: range = range(0)


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of each leaf of nested tuples, lists, mappings and slices."""
    if isinstance(value, slice):
        return slice(*(mapped(each, function) for each in (value.start, value.stop, value.step)))
    if isinstance(value, Value) or not isinstance(value, tuple | list | dict):
        return function(value)
    if isinstance(value, dict):
        return {key: mapped(each, function) for key, each in value.items()}
    found = [mapped(each, function) for each in value]
    return found if isinstance(value, list) else tuple(found)


def leaves_of(value: Any) -> Iterator[Any]:
    """The leaves of nested tuples, lists, mappings and slices."""
    found: list[Any] = []
    mapped(value, found.append)
    return iter(found)


@dataclass
class Watch(TorchFunctionMode):
    """Notes the calls of torch's functions that code makes inside of it, and what it branches on.

    Enter it inside of the recorder, which knows where tensors are from.
    """

    recorder: Notes
    calls: list[TorchCall] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = TorchCall(func, mapped(tuple(args), self._operand), mapped(kwargs, self._operand))
        first = self.recorder.count
        result = func(*mapped(tuple(args), plain), **mapped(kwargs, plain))
        call.made = range(first, self.recorder.count)
        if any(isinstance(each, Tensor) for each in leaves_of(result)):
            call.results = mapped(result, lambda each: self._value(each) if isinstance(each, Tensor) else None)
            self.calls.append(call)
            return result
        return self._sizes(func, args, kwargs, result)

    def _sizes(self, func: Any, args: Any, kwargs: Any, result: Any) -> Any:
        """With a formula where the result is a size of a tensor."""
        first = args[0] if args else None
        if not isinstance(first, Tensor):
            return result
        name = getattr(func, "__name__", "")
        if isinstance(result, torch.Size) and (name == "size" or getattr(func, "__self__", None) is Tensor.shape):
            return torch.Size([self.size(first, dim) for dim in range(len(result))])
        if type(result) is int and name == "size":
            return self.size(first, (args[1] if len(args) > 1 else kwargs["dim"]) % first.dim())
        if type(result) is int and name in ("numel", "nelement"):
            return math.prod(self.size(first, dim) for dim in range(first.dim()))
        return result

    def size(self, tensor: Tensor, dim: int) -> int:
        """The size of a tensor along an axis."""
        with torch._C.DisableTorchFunction():
            now: Any = tensor.shape[dim]
        value = self._value(tensor)  # a size that depends on values is a symbol, and stays one
        return Tracked(now, lambda at: at.size(value, dim, now), self) if type(now) is int else now

    def _operand(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return Operand(self._value(leaf), tuple(leaf.shape), leaf.dtype)

    def _value(self, tensor: Tensor) -> Value | None:
        if not isinstance(tensor, FakeTensor):
            return Value(-1, id(tensor))
        found: Value | None = self.recorder.known(tensor)
        return found


def evaluated(arguments: Any, at: Any, operand: Callable[[Operand], Any]) -> Any:
    """Arguments of a call with its numbers at other widths, and `operand` of each of its tensors."""

    def new(leaf: Any) -> Any:
        if isinstance(leaf, Operand):
            return operand(leaf)
        return formula_of(leaf)(at) if isinstance(leaf, Tracked | TrackedFloat) else leaf

    return mapped(arguments, new)


def named_number(paths: tuple[str, ...], key: str, before: Any, watch: Watch) -> Any:
    """A named number of a torch.nn module, such as its groups."""

    def read(at: Any) -> Any:
        return at.printed(paths).get(key, (before, before))[1]

    def number(each: int, place: int) -> Tracked:
        return Tracked(each, lambda at: read(at)[place], watch)

    if isinstance(before, int):
        return Tracked(before, read, watch)
    if isinstance(before, tuple | list):
        return tuple(number(each, place) for place, each in enumerate(before))
    return before
