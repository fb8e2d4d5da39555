"""Rules are read off optimized graphs; what the graphs are made of is the CPU's business."""

import pytest
from onnx import NodeProto, TensorProto, helper

from surgeon.device.layout_probes import Probe, answer, is_fast, smallest_multiple
from surgeon.device.onnx_protobuf import BLOCKED_DOMAIN
from surgeon.errors import BenchmarkError, InvalidArgument
from tests.device.tiny import impossible, pointwise_conv

BLOCK = Probe("block", {width: pointwise_conv(32, width) for width in (17, 33, 49)}, "block")

TABLE = [
    (range(1, 33), lambda width: width % 8 == 0, 8),
    (range(1, 33), lambda width: True, 1),
    (range(1, 33), lambda width: False, 0),
    (range(8, 20), lambda width: width in (8, 16), 8),
    (range(8, 20), lambda width: width == 12, 12),
    ([], lambda width: True, 0),
]


@pytest.mark.parametrize("widths, is_fast, expected", TABLE)
def test_smallest_multiple(widths: list[int], is_fast: object, expected: int) -> None:
    assert callable(is_fast)
    assert smallest_multiple({width: is_fast(width) for width in widths}) == expected


def chain(*operators: str) -> bytes:
    """Operators one after the other, blocked where they begin with a star."""

    def node(index: int, name: str) -> NodeProto:
        blocked = name.startswith("*")
        domain = BLOCKED_DOMAIN if blocked else "com.microsoft" if name == "FusedConv" else ""
        return helper.make_node(name.removeprefix("*"), [f"v{index}"], [f"v{index + 1}"], domain=domain)

    nodes = [node(index, name) for index, name in enumerate(operators)]
    ends = [helper.make_tensor_value_info(f"v{i}", TensorProto.FLOAT, [1, 16, 2, 2]) for i in (0, len(nodes))]
    return helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:])).SerializeToString()


CHAINS = [
    ("*ReorderInput *Conv *ReorderOutput", True),
    ("*Conv *ReorderOutput", True),
    ("*ReorderInput *Conv Concat *Conv *ReorderOutput", True),
    ("*ReorderInput *Conv *MaxPool *Conv *ReorderOutput", True),
    ("*ReorderInput *Conv *ReorderOutput Concat *ReorderInput *Conv *ReorderOutput", False),
    ("*ReorderInput *Conv *ReorderOutput MaxPool", False),
    ("*Conv *ReorderOutput Conv", False),
    ("*Conv *ReorderOutput FusedConv", False),
    ("Conv", False),
    ("MatMul Relu", False),
]


@pytest.mark.parametrize("operators, expected", CHAINS)
def test_only_blocks_from_end_to_end_are_fast(operators: str, expected: bool) -> None:
    assert is_fast(chain(*operators.split())) is expected


def test_answers_fit_together() -> None:
    widths = range(1, 33)
    dense = Probe("in", {width: pointwise_conv(width, 32) for width in widths if width >= 16})
    direct = Probe("direct", {width: pointwise_conv(width, 32) for width in widths}, "direct")
    answers = {probe.name: answer(probe) for probe in (BLOCK, dense, direct)}
    if not answers["block"]:
        pytest.skip("this CPU has no blocked layout")
    assert answers["block"] > 1 and answers["block"] % answers["in"] == 0
    assert 0 < answers["direct"] < answers["block"]


@pytest.mark.parametrize(
    "probe, error, message",
    [
        (Probe("p", {}), InvalidArgument, "'p': widths are"),
        (Probe("p", {0: b""}), InvalidArgument, "'p': widths are"),
        (Probe("p", {4: b"garbage"}), InvalidArgument, "'p' at width 4: "),
        (Probe("p", {4: impossible()}), BenchmarkError, "'p' at width 4: "),
        (Probe("p", {4: b""}, "largest"), InvalidArgument, "question 'largest' is none of"),  # type: ignore[arg-type]
    ],
)
def test_errors_name_the_probe(probe: Probe, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        answer(probe)
