"""Graphs read from bytes are the ones that the onnx package reads, and a stripped graph computes the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from surgeon.device.onnx_editing import entry, repeated, strip
from surgeon.device.onnx_protobuf import BLOCKED_DOMAIN, Graph, elementwise, parse, read, versions
from surgeon.device.ort_session import make_feeds, open_optimized, open_session
from surgeon.errors import BenchmarkError, InvalidArgument


def conv_model(in_channels: int, out_channels: int, *, skip: bool = False) -> bytes:
    """relu(conv(x)), with `skip` relu(conv(x) + feeder(x))."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((out_channels, in_channels, 3, 3)).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], kernel_shape=[3, 3])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, in_channels, 6, 6])]
    if skip:
        nodes.insert(0, helper.make_node("Conv", ["x", "v"], ["feed_z"], kernel_shape=[1, 1]))
        nodes.append(helper.make_node("Add", ["c", "feed_z"], ["s"]))
        weights["v"] = rng.standard_normal((out_channels, in_channels, 1, 1)).astype(np.float32)
    nodes.append(helper.make_node("Relu", ["s" if skip else "c"], ["y"]))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, out_channels, 6, 6])
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, [output], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def by_onnx(model: bytes) -> Graph:
    proto = onnx.load_model_from_string(model).graph
    kinds = (onnx.AttributeProto.TENSOR, onnx.AttributeProto.GRAPH)

    def shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
        dims = value.type.tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)

    def attributes(node: onnx.NodeProto) -> dict[str, object]:
        values = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.type not in kinds}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

    read_graph = parse(model)
    for node, ours in zip(proto.node, read_graph.nodes, strict=True):
        assert (ours.name, ours.op_type, ours.domain) == (node.name, node.op_type, node.domain)
        assert (ours.inputs, ours.outputs) == (tuple(node.input), tuple(node.output))
        assert ours.attributes == attributes(node)
    return Graph(
        read_graph.nodes,
        {tensor.name: tuple(tensor.dims) for tensor in proto.initializer},
        {value.name: shape(value) for value in proto.input},
        {value.name: shape(value) for value in proto.output},
    )


def attribute_model() -> bytes:
    attributes: dict[str, Any] = {"i": -3, "f": 0.5, "s": "text", "many": [1, -2, 2**40], "floats": [0.25, -1.0]}
    node = helper.make_node("Anything", ["x", "", "k"], ["y"], domain="a.domain", **attributes)
    tensor = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones(3, np.float32)))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, None])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([tensor, node], "g", [x], [y])
    return helper.make_model(graph).SerializeToString()


MODELS = {
    "convolution": conv_model(16, 24),
    "skip": conv_model(16, 32, skip=True),
    "attributes": attribute_model(),
    "elementwise": elementwise(["Neg", "Abs"], (1, 300)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_is_read_as_onnx_reads_it(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    assert parse(model) == by_onnx(model)
    (tmp_path / "a.onnx").write_bytes(model)
    assert read(tmp_path / "a.onnx") == parse(model)
    if name != "attributes":
        assert parse(open_optimized(model)[1]) == by_onnx(open_optimized(model)[1])


def test_weights_beside_the_file_are_not_needed(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(MODELS["convolution"])
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, size_threshold=0, location="weights")
    (tmp_path / "weights").unlink()
    assert read(tmp_path / "a.onnx").initializers == {"w": (24, 16, 3, 3)}


@pytest.mark.parametrize("channels, skip", [((32, 48), False), ((32, 64), True), ((24, 37), False), ((3, 32), False)])
def test_a_stripped_graph_computes_the_same(channels: tuple[int, int], skip: bool) -> None:
    model = conv_model(*channels, skip=skip)
    dump = open_optimized(model)[1]
    stripped = strip(dump)
    onnx.load_model_from_string(stripped)
    if not parse(dump).blocked:
        pytest.skip("this CPU has no blocked layout")
    assert [node.op_type for node in parse(stripped).nodes] == ["Conv"]
    session = open_session(model)
    rng = np.random.default_rng(1)
    feeds = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in session.get_inputs()}
    blocked = dict(feeds)
    if (before := entry(dump)) is not None:
        prepare = open_session(before, optimize=False)
        outputs = [output.name for output in prepare.get_outputs()]
        blocked |= dict(zip(outputs, prepare.run(None, feeds), strict=True))
    run = open_session(stripped, optimize=False)
    (slim,) = run.run(None, {i.name: blocked[i.name] for i in run.get_inputs()})
    (full,) = session.run(None, feeds)
    # in blocks of the last axis, the channels that pad the last block at the end
    batch, padded, height, width = slim.shape
    sizes = [b for b in (4, 8, 16, 32) if padded % b == 0]
    orders = [slim.reshape(batch, padded // b, height, width, b).transpose(0, 1, 4, 2, 3) for b in sizes]
    plain = [order.reshape(slim.shape)[:, : channels[1]] for order in orders]
    assert any(np.allclose(value, full, atol=1e-4) for value in plain)


@pytest.mark.parametrize("name", ["convolution", "skip", "elementwise"])
def test_a_row_of_a_model_computes_it_each_time(name: str, tmp_path: Path) -> None:
    optimized = open_optimized(MODELS[name])[1]
    alone, row = parse(optimized), parse(repeated(optimized, 3))
    assert [node.op_type for node in row.nodes] == 3 * [node.op_type for node in alone.nodes]
    assert (row.inputs, row.initializers, row.outputs) == (alone.inputs, alone.initializers, alone.outputs)
    session = open_session(repeated(optimized, 3), optimize=False, profile_to=tmp_path / "row")
    session.run(None, make_feeds(session))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    assert sum(event["name"].endswith("_kernel_time") for event in events) == 3 * len(alone.nodes)
    assert repeated(optimized, 1) == optimized
    open_session(repeated(MODELS["elementwise"], 3), optimize=False)  # none of whose operators has a name


def test_a_model_without_reorders_stays_as_it_is() -> None:
    model = MODELS["elementwise"]
    assert strip(model) == model and entry(model) is None


def test_only_what_depends_on_inputs_alone_is_a_feeder() -> None:
    nodes = [
        helper.make_node("Neg", ["x"], ["feed_a"]),
        helper.make_node("Abs", ["feed_a"], ["b"], name="feed_b"),
        helper.make_node("Mul", ["feed_a", "b"], ["c"]),
        helper.make_node("Neg", ["c"], ["feed_d"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16]) for name in ("x", "feed_d"))
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y])).SerializeToString()
    assert [node.op_type for node in parse(strip(model)).nodes] == ["Mul", "Neg"]
    assert list(parse(strip(model)).inputs) == ["feed_a", "b"]
    prepare = entry(model)
    assert prepare is not None and list(parse(prepare).outputs) == ["feed_a", "b"]


def test_reorders_inside_a_graph_stay() -> None:
    def node(kind: str, source: str, target: str) -> onnx.NodeProto:
        domain = BLOCKED_DOMAIN if kind.startswith("Reorder") else ""
        return helper.make_node(kind, [source], [target], domain=domain)

    chain = ["ReorderInput", "Neg", "ReorderOutput", "Abs", "ReorderInput", "Neg", "ReorderOutput"]
    nodes = [node(kind, f"v{index}", f"v{index + 1}") for index, kind in enumerate(chain)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16, 2, 2]) for name in ("v0", "v7"))
    stripped = parse(strip(helper.make_model(helper.make_graph(nodes, "g", [x], [y])).SerializeToString()))
    assert [n.op_type for n in stripped.nodes] == chain[1:-1]
    assert list(stripped.inputs) == ["v1"] and list(stripped.outputs) == ["v6"]


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"no protobuf at all", MODELS["convolution"][:-20]])
def test_what_is_no_model_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"a\.onnx"):
        read(tmp_path / "a.onnx")


def test_a_missing_file() -> None:
    with pytest.raises(InvalidArgument, match="nowhere"):
        read("nowhere.onnx")


def of_versions(ir: int, opset: int, others: int = 0) -> bytes:
    """A model of these versions; with `others`, operators of other domains are declared before ONNX's own."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
    opsets = [*(helper.make_opsetid(f"other{index}", 99) for index in range(others)), helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir).SerializeToString()


@pytest.mark.parametrize("others", [0, 2])
def test_the_versions_of_a_model(others: int) -> None:
    assert versions(of_versions(9, 20, others)) == (9, 20)


@pytest.mark.parametrize(("ir", "opset"), [(9, 99), (99, 20)])
def test_a_model_that_is_too_new_is_told_with_the_remedy(ir: int, opset: int, tmp_path: Path) -> None:
    (tmp_path / "new.onnx").write_bytes(of_versions(ir, opset))
    message = f"the model is of opset {opset} and IR {ir}: update onnxruntime, or write the model in opset 20"
    for model in (of_versions(ir, opset), tmp_path / "new.onnx"):
        with pytest.raises(BenchmarkError, match=message):
            open_session(model)
