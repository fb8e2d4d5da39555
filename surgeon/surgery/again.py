"""Calls of torch's functions, made once more at other widths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from surgeon.ir.axes import Axis
from surgeon.surgery.canonical import Value
from surgeon.surgery.tracked import Operand, TorchCall, evaluated, leaves_of

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


def made_again(call: TorchCall, at: Any, axes_of: Callable[[Value | None], tuple[Axis, ...] | None]) -> Made | None:
    """What comes of a call at other widths; None where it fails.

    Fractions are told of a function that calls several operators: of one, it is known what it is given.
    """
    operands: dict[int, Tensor] = {}
    fractions = _Fractions()
    try:
        for each in leaves_of((call.args, call.kwargs)):
            if isinstance(each, Operand):
                axes = axes_of(each.value)
                sizes = tuple(at.kept.width(axis) for axis in axes) if axes is not None else each.sizes
                operands[id(each)] = torch.empty(sizes, dtype=each.dtype)
        args, kwargs = evaluated((call.args, call.kwargs), at, operands)
        if len(call.made) > 1:
            with fractions:
                result = call.function(*args, **kwargs)
        else:
            result = call.function(*args, **kwargs)
    except Exception:  # noqa: BLE001  (torch's functions raise all kinds)
        return None
    return [tuple(each.shape) if isinstance(each, Tensor) else None for each in leaves_of(result)], fractions.found
