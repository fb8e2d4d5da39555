"""What flows between operators: tensors, and the numbers that sizes and shapes are computed with.

Numbers stay in Python, so that a size that is free stays free: while `torch.export` traces, it is a symbol in them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: The largest tensor that an operator makes of sizes in a file.
MOST_ELEMENTS = 1 << 31
#: The most bytes of one that is made of nothing but its sizes, which a file of any size may name.
MOST_BYTES = 1 << 29

#: What stands for a floating-point type of the file in a module that was converted to another one.
_PRECISION: ContextVar[tuple[torch.dtype | None, torch.dtype | None]] = ContextVar("precision", default=(None, None))


@contextmanager
def of_precision(file: torch.dtype | None, now: torch.dtype | None) -> Iterator[None]:
    """Inside, tensors that the file makes of type `file` are of type `now`."""
    token = _PRECISION.set((file, now))
    try:
        yield
    finally:
        _PRECISION.reset(token)


def precise(dtype: torch.dtype) -> torch.dtype:
    """A type of the file in the module's precision."""
    file, now = _PRECISION.get()
    return now if now is not None and dtype is file else dtype


@dataclass(frozen=True, eq=False)
class Numbers:
    """A small tensor as Python's numbers: `array` holds int, float, bool, or a size that is a symbol in a trace.

    >>> Numbers.of([1, 2], torch.int64)
    Numbers([1, 2], torch.int64)
    """

    array: np.ndarray
    dtype: torch.dtype

    @classmethod
    def of(cls, values: Any, dtype: torch.dtype, shape: Sequence[int] | None = None) -> Numbers:
        """Numbers from a scalar or a list; nested lists are given flat, with a shape."""
        items = list(values) if isinstance(values, Iterable) else [values]
        array = np.empty(len(items), dtype=object)
        array[:] = items
        if shape is None:
            shape = (len(items),) if isinstance(values, Iterable) else ()
        return cls(array.reshape(tuple(shape)), dtype)

    @property
    def items(self) -> list[Any]:
        return list(self.array.reshape(-1))

    @property
    def plain(self) -> bool:
        """Whether none of them is a symbol."""
        return all(isinstance(each, int | float | bool) for each in self.items)

    def tensor(self, device: torch.device | None = None) -> Tensor:
        items, dtype = self.items, precise(self.dtype)
        if self.plain and len({*items}) == 1:
            return torch.full(self.array.shape, items[0], dtype=dtype, device=device)
        if self.plain:
            found = torch.tensor(items, dtype=dtype, device=device)
        else:
            found = torch.stack([torch.scalar_tensor(each, dtype=dtype, device=device) for each in items])
        return found.reshape(self.array.shape)

    def __repr__(self) -> str:
        return f"Numbers({self.array.tolist()}, {self.dtype})"


Value = Tensor | Numbers


def as_numbers(value: Value) -> Numbers:
    """A value as numbers. A tensor's are read, which `torch.export` can't do where they depend on its inputs."""
    if isinstance(value, Numbers):
        return value
    items = value.reshape(-1).tolist()
    return Numbers.of(items, value.dtype, value.shape)


def as_tensor(value: Value, device: torch.device | None = None) -> Tensor:
    return value.tensor(device) if isinstance(value, Numbers) else value


def integers(value: Value) -> list[Any]:
    """The sizes in a value, flat."""
    return [whole(each) for each in as_numbers(value).items]


def number(value: Value) -> Any:
    """The one number in a value."""
    items = as_numbers(value).items
    if len(items) != 1:
        raise ValueError(f"expected one number, got {len(items)}")
    return items[0]


def whole(value: Any) -> Any:
    """A number as an integer, cut towards zero.

    >>> whole(-1.5), whole(True)
    (-1, 1)
    """
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return int(value)
    return torch.sym_int(value) if isinstance(value, torch.SymFloat) else value


def bounded(shape: Iterable[Any], made: torch.dtype | None = None) -> list[Any]:
    """A shape, unless it is that of a tensor larger than any that is made of sizes in a file.

    `made` is the type of one that is made of them alone.
    """
    most = MOST_ELEMENTS if made is None else MOST_BYTES // made.itemsize
    sizes = list(shape)
    known = [size for size in sizes if isinstance(size, int)]
    if any(size < 0 for size in known):
        raise ValueError(f"a size is negative: {sizes}")
    if 0 not in known and math.prod(known) > most:
        raise ValueError(f"a tensor of {sizes} is larger than the {most:,} elements that are made")
    return sizes


def told(size: Any) -> bool:
    """Whether a size is a number, not a symbol of a trace."""
    return isinstance(size, int)


def product(sizes: Iterable[Any]) -> Any:
    return functools.reduce(lambda a, b: a * b, sizes, 1)


def normalized(axis: int, rank: int) -> int:
    """An axis counted from the front.

    >>> normalized(-1, 4)
    3
    """
    if not -rank <= axis < max(rank, 1):
        raise ValueError(f"axis {axis} of a tensor with {rank} axes")
    return axis % rank if rank else 0
