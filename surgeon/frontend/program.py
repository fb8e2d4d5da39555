"""Runs torch.export on a model, with sizes of its inputs as symbols where they are to be free."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from surgeon.frontend.isolation import quietly, with_masks_as_given, with_symbolic_lengths, without_stack_traces
from surgeon.frontend.size_operators import SymbolicSizes
from surgeon.frontend.stand_ins import as_traced
from surgeon.support.process_wide import uncollected
from surgeon.support.time_limit import limited

#: Files in which an export that takes too long is left: what works on formulas alone.
_FORMULAS = ("/sympy/", "/symbolic_shapes.py", "/torch/utils/_sympy/", "/mpmath/")


def export(
    model: nn.Module,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    free: Iterable[tuple[int, int]],
) -> torch.export.ExportedProgram:
    """The program of `model`, a copy of the user's; the `free` axes of the inputs, by leaf and axis, are symbols in it
    if they can be.

    Raises what torch.export raises.
    """
    args, kwargs = inputs
    leaves, spec = pytree.tree_flatten(inputs)
    axes: dict[int, dict[int, Any]] = {}
    for leaf, axis in free:
        axes.setdefault(leaf, {})[axis] = Dim.AUTO
    names: Any = None
    with ExitStack() as stack:
        if axes:
            shapes = _shapes(spec, (axes.get(leaf) for leaf in range(len(leaves))))
            positional = _by_parameter(model, shapes[0])
            names = {**positional, **shapes[1]} if kwargs else tuple(positional.values())
            stack.enter_context(with_symbolic_lengths(model))
        if any(axis for each in axes.values() for axis in each):  # no operator makes a number of the batch
            stack.enter_context(SymbolicSizes())
        for each in (
            quietly(), uncollected(), without_stack_traces(), with_masks_as_given(), as_traced(model),
            torch.no_grad(),
        ):
            stack.enter_context(each)
        return torch.export.export(model, args, kwargs, strict=False, dynamic_shapes=names)


def in_time(seconds: float | None) -> AbstractContextManager[None]:
    """Raises TimeIsUp where work on symbols takes longer; without `seconds`, never."""
    return nullcontext() if seconds is None else limited(seconds, _FORMULAS)


def _shapes(spec: Any, axes: Iterator[Any]) -> Any:
    """The axes of each leaf in the structure of the inputs, in which objects of other classes than Python's containers
    are lists, as torch.export wants them."""
    if spec.is_leaf():
        return next(axes)
    parts = [_shapes(child, axes) for child in spec.children()]
    if spec.type not in pytree.BUILTIN_TYPES:
        return parts
    return pytree.SUPPORTED_NODES[spec.type].unflatten_fn(parts, spec.context)


def _by_parameter(model: nn.Module, shapes: tuple[Any, ...]) -> Mapping[str, Any]:
    """What is given by position, by the names of forward's parameters; `*args` takes the rest."""
    found: dict[str, Any] = {}
    left = list(shapes)
    for parameter in inspect.signature(model.forward).parameters.values():
        if not left:
            break
        if parameter.kind is parameter.VAR_POSITIONAL:
            found[parameter.name], left = tuple(left), []
        else:
            found[parameter.name] = left.pop(0)
    return found
