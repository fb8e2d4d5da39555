"""Which convolutions onnxruntime runs in the NCHWc layout: what decides speed, without measurement noise."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from surgeon.device.onnx_protobuf import Graph, Node, read
from surgeon.device.ort_session import optimized_graph

_PLAIN = (("", "Conv"), ("ai.onnx", "Conv"), ("com.microsoft", "FusedConv"))


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution of a file, by the name of its weight, and whether it runs in the NCHWc layout (blocked)."""

    name: str
    in_channels: int
    out_channels: int
    group: int
    blocked: bool

    def __str__(self) -> str:
        group = f", {self.group} groups" if self.group > 1 else ""
        return f"{self.name} ({self.in_channels} to {self.out_channels} channels{group})"


@dataclasses.dataclass(frozen=True)
class Layout:
    """The convolutions and layout changes of onnxruntime's optimized graph of a file, on this CPU.

    `blocked` counts those in the NCHWc layout; of the others, `fused` counts those that are fused with their
    activation (FusedConv), and `plain` the rest. `reorders_in` and `reorders_out` count the changes into and out
    of the NCHWc layout.
    """

    convolutions: tuple[Convolution, ...]
    blocked: int
    plain: int
    fused: int
    reorders_in: int
    reorders_out: int

    def __str__(self) -> str:
        return (
            f"{self.blocked} blocked, {self.plain + self.fused} plain convolutions, "
            f"{self.reorders_in + self.reorders_out} reorders"
        )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two layouts, and the convolutions of `slim` that are plain although blocked in `base`."""

    base: Layout
    slim: Layout
    fallen: tuple[Convolution, ...]

    def __str__(self) -> str:
        lines = [f"base: {self.base}", f"slim: {self.slim}"]
        lines += [f"  no longer blocked: {convolution}" for convolution in self.fallen]
        return "\n".join(lines)


def layout(path: str | os.PathLike[str], threads: int = 1) -> Layout:
    """The layout onnxruntime chooses for the file on this CPU, with all its optimizations.

    Raises what `open_session` raises for a file that is missing, not ONNX or can't be run.
    """
    nodes, original = optimized_graph(path, threads).nodes, read(path)
    plain = [node for node in nodes if (node.domain, node.op_type) in _PLAIN]
    return Layout(
        convolutions=tuple(_convolutions(original, plain)),
        blocked=sum(node.is_blocked("Conv") for node in nodes),
        plain=sum(node.op_type == "Conv" for node in plain),
        fused=sum(node.op_type == "FusedConv" for node in plain),
        reorders_in=sum(node.is_blocked("ReorderInput") for node in nodes),
        reorders_out=sum(node.is_blocked("ReorderOutput") for node in nodes),
    )


def compare(base: Layout, slim: Layout) -> Comparison:
    """Match the convolutions of two layouts by name and list those of `slim` that left the NCHWc layout.

    >>> def make(blocked, width):
    ...     return Layout((Convolution("a.weight", 3, width, 1, blocked),), blocked, not blocked, 0, 0, 0)
    >>> [str(convolution) for convolution in compare(make(True, 64), make(False, 63)).fallen]
    ['a.weight (3 to 63 channels)']
    """
    blocked = {convolution.name for convolution in base.convolutions if convolution.blocked}
    fallen = tuple(c for c in slim.convolutions if not c.blocked and c.name in blocked)
    return Comparison(base, slim, fallen)


def _convolutions(graph: Graph, plain: Sequence[Node]) -> list[Convolution]:
    """The convolutions of the file as written; those that are not found among the plain ones are blocked.

    A blocked convolution has lost the names of its weight and its output. A plain one keeps its weight's name, or,
    where onnxruntime recomputed the weight, the name of its output, or of the output of the BatchNorm or activation
    that was fused with it.
    """
    sizes = graph.initializers
    convolutions = [node for node in graph.nodes if node.op_type == "Conv" and node.inputs[1] in sizes]
    own = {node.inputs[1] for node in convolutions}
    weights = [node.inputs[1] for node in plain]
    outputs = {node.outputs[0] for node in plain if node.inputs[1] not in own}
    result: list[Convolution] = []
    for node in convolutions:
        weight = node.inputs[1]
        blocked = weight not in weights and outputs.isdisjoint(_chain(node.outputs[0], graph))
        if weight in weights:
            weights.remove(weight)
        group = node.integer("group", 1)
        out_channels, per_group = sizes[weight][:2]
        result.append(Convolution(weight, per_group * group, out_channels, group, blocked))
    return result


def _chain(value: str, graph: Graph) -> list[str]:
    """`value` and the outputs of the next two operators, as long as each value has a single reader."""
    chain = [value]
    while len(chain) < 3 and len(readers := graph.readers.get(chain[-1], [])) == 1:
        chain.append(readers[0].outputs[0])
    return chain
