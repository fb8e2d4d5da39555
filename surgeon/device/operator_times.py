"""Where a model's time goes, by onnxruntime's own profiler."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from surgeon.device.clock import Clock
from surgeon.device.onnx_protobuf import Graph, Node, read
from surgeon.device.ort_session import ORT_ERRORS, make_feeds, open_session
from surgeon.errors import BenchmarkError
from surgeon.support.scratch import temporary_folder

LOW = 20
"""The percentile to report for an operator: the profiler's times include interruptions."""

_BLOCKED = "_nchwc"
_EVENT = "_kernel_time"


@dataclasses.dataclass(frozen=True)
class Share:
    """An operator that was run: the name of its weight, else its own; its kind; and microseconds per run.

    The kind is onnxruntime's name of the operator, with a convolution's kernel, and whether it is grouped.
    """

    name: str
    kind: str
    us: float


def shares(
    path: str | os.PathLike[str], *, threads: int | None = None, runs: int = 30,
    example: Mapping[str, Sequence[int]] | None = None,
) -> tuple[Share, ...]:
    """The operators of a file and the time that each takes, in the order in which they run.

    `threads` are onnxruntime's, by default as many as it takes by itself. `example` are the inputs' shapes, where the
    file leaves sizes free and does not tell any.

    The profiler itself takes time, so that the sum exceeds the time of a run without it: read them as shares.

    Raises what `open_session` raises, and `BenchmarkError` if the file can't be run.
    """
    graph, clock = read(path), Clock.of(threads)
    with temporary_folder() as folder:
        session = open_session(path, threads=clock.threads, spin=clock.spin, profile_to=folder / "profile")
        feeds = make_feeds(session, example=example)
        try:
            for _ in range(runs):
                session.run(None, feeds)
        except ORT_ERRORS as error:
            raise BenchmarkError(f"{path}: onnxruntime can't run it: {error}") from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    taken: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_EVENT):
            key = event["name"].removesuffix(_EVENT), event["args"]["op_name"]
            taken.setdefault(key, []).append(float(event["dur"]))
    weights = dict(_weights(graph))
    found: list[Share] = []
    for (name, kind), each in taken.items():
        weight, shape = weights.get(name.removesuffix(_BLOCKED), (name, ""))
        us = float(np.percentile(each, LOW)) * len(each) / runs
        found.append(Share(weight, f"{kind} {shape}".rstrip() if "Conv" in kind else kind, us))
    return tuple(found)


def _weights(graph: Graph) -> Iterator[tuple[str, tuple[str, str]]]:
    """Names that onnxruntime may give an operator with a weight, each with the weight's name and the kernel's size.

    These are its own, or, in the NCHWc layout, that of its output or of the output of an operator fused with it.
    """
    for node in graph.nodes:
        weight = _weight(node, graph)
        if weight is None or not node.outputs:
            continue
        group, dims = node.integer("group", 1), graph.initializers[weight]
        grouping = "" if group == 1 else " depthwise" if dims[1] == 1 else " grouped"
        known = weight.removesuffix(".weight"), "×".join(map(str, dims[2:])) + grouping
        yield node.name, known
        value = node.outputs[0]
        for _ in range(4):
            yield value, known
            following = graph.readers.get(value, [])
            if len(following) != 1 or _weight(following[0], graph) is not None:
                break
            value = following[0].outputs[0]


def _weight(node: Node, graph: Graph) -> str | None:
    """The second input, if it is a constant of at least two axes: the bounds of a Clip are not."""
    return next((value for value in node.inputs[1:2] if len(graph.initializers.get(value, ())) > 1), None)
