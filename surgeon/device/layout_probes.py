"""Which widths keep onnxruntime's fast layout: read off optimized graphs, so that no clock is needed."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from surgeon.device.onnx_editing import strip
from surgeon.device.onnx_protobuf import BLOCKED_DOMAIN, Graph, Node, parse
from surgeon.device.ort_session import open_optimized
from surgeon.errors import InvalidArgument, SurgeonError

Question = Literal["multiple", "direct", "block"]


@dataclasses.dataclass(frozen=True)
class Probe:
    """A question to onnxruntime, and a tiny ONNX graph for every width at which it is asked.

    - "multiple": the smallest m such that every width asked about that m divides is fast: the graph holds an
      operator in the NCHWc layout, no convolution in the NCHW layout, and no reorder but at its
      inputs and outputs. The widths should run over every residue of the multiples in question.
    - "direct": the largest width at which a convolution reads the NCHW layout and writes NCHWc, without a
      reorder before it.
    - "block": how many channels a block holds. The graphs are convolutions; their output widths should
      differ by odd numbers, for it is the greatest divisor that the padded widths have in common.

    The answer 0 means: no such width.
    """

    name: str
    candidates: Mapping[int, bytes]
    question: Question = "multiple"


def answer(probe: Probe, threads: int = 1) -> int:
    """What the graphs of the probe answer on this CPU.

    Raises `InvalidArgument` for a probe without candidates, with a width below 1, or with a graph that is no
    ONNX model, and `BenchmarkError` if onnxruntime can't run one.
    """
    if probe.question not in _ANSWERS:
        raise InvalidArgument(f"probe {probe.name!r}: question {probe.question!r} is none of {sorted(_ANSWERS)}")
    if not probe.candidates or min(probe.candidates) < 1:
        raise InvalidArgument(f"probe {probe.name!r}: widths are {sorted(probe.candidates)}; they start at 1")
    dumps = {}
    for width, model in sorted(probe.candidates.items()):
        try:
            dumps[width] = open_optimized(model, threads)[1]
        except SurgeonError as error:
            raise type(error)(f"probe {probe.name!r} at width {width}: {error}") from error
    return _ANSWERS[probe.question](dumps)


def answer_all(probes: Iterable[Probe], threads: int = 1) -> dict[str, int]:
    """The answer to every probe, by its name."""
    return {probe.name: answer(probe, threads) for probe in probes}


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


def _multiple(dumps: Mapping[int, bytes]) -> int:
    return smallest_multiple({width: is_fast(dump) for width, dump in dumps.items()})


def _direct(dumps: Mapping[int, bytes]) -> int:
    def is_direct(graph: Graph) -> bool:
        return any(node.inputs[0] in graph.inputs for node in _blocked_convolutions(graph))

    return max((width for width, dump in dumps.items() if is_direct(parse(dump))), default=0)


def _block(dumps: Mapping[int, bytes]) -> int:
    graphs = [parse(dump) for dump in dumps.values()]
    return math.gcd(*(g.initializers[node.inputs[1]][0] for g in graphs for node in _blocked_convolutions(g)))


def _blocked_convolutions(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if (node.domain, node.op_type) == (BLOCKED_DOMAIN, "Conv")]


_ANSWERS: dict[str, Callable[[Mapping[int, bytes]], int]] = {
    "multiple": _multiple,
    "direct": _direct,
    "block": _block,
}
