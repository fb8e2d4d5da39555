"""A module of an ONNX file: it computes the file, and is a module like any other."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import surgeon
from surgeon.errors import InvalidArgument, InvalidInputs, InvalidModel, SurgeonError
from surgeon.frontend.free_sizes import free_sizes
from surgeon.frontend.notes import FILE
from surgeon.frontend.trace import trace
from surgeon.onnx_import.usual import usual_shapes
from testbed.onnx_graphs import branching, convolutional, model, strided, weight


def loaded(proto: onnx.ModelProto, folder: Path, **options: Any) -> Any:
    onnx.save(proto, folder / "net.onnx")
    return surgeon.load_onnx(folder / "net.onnx", **options)


def by_onnxruntime(proto: onnx.ModelProto, **feeds: Any) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(value) for name, value in feeds.items()})


@pytest.mark.parametrize("size", [(2, 3, 8, 8), (1, 3, 11, 6)])
def test_it_computes_the_file_at_every_size(size: tuple[int, ...], tmp_path: Path) -> None:
    net = loaded(convolutional(), tmp_path)
    x = torch.randn(size)
    np.testing.assert_allclose(
        net(x).detach().numpy(), by_onnxruntime(convolutional(), x=x)[0], rtol=1e-4, atol=1e-5
    )
    assert torch.equal(net(x), net(**{"x": x}))


def test_tensors_have_the_names_of_the_initializers(tmp_path: Path) -> None:
    net = loaded(convolutional(), tmp_path)
    trained = {"conv1.weight", "conv1.bias", "bn.weight", "bn.bias", "conv2.weight", "fc.weight", "fc.bias"}
    assert {name for name, _ in net.named_parameters()} == trained
    assert {name for name, _ in net.named_buffers()} == {"bn.mean", "bn.var"}
    assert net.initializers == {name: name for name in net.state_dict()}


def test_names_that_torch_does_not_take_are_like_them(tmp_path: Path) -> None:
    proto = model("net (float[n,3] x) => (float[n,2] y) { y = MatMul(x, w) }", w=weight(3, 2))
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = 'forward"]; a/b:0'
    net = loaded(proto, tmp_path)
    assert net.initializers == {"forward____a/b:0": 'forward"]; a/b:0'}
    assert net(torch.ones(2, 3)).shape == (2, 2)
    assert "forward____a/b:0" in dict(net.named_parameters())


def test_gradients_reach_every_parameter(tmp_path: Path) -> None:
    net = loaded(convolutional(), tmp_path)
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in net.parameters())


def test_train_mode_uses_the_statistics_of_the_batch(tmp_path: Path) -> None:
    net = loaded(convolutional(), tmp_path)
    x, before = torch.randn(4, 3, 8, 8), net.bn.mean.clone()
    quiet = net(x)
    assert not torch.allclose(net.train()(x), quiet) and not torch.equal(net.bn.mean, before)


def test_dropout_drops_in_train_mode_alone(tmp_path: Path) -> None:
    net = loaded(model("net (float[n,64] x) => (float[n,64] y) { y = Dropout(x) }"), tmp_path)
    x = torch.ones(2, 64)
    assert torch.equal(net(x), x) and 0 < int((net.train()(x) == 0).sum()) < 128


def test_free_sizes_stay_free_in_a_trace(tmp_path: Path) -> None:
    net = loaded(convolutional(), tmp_path)
    dims = ({0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)},)
    program = torch.export.export(net, (torch.randn(2, 3, 8, 12),), dynamic_shapes={"x": dims[0]}, strict=False)
    x = torch.randn(3, 3, 9, 7)
    torch.testing.assert_close(program.module()(x), net(x))


def test_what_the_file_fixes_is_checked(tmp_path: Path) -> None:
    net = loaded(convolutional(), tmp_path)
    with pytest.raises(InvalidInputs, match=r"input 'x' is of shape \(2, 4, 8, 8\), the file takes \(n, 3, h, w\)"):
        net(torch.randn(2, 4, 8, 8))
    with pytest.raises(InvalidInputs, match="'x' is of int64, the file takes float32"):
        net(torch.ones(2, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(InvalidInputs, match="input 'x' is missing"):
        net()


def test_example_inputs_are_made_up(tmp_path: Path) -> None:
    net = loaded(convolutional(), tmp_path, sizes={"h": 16, "x:3": 20})
    assert net.dummy_inputs["x"].shape == (2, 3, 16, 20)
    with pytest.raises(InvalidArgument, match=r"no free axis 'depth'; the file takes x \(n, 3, h, w\)"):
        loaded(convolutional(), tmp_path, sizes={"depth": 1})


@pytest.mark.parametrize("rate", [16, 8])
def test_a_branch_follows_the_value_of_an_input(rate: int, tmp_path: Path) -> None:
    x = torch.randn(5, 2, 6)
    wanted = by_onnxruntime(branching(), x=x, rate=np.int64(rate))[0]
    net = loaded(branching(), tmp_path)
    np.testing.assert_allclose(net(x, torch.tensor(rate)).detach().numpy(), wanted, rtol=1e-4, atol=1e-6)
    fixed = loaded(branching(), tmp_path, fixed={"rate": rate})
    np.testing.assert_allclose(fixed(x).detach().numpy(), wanted, rtol=1e-4, atol=1e-6)
    with pytest.raises(InvalidInputs, match="'rate' was fixed at"):
        fixed(x, torch.tensor(3))


def test_both_branches_are_traced(tmp_path: Path) -> None:
    net = loaded(branching(), tmp_path)
    x, rate = torch.randn(5, 2, 6), torch.tensor(16)
    found = trace(net, (x, rate)).module
    for value in (16, 8):
        torch.testing.assert_close(found(x, torch.tensor(value)), net(x, torch.tensor(value)))


def test_a_graph_does_not_take_the_sizes_at_which_another_branch_runs(tmp_path: Path) -> None:
    text = """net (float[n,6] x, int64 rate) => (float[n,2] y) {
        h = MatMul (x, u)  z = Relu (h)  wanted = Constant <value_int = 16> ()  same = Equal (rate, wanted)
        y = If (same) <
            then_branch = one () => (float[a,b] p) { p = MatMul (z, w) },
            else_branch = two () => (float[a,b] q) { r = MatMul (z, v) q = Reshape (r, to) }
        >
    }"""
    weights: dict[str, Any] = {"u": weight(6, 16), "w": weight(16, 2), "v": weight(16, 4), "to": np.array([6, 2])}
    net = loaded(model(text, **weights), tmp_path)
    x, rate = torch.ones(3, 6), torch.tensor(8)
    assert net(x, rate).shape == (6, 2)
    slim = surgeon.shrink(net, 0.3, example_inputs=(x[:2], torch.tensor(16)), form="graph", compensate=False, align=1)
    with pytest.raises(SurgeonError, match="takes"):
        slim(x, rate)


def test_a_copy_shares_the_file_alone(tmp_path: Path) -> None:
    net = loaded(convolutional(), tmp_path)
    twin = copy.deepcopy(net)
    assert twin.source is net.source and twin.fc.weight is not net.fc.weight
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(twin(x), net(x))


def test_halved_as_any_module(tmp_path: Path) -> None:
    net = loaded(convolutional(), tmp_path)
    slim, report = surgeon.shrink(net, 0.5, return_report=True, align=1, example_inputs=torch.randn(2, 3, 8, 8))
    assert report.certificate.deviation < 1e-12
    assert slim.conv1.weight.shape[0] < 16 and slim.bn.mean.shape == slim.conv1.weight.shape[:1]
    assert slim(torch.randn(3, 3, 12, 10)).shape == (3, 5)
    assert getattr(slim, FILE) is net.source
    assert net.source.tensors["conv1.weight"].name == net.initializers["conv1.weight"] == "conv1.weight"
    assert any(each is net.source.nodes["operators.Conv_0"] for each in net.source.model.graph.node)


def test_in_double_precision(tmp_path: Path) -> None:
    text = """net (float[n,4] x) => (float[n,4] y) {
        a = Cast <to = 1> (x)  b = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> ()  c = Add (a, b)  y = Mul (c, w)
    }"""
    net = loaded(model(text, w=weight(4)), tmp_path).double()
    assert net(torch.ones(2, 4, dtype=torch.float64)).dtype is torch.float64


def test_functions_of_the_file_are_put_in_place(tmp_path: Path) -> None:
    proto = model(
        """net (float[n,3] x) => (float[n,3] y) { t = own.scaled <by = 3.0> (x, w)  y = own.scaled (t, w) }""",
        domains=("own",), w=weight(3),
        functions="""<domain: "own", opset_import: ["" : 17]>
        scaled <by: float = 2.0> (a, b) => (c) {
            f = Constant <value_float: float = @by> ()  d = Mul (a, f)  c = Add (d, b)
        }""",
    )
    net, x = loaded(proto, tmp_path), torch.randn(4, 3)
    w = torch.from_numpy(weight(3))
    torch.testing.assert_close(net(x), ((x * 3 + w) * 2) + w)


def test_weights_in_another_file_of_the_folder(tmp_path: Path) -> None:
    proto = convolutional()
    onnx.save(proto, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    x = torch.randn(2, 3, 8, 8)
    np.testing.assert_allclose(
        surgeon.load_onnx(tmp_path / "net.onnx")(x).detach().numpy(), by_onnxruntime(convolutional(), x=x)[0],
        rtol=1e-4, atol=1e-5,
    )


def test_initializers_that_are_inputs_too_and_nodes_in_any_order(tmp_path: Path) -> None:
    text = "net (float[n,3] x, float[3,2] w) => (float[n,2] y) { t = MatMul (x, w)  y = Relu (t) }"
    proto = model(text, w=weight(3, 2))
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes[::-1])
    net, x = loaded(proto, tmp_path), torch.randn(2, 3)
    torch.testing.assert_close(net(x), torch.relu(x @ torch.from_numpy(weight(3, 2))))
    assert [port.name for port in net.inputs] == ["x"]


def test_constants_are_parameters_where_a_file_has_no_initializers(tmp_path: Path) -> None:
    text = "net (float[n,2] x) => (float[n,2] y) { w = Constant <value = float[2] {1.0, 2.0}> ()  y = Mul (x, w) }"
    assert [name for name, _ in loaded(model(text), tmp_path).named_parameters()] == ["w"]
    text = text.replace("Mul (x, w)", "Mul (x, w)").replace("y = Mul (x, w)", "t = Mul (x, w)  y = Add (t, v)")
    net = loaded(model(text, v=weight(2)), tmp_path)
    assert [name for name, _ in net.named_parameters()] == ["v"]
    assert [name for name, _ in net.named_buffers()] == ["w"]


def test_an_operator_that_is_not_known_is_named(tmp_path: Path) -> None:
    proto = model("net (float[n] x) => (float[n] y) { y = far.Away (x) }", domains=("far",))
    with pytest.raises(InvalidModel, match=r"the node 0 \(Away\): far.Away is an operator that is not known"):
        loaded(proto, tmp_path)


def stateful(batch: str) -> onnx.ModelProto:
    """A recurrent layer whose state is given, of two layers for one of which there is a use."""
    return model(
        f"""net (float[t,n,6] x, float[2,{batch},4] state) => (float[t,n,4] y) {{
            start = Slice (state, zero, one, zero)  r, h, c = LSTM <hidden_size = 4> (x, w, k, b, , start, start)
            y = Squeeze (r, one)
        }}""",
        w=weight(1, 16, 6), k=weight(1, 16, 4), b=weight(1, 32), zero=np.array([0]), one=np.array([1]),
    )


def test_a_state_of_another_batch_is_refused(tmp_path: Path) -> None:
    net = loaded(stateful("m"), tmp_path)
    assert net(torch.ones(3, 2, 6), torch.zeros(2, 2, 4)).shape == (3, 2, 4)
    with pytest.raises(InvalidInputs, match=r"a state of \(1, 1, 4\), where \(directions, batch, hidden\) are"):
        net(torch.ones(3, 2, 6), torch.zeros(2, 1, 4))


@pytest.mark.parametrize("batch", ["n", "m"])
def test_sizes_that_go_together_are_found(batch: str, tmp_path: Path) -> None:
    net = loaded(stateful(batch), tmp_path)
    found = free_sizes(net, ((torch.ones(3, 2, 6), torch.zeros(2, 2, 4)), {}))
    assert {each.place for each in found.free} == {(0, 0), (0, 1), (1, 1)}


def test_values_that_are_read_by_their_numbers_in_order_keep_their_axes(tmp_path: Path) -> None:
    proto, x = strided("n", 0), torch.randn(3, 3, 6, 6)
    net = loaded(proto, tmp_path)
    np.testing.assert_allclose(net(x).detach().numpy(), by_onnxruntime(proto, x=x)[0], rtol=1e-4, atol=1e-5)
    assert [group.size for group in surgeon.inspect(net, x)] == [8]
    slim = surgeon.shrink(net, 0.5, example_inputs=x, align=1, compensate=False)
    report = surgeon.export(slim, tmp_path / "slim.onnx", example_inputs=x)
    assert slim(x).shape == (3, 5) and report.original is None and "written anew" in report.notes[0]


@pytest.mark.parametrize("proto", [strided("n", 0, more=1), strided("n", 1, more=1)], ids=["fewer rows", "an offset"])
def test_values_that_are_read_by_other_numbers_are_right(proto: onnx.ModelProto, tmp_path: Path) -> None:
    net, x = loaded(proto, tmp_path), torch.randn(3, 3, 6, 6)
    np.testing.assert_allclose(net(x).detach().numpy(), by_onnxruntime(proto, x=x)[0], rtol=1e-4, atol=1e-5)


def test_a_file_that_was_exported_here_tells_its_sizes(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    surgeon.export(net, tmp_path / "net.onnx", example_inputs=torch.randn(4, 3, 20, 12))
    (made,) = surgeon.load_onnx(tmp_path / "net.onnx").dummy_inputs.values()
    assert made.shape[1:] == (3, 20, 12)
    (made,) = surgeon.load_onnx(tmp_path / "net.onnx", sizes={"height": 32}).dummy_inputs.values()
    assert made.shape[1:] == (3, 32, 12)
    assert {name: shape[1:] for name, shape in usual_shapes(tmp_path / "net.onnx").items()} == {"input": (3, 20, 12)}
    (tmp_path / "none.onnx").write_bytes(b"none")
    assert usual_shapes(tmp_path / "none.onnx") == {}
