"""The file that a model was loaded from, less what was removed: what stays as it was, and what it is held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

import surgeon
from surgeon.deploy.user_file.walk import tensors
from surgeon.errors import InvalidArgument
from testbed.onnx_graphs import convolutional, model, weight


def slimmed(proto: onnx.ModelProto, folder: Path, inputs: Any, ratio: float = 0.5, **options: Any) -> Any:
    """The smaller module of a file, written as `slim.onnx`; the module, the report, and what was written."""
    if not (folder / "net.onnx").exists():
        onnx.save(proto, folder / "net.onnx")
    net = surgeon.load_onnx(folder / "net.onnx")
    options = {"compensate": False, "align": 1, **options}
    slim = surgeon.shrink(net, ratio, example_inputs=inputs, **options)
    report = surgeon.export(slim, folder / "slim.onnx", example_inputs=inputs)
    return slim, report, onnx.load(folder / "slim.onnx", load_external_data=False)


def agrees(path: Path, slim: Any, **feeds: torch.Tensor) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    made = session.run(None, {name: value.numpy() for name, value in feeds.items()})
    found = slim(*feeds.values())
    for ours, theirs in zip(made, found if isinstance(found, tuple) else (found,), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-3, atol=1e-5)


def test_all_but_the_sizes_stays(tmp_path: Path) -> None:
    proto = convolutional()
    proto.producer_name, proto.doc_string = "somebody", "of mine"
    proto.metadata_props.add(key="alphabet", value="abc")
    slim, report, made = slimmed(proto, tmp_path, torch.randn(2, 3, 8, 8))
    assert (made.producer_name, made.doc_string, made.metadata_props) == ("somebody", "of mine", proto.metadata_props)
    assert (made.ir_version, made.opset_import) == (proto.ir_version, proto.opset_import)
    assert (made.graph.input, made.graph.output) == (proto.graph.input, proto.graph.output)
    assert [(n.op_type, n.name, n.input) for n in made.graph.node] == [
        (n.op_type, n.name, n.input) for n in proto.graph.node
    ]
    assert report.original == tmp_path / "net.onnx" and report.off_original < 1e-5
    assert report.bytes < (tmp_path / "net.onnx").stat().st_size
    agrees(tmp_path / "slim.onnx", slim, x=torch.randn(3, 3, 12, 10))


def test_what_was_trained_since_is_in_it(tmp_path: Path) -> None:
    slim, _, _ = slimmed(convolutional(), tmp_path, torch.randn(2, 3, 8, 8))
    with torch.no_grad():
        slim.fc.bias += 1
    report = surgeon.export(slim, tmp_path / "trained.onnx", example_inputs=torch.randn(2, 3, 8, 8))
    assert report.off_original is not None and report.off_original < 1e-5  # the cut is what it was
    agrees(tmp_path / "trained.onnx", slim, x=torch.randn(1, 3, 8, 8))


def test_a_model_of_which_nothing_was_removed_is_the_file(tmp_path: Path) -> None:
    onnx.save(convolutional(), tmp_path / "net.onnx")
    report = surgeon.export(surgeon.load_onnx(tmp_path / "net.onnx"), tmp_path / "same.onnx")
    assert onnx.load(tmp_path / "same.onnx") == onnx.load(tmp_path / "net.onnx")
    assert report.original is not None and report.off_original is None


def test_the_file_itself_is_not_replaced(tmp_path: Path) -> None:
    onnx.save(convolutional(), tmp_path / "net.onnx")
    before = (tmp_path / "net.onnx").read_bytes()
    with pytest.raises(InvalidArgument, match="loaded from; give another name"):
        surgeon.export(surgeon.load_onnx(tmp_path / "net.onnx"), tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_bytes() == before


def test_what_is_asked_for_is_written_anew(tmp_path: Path) -> None:
    onnx.save(convolutional(), tmp_path / "net.onnx")
    report = surgeon.export(surgeon.load_onnx(tmp_path / "net.onnx"), tmp_path / "anew.onnx", opset=18)
    assert report.original is None and report.opset == 18


def test_a_graph_is_written_anew_with_the_reason(tmp_path: Path) -> None:
    slim, report, _ = slimmed(convolutional(), tmp_path, torch.randn(2, 3, 8, 8), form="graph")
    assert report.original is None
    assert any("written anew by torch.onnx, not as net.onnx with changes: the smaller" in each for each in report.notes)
    agrees(tmp_path / "slim.onnx", slim, x=torch.randn(2, 3, 8, 8))


def grouped() -> onnx.ModelProto:
    return model(
        """net (float[n,3,h,w] x) => (float[n,5] y) {
            a = Conv (x, w1)  b = Relu (a)  c = Conv <group = 16> (b, w2)  d = Relu (c)  e = GlobalAveragePool (d)
            f = Flatten (e)  y = MatMul (f, w3)
        }""",
        w1=weight(16, 3, 3, 3), w2=weight(16, 1, 3, 3), w3=weight(16, 5),
    )


def test_groups_of_a_convolution_are_counted_anew(tmp_path: Path) -> None:
    slim, report, made = slimmed(grouped(), tmp_path, torch.randn(2, 3, 8, 8))
    node = made.graph.node[2]
    kept = slim.w2.shape[0]
    assert kept < 16 and helper.get_node_attr_value(node, "group") == kept
    assert report.off_original < 1e-5


def split() -> onnx.ModelProto:
    return model(
        """net (float[n,6] x) => (float[n,5] y) {
            a = MatMul (x, w1)  b, c = Split <axis = 1, split = [8, 8]> (a)  d = Mul (b, c)  y = MatMul (d, w2)
        }""",
        opset=11, w1=weight(6, 16), w2=weight(8, 5),
    )


def test_attributes_that_are_sizes_are_rewritten(tmp_path: Path) -> None:
    slim, report, made = slimmed(split(), tmp_path, torch.randn(2, 6))
    kept = slim.w2.shape[0]
    assert kept < 8 and helper.get_node_attr_value(made.graph.node[1], "split") == [kept, kept]
    assert report.off_original < 1e-5


def recurrent() -> onnx.ModelProto:
    return model(
        """net (float[t,n,6] x) => (float[t,n,5] y) {
            a, h, c = LSTM <hidden_size = 8> (x, w, r, b)  s = Squeeze (a, one)  y = MatMul (s, w2)
        }""",
        w=weight(1, 32, 6), r=weight(1, 32, 8), b=weight(1, 64), w2=weight(8, 5), one=np.array([1]),
    )


def test_the_hidden_size_follows_the_weights(tmp_path: Path) -> None:
    slim, _, made = slimmed(recurrent(), tmp_path, torch.randn(3, 2, 6))
    kept = slim.w2.shape[0]
    assert kept < 8 and helper.get_node_attr_value(made.graph.node[0], "hidden_size") == kept
    agrees(tmp_path / "slim.onnx", slim, x=torch.randn(5, 3, 6))


def pieced() -> onnx.ModelProto:
    """A shape that is put together of sizes that are computed and of one that counts channels."""
    return model(
        """net (float[n,3,h,w] x) => (float[n,p,5] y) {
            a = Conv (x, w1)  b = Relu (a)  s = Shape (b)  hw = Slice (s, two, four)  p = ReduceProd <keepdims=1> (hw)
            t = Transpose <perm = [0, 2, 3, 1]> (b)  to = Concat <axis = 0> (zero, p, wide)  q = Reshape (t, to)
            y = MatMul (q, w2)
        }""",
        w1=weight(12, 3, 1, 1), w2=weight(12, 5), zero=np.array([0]), wide=np.array([12]), two=np.array([2]),
        four=np.array([4]),
    )


def test_a_size_that_another_operator_hands_on_is_rewritten(tmp_path: Path) -> None:
    slim, report, made = slimmed(pieced(), tmp_path, torch.randn(2, 3, 8, 9))
    sizes = {each.name: onnx.numpy_helper.to_array(each).tolist() for each in made.graph.initializer}
    assert sizes["wide"] == [slim.w2.shape[0]] and slim.w2.shape[0] < 12
    assert report.off_original < 1e-5
    agrees(tmp_path / "slim.onnx", slim, x=torch.randn(1, 3, 5, 4))


def shared_shape() -> onnx.ModelProto:
    """One constant is the shape of two reshapes, of which one is pruned."""
    return model(
        """net (float[n,8,4] x) => (float[n,5] y) {
            k = Reshape (x, to)  u = ReduceSum <keepdims = 0> (k, two)
            a = MatMul (x, w1)  r = Relu (a)  q = Reshape (r, to)  f = ReduceSum <keepdims = 0> (q, one)
            y0 = MatMul (f, w2)  z = MatMul (u, w3)  y = Add (y0, z)
        }""",
        w1=weight(4, 4), w2=weight(4, 5), w3=weight(8, 5), to=np.array([0, 8, 4]), two=np.array([2]),
        one=np.array([1]),
    )


def test_a_constant_of_several_readers_stays_for_those_that_want_it(tmp_path: Path) -> None:
    slim, _, made = slimmed(shared_shape(), tmp_path, torch.randn(2, 8, 4))
    assert slim.w1.shape[1] < 4
    added = [node for node in made.graph.node if node.op_type == "Constant"]
    assert len(added) == 1 and added[0].output[0] == "to_slim"
    readers = [node.input[1] for node in made.graph.node if node.op_type == "Reshape"]
    assert readers == ["to", "to_slim"]
    agrees(tmp_path / "slim.onnx", slim, x=torch.randn(3, 8, 4))


def test_weights_outside_of_the_file_are_outside_of_it_again(tmp_path: Path) -> None:
    proto = convolutional()
    onnx.save(proto, tmp_path / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = (tmp_path / "weights.bin").read_bytes()
    slim, report, made = slimmed(proto, tmp_path, torch.randn(2, 3, 8, 8))
    weights = [each for each in tensors(made) if each.name.endswith("weight")]
    assert len(weights) == 4 and all(each.data_location == TensorProto.EXTERNAL for each in weights)
    assert (tmp_path / "weights.bin").read_bytes() == before
    assert report.off_original < 1e-5
    agrees(tmp_path / "slim.onnx", slim, x=torch.randn(2, 3, 8, 8))


def untrained() -> onnx.ModelProto:
    """Two norms whose gains and shifts, equal ones and zeros, the file holds once, and an open mask."""
    return model(
        """net (float[n,6] x) => (float[n,5] y) {
            a = MatMul (x, w1)  b = LayerNormalization (a, one, zero)  p = Where (open, b, none)  c = Relu (p)
            d = MatMul (c, w2)  e = LayerNormalization (d, one, zero)  q = Where (open, e, none)  y = MatMul (q, w3)
        }""",
        open=np.ones(80, bool), none=np.float32(0),
        w1=weight(6, 80), one=np.ones(80, np.float32), zero=np.zeros(80, np.float32), w2=weight(80, 80),
        w3=weight(80, 5),
    )


def test_what_is_of_one_value_ties_its_readers_in_no_way(tmp_path: Path) -> None:
    x = torch.randn(3, 6)
    onnx.save(untrained(), tmp_path / "net.onnx")
    net = surgeon.load_onnx(tmp_path / "net.onnx")
    assert [group.size for group in surgeon.inspect(net, x)] == [80, 80]
    assert [net.initializers[name] for name in ("one", "one_2", "zero", "zero_2")] == ["one", "one", "zero", "zero"]
    slim, report, made = slimmed(untrained(), tmp_path, x)
    assert report.original is not None and slim.one.shape != slim.one_2.shape
    cut = [each for each in (slim.one, slim.one_2) if len(each) < 80]
    assert cut and [node.op_type for node in made.graph.node].count("Constant") == 3 * len(cut)
    agrees(tmp_path / "slim.onnx", slim, x=torch.randn(2, 6))


def test_sizes_that_the_file_tells_are_corrected(tmp_path: Path) -> None:
    proto = onnx.shape_inference.infer_shapes(convolutional())
    proto.ir_version = 3  # in which initializers are listed as inputs
    for each in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(each.name, each.data_type, each.dims))
    slim, _, made = slimmed(proto, tmp_path, torch.randn(2, 3, 8, 8))
    onnx.checker.check_model(made, full_check=True)
    listed = {each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in made.graph.input}
    assert listed["conv1.weight"] == list(slim.conv1.weight.shape)
    widths = [each.type.tensor_type.shape.dim[1].dim_value for each in made.graph.value_info]
    assert slim.conv1.weight.shape[0] in widths and 16 not in widths
    agrees(tmp_path / "slim.onnx", slim, x=torch.randn(2, 3, 8, 8))


def test_a_layer_norm_over_removed_channels_is_held_against_pytorch_alone(tmp_path: Path) -> None:
    proto = model(
        """net (float[n,6] x) => (float[n,5] y) {
            a = MatMul (x, w1)  b = LayerNormalization (a, g)  y = MatMul (b, w2)
        }""",
        w1=weight(6, 16), g=weight(16), w2=weight(16, 5),
    )
    slim, report, _ = slimmed(proto, tmp_path, torch.randn(2, 6))
    assert slim.w2.shape[0] < 16 and report.off_original is None
    assert any("zeros are not the same as nothing" in each for each in report.notes)


def test_a_replaced_operator_is_written_anew(tmp_path: Path) -> None:
    slim, _, _ = slimmed(convolutional(), tmp_path, torch.randn(2, 3, 8, 8))
    slim.register_buffer("mine", torch.zeros(1))
    report = surgeon.export(slim, tmp_path / "anew.onnx", example_inputs=torch.randn(2, 3, 8, 8))
    assert report.original is None and any("'mine' is not in both" in each for each in report.notes)


@pytest.mark.parametrize("rate", [16, 8])
def test_an_input_that_was_fixed_is_still_one_of_the_file(rate: int, tmp_path: Path) -> None:
    from testbed.onnx_graphs import branching

    onnx.save(branching(), tmp_path / "net.onnx")
    net = surgeon.load_onnx(tmp_path / "net.onnx", fixed={"rate": rate})
    report = surgeon.export(net, tmp_path / "same.onnx", example_inputs=torch.randn(5, 2, 6))
    assert report.original is not None
    assert onnx.load(tmp_path / "same.onnx").graph.input == branching().graph.input


def test_weights_that_are_integers_with_scales_are_written_anew(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(-127, 128, (6, 16)).astype(np.int8)
    proto = model(
        """net (float[n,6] x) => (float[n,5] y) {
            w = DequantizeLinear (whole, scale, zero)  a = MatMul (x, w)  b = Relu (a)  y = MatMul (b, w2)
        }""",
        whole=whole, scale=np.float32(0.01), zero=np.int8(0), w2=weight(16, 5),
    )
    slim, report, _ = slimmed(proto, tmp_path, torch.randn(2, 6))
    assert slim.w2.shape[0] < 16 and report.original is None
    assert any("such as integers and scales" in each for each in report.notes)
    agrees(tmp_path / "slim.onnx", slim, x=torch.randn(2, 6))


def test_a_function_of_the_file_stays_one(tmp_path: Path) -> None:
    proto = model(
        """net (float[n,6] x) => (float[n,5] y) {
            a = MatMul (x, w1)  b = mine.Twice (a)  y = MatMul (b, w2)
        }""",
        functions="""<domain: "mine", opset_import: ["" : 17]> Twice (p) => (q) { r = Relu (p)  q = Add (r, r) }""",
        domains=("mine",), w1=weight(6, 16), w2=weight(16, 5),
    )
    slim, report, made = slimmed(proto, tmp_path, torch.randn(2, 6))
    assert slim.w2.shape[0] < 16 and made.functions == proto.functions
    assert report.off_original is not None and report.off_original < 1e-5
