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


def of_module(module: nn.Module, zeroed: Callable[[str, Tensor], Tensor] | None = None) -> Computes:
    """What a copy of `module` in eval mode computes, whose tensors `zeroed` may have changed, by name."""
    copies: dict[bool, IsolatedCopy] = {}

    def compute(inputs: Inputs, precise: bool) -> Outputs:
        if precise not in copies:
            copies[precise] = _copy(module, zeroed, precise)
        with precisely() if precise else nullcontext():
            found = copies[precise].run(pytree.tree_map(double, inputs) if precise else inputs)
        return found if isinstance(found, Unfit) else _tensors(found)

    return compute


def _copy(module: nn.Module, zeroed: Callable[[str, Tensor], Tensor] | None, precise: bool) -> IsolatedCopy:
    """A copy with changed tensors, at double precision if it is to be precise."""
    instead: dict[int, Tensor] = {}
    named: dict[int, tuple[Tensor, list[str]]] = {}
    for name, old in named_tensors(module):
        named.setdefault(id(old), (old, []))[1].append(name)
    for old, names in named.values():
        if type(old) not in (Tensor, nn.Parameter):
            continue
        new = old.detach()
        if zeroed is not None:
            for name in names:
                new = zeroed(name, new)
        new = new.double() if precise and new.is_floating_point() else new
        if new.untyped_storage().data_ptr() != old.untyped_storage().data_ptr():  # else it is copied with the module
            learnt = isinstance(old, nn.Parameter)
            instead[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad) if learnt else new

    def change(copy: nn.Module) -> None:
        """Change what is of a class of its own, too."""
        for name, value in named_tensors(copy):
            if zeroed is not None and type(value) not in (Tensor, nn.Parameter):
                value.data = zeroed(name, value.detach())
        if precise:
            copy.double()

    return IsolatedCopy(module, change, instead)


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


def zeroing(groups: Groups, kept: Kept) -> Callable[[str, Tensor], Tensor]:
    """What gives each tensor of the original, by name, with the parameters of removed units set to zero."""
    zeroed = without_removed(groups, kept, parameters_only=True)
    return lambda name, value: zeroed(name, value) if name in groups.tensors else value


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
    first = varied(groups.graph.inputs)
    inputs = sizes.second(first)
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
    given = zip(pytree.tree_leaves(groups.graph.inputs), pytree.tree_leaves(first), strict=True)
    known = sizes.outputs if all(a is b for a, b in given) else None
    return SecondSize(shapes, None, "", _by_shapes(model, slim, inputs, shapes, found.first, known))


def _by_shapes(
    model: nn.Module, slim: nn.Module, inputs: Inputs, shapes: tuple[str, ...], why: str,
    known: tuple[tuple[int, ...], ...] | None,
) -> str:
    """Why only shapes were compared, which are equal; those of the original may be `known`."""
    ours = of_module(slim)(inputs, False)
    theirs = of_module(model)(inputs, False) if known is None else list(known)
    if isinstance(theirs, Unfit):
        return f"the original does not run there ({theirs.reason})"
    if isinstance(ours, Unfit):
        raise NotEquivalent(f"at {', '.join(shapes)}, the smaller model does not run, though the original does: "
                            f"{ours.reason}")
    have, want = [tuple(each.shape) for each in ours], [tuple(getattr(each, "shape", each)) for each in theirs]
    if have != want:
        raise NotEquivalent(
            f"at {', '.join(shapes)}, the smaller model computes shapes {have}, and the original {want}"
        )
    return "statistics are taken over the kept units only" if why == "not compared" else why


def _inputs(sizes: FreeSizes, inputs: Inputs) -> list[tuple[Any, Tensor]]:
    leaves = pytree.tree_leaves(inputs)
    first = {each.leaf: each for each in reversed(sizes.axes)}
    return [(first[leaf], leaves[leaf]) for leaf in sorted(first)]
