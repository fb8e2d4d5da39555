"""Calls of torch's functions, made once more at other widths."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from surgeon.ir.axes import Axis
from surgeon.surgery.canonical import Value
from surgeon.surgery.tracked import Operand, TorchCall, evaluated, leaves_of, mapped

#: The sizes of a call's results, None for what is no tensor; and the fractions that operators inside of it are given.
Made = tuple[list[tuple[int, ...] | None], list[float]]


class _Fractions(TorchDispatchMode):
    """Notes the numbers that are no integers among the arguments of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found += [leaf for leaf in pytree.tree_leaves((args, kwargs)) if type(leaf) is float]
        return func(*args, **(kwargs or {}))


class Again:
    """Makes calls again, and what is asked for the same arguments once: equal layers make equal calls.

    Args:
        axes_of: the axes of a tensor, where they are known.
        whole: the widths at which the calls were made.
        standing_in: makes a block in which tensors have no values, but the device of those that have.
    """

    def __init__(
        self, axes_of: Callable[[Value | None], tuple[Axis, ...] | None], whole: Any,
        standing_in: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._axes_of, self._whole, self._standing_in = axes_of, whole, standing_in
        self._made: dict[Any, Made | None] = {}
        self._on_meta: dict[int, bool] = {}

    def __call__(self, call: TorchCall, at: Any) -> Made | None:
        """What comes of a call at other widths; None where it fails.

        Fractions are told of a function that calls several operators: of one, it is known what it is given.
        """
        if id(call) not in self._on_meta:
            # Tensors of the device "meta" are made and read fastest, but not every function of torch takes them.
            self._on_meta[id(call)] = self._at(call, self._whole, True) is not None
        return self._at(call, at, self._on_meta[id(call)])

    def _at(self, call: TorchCall, at: Any, on_meta: bool) -> Made | None:
        def operand(each: Operand) -> Operand:
            axes = self._axes_of(each.value)
            sizes = tuple(at.kept.width(axis) for axis in axes) if axes is not None else each.sizes
            return Operand(None, sizes, each.dtype)

        try:
            arguments = evaluated((call.args, call.kwargs), at, operand)
        except Exception:  # noqa: BLE001  (formulas divide by sizes)
            return None
        several = len(call.made) > 1
        try:
            key = (call.function, on_meta, several, _key(arguments))
            if key in self._made:
                return self._made[key]
        except TypeError:  # an argument has no hash
            key = None
        found = self._call(call.function, arguments, several, on_meta)
        if key is not None:
            self._made[key] = found
        return found

    def _call(self, function: Any, arguments: Any, several: bool, on_meta: bool) -> Made | None:
        def tensor(leaf: Any) -> Any:
            if not isinstance(leaf, Operand):
                return leaf
            return torch.empty(leaf.sizes, dtype=leaf.dtype, device="meta" if on_meta else None)

        fractions = _Fractions()
        try:
            with nullcontext() if on_meta else self._standing_in():
                args, kwargs = mapped(arguments, tensor)
                with fractions if several else nullcontext():
                    result = function(*args, **kwargs)
        except Exception:  # noqa: BLE001  (torch's functions raise all kinds)
            return None
        return [tuple(each.shape) if isinstance(each, Tensor) else None for each in leaves_of(result)], fractions.found


def _key(value: Any) -> Any:
    """What tells arguments from others: 1, 1.0 and True are equal, but not the same."""
    if isinstance(value, slice):
        return slice, _key((value.start, value.stop, value.step))
    if isinstance(value, dict):
        return dict, tuple((key, _key(each)) for key, each in value.items())
    if isinstance(value, tuple | list):
        return type(value), tuple(map(_key, value))
    return type(value), value
