"""Which widths keep onnxruntime's NCHWc layout: read from optimized graphs, without timing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, get_args

from surgeon.device.onnx_editing import strip
from surgeon.device.onnx_protobuf import BLOCKED_DOMAIN, Graph, parse
from surgeon.device.ort_session import open_optimized
from surgeon.errors import InvalidArgument, SurgeonError

Question = Literal["multiple", "direct", "block"]


@dataclasses.dataclass(frozen=True)
class Probe:
    """A question about onnxruntime, with a tiny ONNX graph for each width to look at.

    - "multiple": the smallest m such that all of these widths that m divides are fast: the graph holds an
      operator in the NCHWc layout, no convolution in the NCHW layout, and no reorder except at its
      inputs and outputs. The widths should cover all residues of the multiples in question.
    - "direct": the largest width at which a convolution reads the NCHW layout and writes NCHWc, without a
      reorder before it.
    - "block": how many channels a block holds. The graphs are convolutions; their output widths should
      differ by odd numbers, since the answer is the greatest common divisor of the padded widths.

    The answer 0 means that there is none.
    """

    name: str
    candidates: Mapping[int, bytes]
    question: Question = "multiple"


def answer(probe: Probe, threads: int = 1) -> int:
    """The answer to a probe on this CPU.

    Raises `InvalidArgument` for a probe without candidates, with a width below 1, or with a graph that is no
    ONNX model, and `BenchmarkError` if onnxruntime can't run one.
    """
    if probe.question not in (known := get_args(Question)):
        raise InvalidArgument(f"probe {probe.name!r}: question {probe.question!r} is none of {sorted(known)}")
    if not probe.candidates or min(probe.candidates) < 1:
        raise InvalidArgument(f"probe {probe.name!r}: widths are {sorted(probe.candidates)}; they start at 1")
    dumps = {}
    for width, model in sorted(probe.candidates.items()):
        try:
            dumps[width] = open_optimized(model, threads)[1]
        except SurgeonError as error:
            raise type(error)(f"probe {probe.name!r} at width {width}: {error}") from error
    if probe.question == "multiple":
        return smallest_multiple({width: is_fast(dump) for width, dump in dumps.items()})
    graphs = {width: parse(dump) for width, dump in dumps.items()}
    if probe.question == "direct":
        return max((width for width, graph in graphs.items() if _is_direct(graph)), default=0)
    weights = [(graph, node.inputs[1]) for graph in graphs.values() for node in graph.nodes if node.is_blocked("Conv")]
    return math.gcd(*(graph.initializers[weight][0] for graph, weight in weights))


def smallest_multiple(fast: Mapping[int, bool]) -> int:
    """The smallest m such that all the widths that m divides are fast, and there are any; 0 if none is.

    >>> smallest_multiple({width: width % 4 == 0 for width in range(16, 33)})
    4
    >>> smallest_multiple({16: False, 17: False})
    0
    """
    for multiple in range(1, max(fast, default=0) + 1):
        answers = [is_fast for width, is_fast in fast.items() if width % multiple == 0]
        if answers and all(answers):
            return multiple
    return 0


def is_fast(optimized: bytes) -> bool:
    """Whether an optimized graph works in the NCHWc layout from end to end."""
    graph = parse(strip(optimized))
    broken = any(
        (node.domain == BLOCKED_DOMAIN and node.op_type.startswith("Reorder"))
        or (node.domain != BLOCKED_DOMAIN and node.op_type in ("Conv", "FusedConv"))
        for node in graph.nodes
    )
    return graph.blocked and not broken


def _is_direct(graph: Graph) -> bool:
    """Whether a convolution in the NCHWc layout reads an input as it is."""
    return any(node.inputs[0] in graph.inputs for node in graph.nodes if node.is_blocked("Conv"))
