"""Graphs for calibration data of other sizes than the example inputs, such as other lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.calibration.data import Calibration, calibrate
from surgeon.errors import InvalidInputs, first_line
from surgeon.frontend.free_sizes import IsolatedCopy, Unfit
from surgeon.frontend.ignore import Ignored, ignoring
from surgeon.frontend.input_spec import by_argument
from surgeon.frontend.symbolic import beside_train_only, free_axes, trace_sizes
from surgeon.frontend.trace import Graph, Inputs
from surgeon.groups.analyze import analyze_inputs
from surgeon.groups.coupling import Groups, couple
from surgeon.groups.interpreter import Interpreter
from surgeon.ir.axes import Axis
from surgeon.ir.size_conditions import Place
from surgeon.support.progress import stage

#: Seconds that a trace with free sizes may take.
LIMIT = 60.0
#: The largest deviation of a graph's outputs from the model's, relative to their norm; another function is further off.
TOLERANCE = 1e-2


def calibrated(
    data: Any, groups: Groups, model: nn.Module, samples: int, ignore: Ignored | Iterable[Ignored] = (), *,
    labeled: bool = False, seed: int = 0,
) -> tuple[Groups, Calibration]:
    """As `calibrate`, and the groups of a graph that runs on all batches.

    These are the given groups, unless batches are of other sizes than the example inputs: then the model is traced
    again, with symbols for these sizes.

    Raises:
        InvalidInputs: as `calibrate`; and where no such graph of the model can be had.
    """
    found = calibrate(data, groups.graph, model, samples, labeled=labeled, seed=seed)
    if not found.varying:
        return groups, found
    with stage("trace"):
        free = found.varying | (_batches(groups.graph) if groups.graph.dynamic else frozenset())
        made = _sized(model, groups.graph, free)
    if not isinstance(made, str):
        with stage("couple"):
            sized = couple(made, ignoring(model, ignore))
        made = _wrong(model, sized, found.batches) or made
    if isinstance(made, str):
        names = _named(model, groups.graph.inputs, found.varying)
        raise InvalidInputs(
            f"data hold batches of other sizes than the example inputs at {names}, which the model's graph can't take: "
            f"{made}\nRemedy: give data of the sizes of example_inputs."
        )
    return sized, found


def analyze_again(model: nn.Module, groups: Groups, ignore: Callable[[str], bool] | None = None) -> Groups:
    """The groups of a model that has the same code as that of `groups`, with the same sizes free."""
    free = free_axes(groups.graph)
    if free <= _batches(groups.graph):
        return analyze_inputs(model, groups.graph.inputs, ignore)
    with stage("trace"):
        made = _sized(model, groups.graph, free)
    if isinstance(made, str):
        raise InvalidInputs(f"the model can't be traced again with free sizes: {made}")
    with stage("couple"):
        return couple(made, ignore)


def _sized(model: nn.Module, graph: Graph, free: frozenset[Place]) -> Graph | str:
    sized = trace_sizes(model, graph.inputs, free, LIMIT)
    if isinstance(sized, str):
        return sized
    if any(axis and (leaf, axis) not in sized.free for leaf, axis in free):
        return "its code computes with this size while it is traced, as a loop over it does"
    return beside_train_only(sized.graph, graph)


def _batches(graph: Graph) -> frozenset[Place]:
    leaves = enumerate(pytree.tree_leaves(graph.inputs))
    return frozenset((leaf, 0) for leaf, value in leaves if isinstance(value, Tensor) and value.dim())


def _named(model: nn.Module, inputs: Inputs, places: Iterable[Place]) -> str:
    names = [name for name, leaves in by_argument(model, inputs) for _ in leaves]
    return ", ".join(f"{names[leaf]} axis {axis}" for leaf, axis in sorted(places))


def _wrong(model: nn.Module, groups: Groups, batches: Iterable[Inputs]) -> str:
    """Why the graph does not compute what the model does on some of the batches; else empty."""
    seen: set[tuple[Any, ...]] = set()
    copy = IsolatedCopy(model)
    for batch in batches:
        shapes = tuple(tuple(v.shape[1:]) for v in pytree.tree_leaves(batch) if isinstance(v, Tensor))
        if shapes not in seen and (why := _differs(copy, groups, batch)):
            return f"on shapes {', '.join(map(str, shapes))}, {why}"
        seen.add(shapes)
    return ""


def _differs(copy: IsolatedCopy, groups: Groups, batch: Inputs) -> str:
    wanted = copy.run(batch)
    if isinstance(wanted, Unfit):
        return wanted.reason
    run = Interpreter(groups.graph, batch)
    value: Any = None
    try:
        with torch.no_grad():
            for node in run:
                value = run.compute(node)
                if node.op != "output" and not _fits(groups, groups.axes[node], value):
                    return f"{node.name} has channels and positions in one axis"
    except Exception as error:  # noqa: BLE001  (operators raise anything)
        return f"the graph does not run ({first_line(error)})"
    for a, b in zip((v for v in pytree.tree_leaves(wanted) if isinstance(v, Tensor)), value, strict=True):
        if a.shape != b.shape or float((a.double() - b.double()).norm()) > TOLERANCE * float(a.double().norm()) + 1e-6:
            return "the graph computes something else than the model"
    return ""


def _fits(groups: Groups, axes: Any, value: Any) -> bool:
    """Whether the axes of a value that hold units of a group have the sizes that they were traced with."""
    if isinstance(axes, list):
        return all(_fits(groups, own, each) for own, each in zip(axes, value, strict=False))
    shape = value.shape if isinstance(value, Tensor) else ()
    return all(axis.size == size or not _prunable(groups, axis) for axis, size in zip(axes, shape, strict=False))


def _prunable(groups: Groups, axis: Axis) -> bool:
    return any(leaf.id in groups.names for leaf in groups.space.leaves(axis))
