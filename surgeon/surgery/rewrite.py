"""The graph of the smaller model: the same operators with their size arguments printed from the axes."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from surgeon.errors import SurgeryError
from surgeon.groups.coupling import Groups
from surgeon.rules import Kept, Typed, arguments, example_number, failed, where
from surgeon.surgery.canonical import Stream, values
from surgeon.surgery.graph_module import SlimGraph
from surgeon.surgery.record import Recorder, Stand
from surgeon.surgery.tensors import place


class Predicted(NamedTuple):
    """The calls that the smaller graph makes, and what each node of the original graph gives of them, as recorded."""

    stream: Stream
    results: Mapping[fx.Node, Any]

    def origin(self, call: int) -> fx.Node:
        """The original node that makes a call of the stream."""
        assert self.stream.program is not None  # it is recorded
        order = self.stream.program.order
        last = {
            node: max((order.get(value.call, -1) for value in values(found)), default=-1)
            for node, found in self.results.items()
        }
        return next(node for node, index in last.items() if index >= call)


def slim_graph(groups: Groups, kept: Kept) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of the graph with new arguments, and which new node stands for which old one."""
    old = groups.graph.module.graph
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in old.nodes:
        if node.op == "output":
            new.output(fx.node.map_arg(node.args[0], lambda n: copies[n]))
            continue
        copy = new.node_copy(node, lambda n: copies[n])
        copy.meta = {**node.meta, "predicted": expected(groups, node, kept)}
        copies[node] = copy
        if copy.target is torch.ops.aten.view.default:
            # Kernels may lay out a smaller result in another way in memory, of which there may be no view.
            copy.target = torch.ops.aten.reshape.default
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            _print_arguments(node, copy, groups.typed[node], kept, copies)
    new.set_codegen(old._codegen)
    return new, copies


def _print_arguments(
    node: fx.Node, copy: fx.Node, typed: Typed, kept: Kept, copies: dict[fx.Node, fx.Node]
) -> None:
    new = printed(node, typed, kept)
    if not new:
        return
    old = arguments(node)
    if typed.target is not None:
        dim = example_number(old["dim"]) if isinstance(old["dim"], fx.Node) else old["dim"]
        outs = typed.out if isinstance(typed.out, list) else [typed.out]
        if any(kept.changed(axes[dim]) for axes in outs if axes):
            copy.target = typed.target
            copy.args = (copies[old["self"]], *new.values())
            copy.kwargs = {"dim": old["dim"]}
        return
    with copy.graph.inserting_before(copy):
        for name, value in new.items():
            if not _same(value, old[name]):
                _set_argument(copy, _position(node, name), name, _written(value, old[name], copies))


def _written(new: Any, old: Any, copies: Mapping[fx.Node, fx.Node]) -> Any:
    """An argument's new value; what was computed from sizes still is, times the share that is left where it is less."""
    if isinstance(new, fx.Node):
        return copies[new]
    if isinstance(new, list | tuple):
        olds = old if isinstance(old, list | tuple) and len(old) == len(new) else [None] * len(new)
        return [_written(value, each, copies) for value, each in zip(new, olds, strict=True)]
    if not isinstance(old, fx.Node):
        return new
    before = example_number(old)
    if new == before:
        return copies[old]
    if not isinstance(new, int) or not isinstance(before, int) or new <= 0 or before <= 0:
        return new
    shared = math.gcd(new, before)
    times = _computed(operator.mul, copies[old], new // shared, before * (new // shared))
    return _computed(operator.floordiv, times, before // shared, new)


def _computed(function: Any, value: fx.Node, number: int, result: int) -> fx.Node:
    """A number computed from another; `result` is what it is for the example inputs."""
    node = value.graph.call_function(function, (value, number))
    node.meta["val"] = result
    return node


def printed(node: fx.Node, typed: Typed, kept: Kept) -> dict[str, Any]:
    """The arguments of an operator that depend on widths, for what is kept.

    Raises:
        SurgeryError: the operator's rule can't print them.
    """
    try:
        return {name: print_(kept) for name, print_ in typed.args.items()}
    except Exception as error:
        raise SurgeryError(failed(node, error)) from error


def _same(new: Any, old: Any) -> bool:
    if isinstance(new, list | tuple) and isinstance(old, list | tuple):
        return len(new) == len(old) and all(_same(a, b) for a, b in zip(new, old, strict=True))
    return bool(new is old or new == old)


def _position(node: fx.Node, name: str) -> int:
    """The place of an argument in the operator's schema."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return names.index(name)


def _set_argument(copy: fx.Node, position: int, name: str, value: Any) -> None:
    if position < len(copy.args):
        copy.update_arg(position, value)
    else:
        copy.update_kwarg(name, value)


def expected(groups: Groups, node: fx.Node, kept: Kept) -> list[tuple[int, ...]]:
    """The sizes of each tensor that `node` computes in the smaller graph."""
    axes = groups.axes[node]
    return [tuple(kept.width(axis) for axis in each) for each in (axes if isinstance(axes, list) else [axes])]


def check_shapes(
    groups: Groups, kept: Kept, copies: dict[fx.Node, fx.Node], tensors: dict[str, Tensor], stand: Stand
) -> Predicted | None:
    """Propagate tensors without values through the new graph: every shape must be the predicted one.

    Returns the calls of operators that the graph makes; None where they do not tell what it computes.

    Raises:
        SurgeryError: an operator can't run, or computes other shapes than its axes say.
    """
    recorder = Recorder(stand)
    values, results = propagate(groups, kept, copies, tensors, recorder)
    ends = [leaf for leaf in pytree.tree_leaves(groups.graph.output.args) if isinstance(leaf, fx.Node)]
    stream = recorder.stream([values[copies[node]] for node in ends])
    return Predicted(stream, results) if stream is not None else None


def propagate(
    groups: Groups, kept: Kept, copies: dict[fx.Node, fx.Node], tensors: dict[str, Tensor], recorder: Recorder
) -> tuple[dict[fx.Node, Any], dict[fx.Node, Any]]:
    """As `check_shapes`: what each node of the new graph computes, and how the recorder knows it, by the old nodes."""
    values: dict[fx.Node, Any] = {}
    results: dict[fx.Node, Any] = {}
    stand = recorder.stand
    leaves = pytree.tree_leaves(groups.graph.inputs)
    for value in (*leaves, *tensors.values()):
        stand.of(value)  # now, so that none is made among the calls
    inputs = iter(leaves)
    with torch.no_grad(), stand.mode, recorder:
        for old, node in copies.items():
            try:
                values[node] = _propagate(groups, old, node, values, tensors, inputs, stand.of)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise SurgeryError(f"{where(old)} ({old.name}) can't run in the smaller graph: {error}") from error
            _compare(groups, old, values[node], kept)
            results[old] = recorder.known(values[node])
    return values, results


def _propagate(
    groups: Groups, old: fx.Node, node: fx.Node, values: dict[fx.Node, Any], tensors: dict[str, Tensor],
    inputs: Any, fake: Any,
) -> Any:
    if node.op == "placeholder":
        return fake(next(inputs))
    if node.op == "get_attr":
        name = groups.graph.tensors.get(old.name)
        return fake(tensors[name]) if name is not None else None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _number(n, values))
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _number(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The value of an operand; of a number that was written into the smaller graph, when it is first needed."""
    if node not in values:
        values[node] = node.target(*fx.node.map_arg(node.args, lambda n: _number(n, values)))  # type: ignore[operator]
    return values[node]


def _compare(groups: Groups, node: fx.Node, value: Any, kept: Kept) -> None:
    if node.op != "call_function":
        return
    found = [value] if isinstance(value, Tensor) else value if isinstance(value, tuple | list) else []
    for have, want in zip(found, expected(groups, node, kept), strict=False):
        if isinstance(have, Tensor) and _differs(tuple(have.shape), want):
            raise SurgeryError(
                f"{where(node)} ({node.name}) computes {tuple(have.shape)} in the smaller graph, "
                f"where its axes say {want}"
            )


def _differs(have: tuple[Any, ...], want: tuple[int, ...]) -> bool:
    """Whether two shapes differ; sizes that depend on values, and tensors without elements, do not."""
    if len(have) != len(want):
        return 0 not in have
    known = [(a, b) for a, b in zip(have, want, strict=True) if isinstance(a, int)]
    return any(a != b for a, b in known) and all(a for a, _ in known)


def assemble(graph: fx.Graph, tensors: dict[str, Tensor], persistent: set[str]) -> SlimGraph:
    """A module of `graph` whose tensors stand under their own names."""
    root = nn.Module()
    for name, value in tensors.items():
        place(root, name, value, persistent=name in persistent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch copies its own tree specs in a deprecated way
        module = SlimGraph(root, graph)
    for name in tensors.keys() - persistent:
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if leaf in owner._buffers:  # torch.fx registers each tensor that it copies as one that is stored
            owner._non_persistent_buffers_set.add(leaf)
    return module


def is_getitem(node: fx.Node) -> bool:
    return node.target is operator.getitem
