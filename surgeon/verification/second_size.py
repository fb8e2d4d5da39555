"""The proof at a second size of the inputs: each axis that the model leaves free is unlike the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.errors import NotEquivalent, first_line
from surgeon.frontend.free_sizes import FreeSizes, IsolatedCopy, Unfit
from surgeon.frontend.trace import Graph, Inputs
from surgeon.groups.coupling import Groups
from surgeon.groups.interpreter import Interpreter, double, precisely
from surgeon.ir.fingerprint import named_tensors
from surgeon.rules import Kept, is_random, where
from surgeon.verification.certificate import SecondSize
from surgeon.verification.check import reference, relative, varied
from surgeon.verification.masks import masked, without_removed

#: The largest relative deviation at double precision: code that names single precision rounds to it in between.
ROUNDED = 1e-5
#: The same where the model's code runs at its own precision alone.
TOLERANCES: Mapping[torch.dtype, float] = {torch.float64: ROUNDED, torch.float32: 1e-3}
COARSE = 5e-2

Outputs = list[Tensor] | Unfit
#: What computes outputs: of these inputs, at double precision or at its own.
Computes = Callable[[Inputs, bool], Outputs]


def of_module(module: nn.Module, change: Callable[[nn.Module], object] = lambda copy: None) -> Computes:
    """What a copy of `module` in eval mode computes, which `change` may have changed."""
    copies: dict[bool, IsolatedCopy] = {}

    def compute(inputs: Inputs, precise: bool) -> Outputs:
        if precise not in copies:
            copies[precise] = IsolatedCopy(module, lambda copy: (change(copy), copy.double() if precise else copy))
        with precisely() if precise else nullcontext():
            found = copies[precise].run(pytree.tree_map(double, inputs) if precise else inputs)
        return found if isinstance(found, Unfit) else _tensors(found)

    return compute


def of_graph(graph: Graph) -> Computes:
    """What a graph computes."""

    def compute(inputs: Inputs, precise: bool) -> Outputs:
        run = Interpreter(graph, inputs, precision=double if precise else lambda value: value)
        return _computed(run.run, precise)

    return compute


def of_masked(groups: Groups, kept: Kept) -> Computes:
    """What the original's graph computes with removed positions zeroed, and statistics over the kept ones."""

    def compute(inputs: Inputs, precise: bool) -> Outputs:
        return _computed(lambda: _masked(groups, kept, inputs), precise) if precise else Unfit("it has no values there")

    return compute


class _Undecided(Exception):
    """At this size, it can't be told which positions are the removed ones."""


def _masked(groups: Groups, kept: Kept, inputs: Inputs) -> list[Tensor]:
    run = Interpreter(groups.graph, inputs, parameter=without_removed(groups, kept), precision=double)
    for node in run:
        if node.op == "output":
            return list(run.compute(node))
        for operand in node.all_input_nodes if groups.typed[node].reduced or groups.typed[node].contracted else ():
            if not _fits(groups, kept, operand, run.value(operand)):
                raise _Undecided(f"{where(node)} reads channels and positions in one axis")
        value = reference(groups, kept, node, run)
        run.set(node, masked(groups, kept, node, value) if _fits(groups, kept, node, value) else value)
    raise AssertionError("a graph ends in its output")


def _fits(groups: Groups, kept: Kept, node: Any, value: Any) -> bool:
    """Whether the axes of a node that lose positions have the sizes that they were traced with."""
    axes = groups.axes[node]
    pairs = [(value, axes)] if isinstance(axes, tuple) else list(zip(value, axes, strict=False))
    return all(
        not kept.changed(axis) or axis.size == size
        for each, own in pairs if isinstance(each, Tensor)
        for axis, size in zip(own, each.shape, strict=False)
    )


def _computed(function: Callable[[], list[Tensor]], precise: bool) -> Outputs:
    try:
        if precise:
            with precisely():
                return function()
        with torch.no_grad():
            return function()
    except Exception as error:  # noqa: BLE001  (the user's code, and operators, may raise anything)
        return Unfit(first_line(error))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Comparison:
    """How two computations of the same inputs differ.

    `deviation` is the largest relative one of their outputs, None where one of them, or both, did not run: then
    `first` and `second` say why.
    """

    deviation: float | None
    tolerance: float
    first: str = ""
    second: str = ""

    @property
    def same(self) -> bool:
        """Whether both computed the same."""
        return self.deviation is not None and self.deviation <= self.tolerance


def compare(first: Computes, second: Computes, inputs: Inputs) -> Comparison:
    """Hold two computations against each other, at double precision if their code runs so, else at their own."""
    precise = _compared(first, second, inputs, True)
    if precise.deviation is not None:
        return precise
    own = _compared(first, second, inputs, False)
    return precise if own.deviation is None else own


def _compared(first: Computes, second: Computes, inputs: Inputs, precise: bool) -> Comparison:
    a, b = first(inputs, precise), second(inputs, precise)
    if isinstance(a, Unfit) or isinstance(b, Unfit):
        return Comparison(None, ROUNDED, *(each.reason if isinstance(each, Unfit) else "" for each in (a, b)))
    types = {each.dtype for each in b if each.is_floating_point()}
    own = max((TOLERANCES.get(each, COARSE) for each in types), default=ROUNDED)
    tolerance = ROUNDED if precise else own
    return Comparison(max(map(relative, a, b), default=0.0) if len(a) == len(b) else float("inf"), tolerance)


def zeroing(groups: Groups, kept: Kept) -> Callable[[nn.Module], None]:
    """What sets the parameters of removed units to zero, in a copy of the original."""

    def change(copy: nn.Module) -> None:
        zeroed = without_removed(groups, kept, parameters_only=True)
        named = dict(named_tensors(copy))
        for name in groups.tensors.keys() & named.keys():
            named[name].data = zeroed(name, named[name].detach())

    return change


def certify_second(
    model: nn.Module, slim: nn.Module, groups: Groups, kept: Kept, sizes: FreeSizes, whole: bool, symbolic: bool
) -> SecondSize | None:
    """Hold the smaller model against the original at the second size; None where no axis is free.

    Args:
        whole: the original with zeroed parameters was found to compute what the smaller model does, at the first size.
        symbolic: the graph of `groups` computes what the original does at the second size too.

    Raises:
        NotEquivalent: the smaller model computes something else, or does not run where the original does.
    """
    inputs = sizes.second(varied(groups.graph.inputs))
    if inputs is None:
        return None
    shapes = tuple(f"{each.input} {tuple(leaf.shape)}" for each, leaf in _inputs(sizes, inputs))
    if any(map(is_random, groups.graph.nodes)):
        return SecondSize(shapes, None, "", "it draws random numbers")
    smaller = of_module(slim)
    if whole:
        against, found = "the original with zeroed parameters", compare(
            of_module(model, zeroing(groups, kept)), smaller, inputs)
    elif symbolic:
        against = "the original's graph less the removed units"
        found = compare(of_masked(groups, kept), smaller, inputs)
    else:
        found = Comparison(None, ROUNDED, "not compared")
    if found.same:
        return SecondSize(shapes, found.deviation, against, "")
    if found.deviation is not None:
        raise NotEquivalent(
            f"at {', '.join(shapes)}, the smaller model differs from {against} by {found.deviation:.1e} (relative), "
            "though it does not at the sizes of the example inputs"
        )
    return SecondSize(shapes, None, "", _by_shapes(model, slim, inputs, shapes, found.first))


def _by_shapes(model: nn.Module, slim: nn.Module, inputs: Inputs, shapes: tuple[str, ...], why: str) -> str:
    """Why only shapes were compared, which are equal."""
    ours, theirs = of_module(slim)(inputs, False), of_module(model)(inputs, False)
    if isinstance(theirs, Unfit):
        return f"the original does not run there ({theirs.reason})"
    if isinstance(ours, Unfit):
        raise NotEquivalent(f"at {', '.join(shapes)}, the smaller model does not run, though the original does: "
                            f"{ours.reason}")
    if [each.shape for each in ours] != [each.shape for each in theirs]:
        raise NotEquivalent(
            f"at {', '.join(shapes)}, the smaller model computes shapes {[tuple(each.shape) for each in ours]}, and "
            f"the original {[tuple(each.shape) for each in theirs]}"
        )
    return "statistics are taken over the kept units only" if why == "not compared" else why


def _inputs(sizes: FreeSizes, inputs: Inputs) -> list[tuple[Any, Tensor]]:
    leaves = pytree.tree_leaves(inputs)
    first = {each.leaf: each for each in reversed(sizes.axes)}
    return [(first[leaf], leaves[leaf]) for leaf in sorted(first)]
