"""The exported file computes what PyTorch computes, or there is no file."""

import dataclasses
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxscript import ir
from torch import Tensor, nn

from surgeon.deploy import conversion
from surgeon.deploy import export as export_module
from surgeon.deploy.export import export
from surgeon.deploy.export_report import ExportReport
from surgeon.deploy.lowering import out_of_place
from surgeon.errors import ExportError, InvalidArgument, InvalidInputs, OutputError, TraceError
from tests.deploy_nets import (
    Attention,
    Clamped,
    FixedBatch,
    Masked,
    Opaque,
    ReadTwice,
    Record,
    Returning,
    SharedConv,
    Sorting,
    conv_net,
    operators,
    output_names,
    randomize,
    run,
    tamper,
)


def test_report_and_file(tmp_path: Path) -> None:
    net, x = conv_net(), torch.rand(1, 3, 8, 8)
    report = export(net, tmp_path / "net.onnx", example_inputs=x)
    assert report.path == tmp_path / "net.onnx"
    assert report.bytes == report.path.stat().st_size
    checked = {shape["input"] for shape in report.shapes_checked}
    assert report.dynamic_batch and checked == {(1, 3, 8, 8), (2, 3, 24, 16), (3, 3, 8, 8)}
    assert report.deviation < 1e-5 and report.notes == ()
    assert "free: batch, height, width" in str(report)
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    model = onnx.load(report.path)
    assert report.opset == next(entry.version for entry in model.opset_import if entry.domain == "")
    assert model.ir_version == 9  # the last that onnxruntime 1.17 reads
    batch = torch.rand(5, 3, 8, 8)
    np.testing.assert_allclose(run(report.path, batch)[0], net(batch).detach(), rtol=1e-4, atol=1e-5)


def test_names_are_the_modules_and_no_paths_are_left(tmp_path: Path) -> None:
    export(conv_net(), tmp_path / "net.onnx", example_inputs=torch.rand(1, 3, 8, 8))
    graph = onnx.load(tmp_path / "net.onnx").graph
    names = {tensor.name for tensor in graph.initializer}
    assert {"0.weight", "3.weight", "6.weight", "10.weight", "10.bias"} <= names
    assert [item.name for item in graph.input] == ["input"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert str(Path(__file__).parent).encode() not in (tmp_path / "net.onnx").read_bytes()
    assert b"stack_trace" not in (tmp_path / "net.onnx").read_bytes()


FOLDED: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "plain": (conv_net, {"Conv": 3}),
    "shared weight": (lambda: randomize(SharedConv()), {"Conv": 2}),
    "transposed": (
        lambda: randomize(nn.Sequential(nn.ConvTranspose2d(3, 6, 3), nn.BatchNorm2d(6))),
        {"ConvTranspose": 1},
    ),
    "conv read twice stays": (
        lambda: randomize(ReadTwice()),
        {"Conv": 1, "BatchNormalization": 1, "Add": 1},
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_batch_norm_is_folded(tmp_path: Path, name: str) -> None:
    make, expected = FOLDED[name]
    export(make(), tmp_path / "net.onnx", example_inputs=torch.rand(1, 3, 8, 8))
    found = operators(tmp_path / "net.onnx")
    wanted = ("Conv", "ConvTranspose", "BatchNormalization", "Add")
    assert {kind: found[kind] for kind in wanted if found[kind]} == expected


OUTPUTS = {
    "tensor": (lambda x, y: y, ["output"]),
    "tuple": (lambda x, y: (y, y + 1), ["output_0", "output_1"]),
    "the same tensor twice": (lambda x, y: (y, y), ["output_0", "output_1"]),
    "an input": (lambda x, y: (x, y), ["output_0", "output_1"]),
    "dict": (lambda x, y: {"a": y, "b": y.relu()}, ["a", "b"]),
    "named as an input": (lambda x, y: {"x": y, "linear": y + 2}, ["x_1", "linear"]),
    "named as a value inside": (lambda x, y: {"linear": y.relu(), "relu": y + 2}, ["linear", "relu"]),
    "nested with None": (
        lambda x, y: OrderedDict(logits=y, loss=None, states=(x * 2, None, y * 3)),
        ["logits", "states_0", "states_2"],
    ),
    "a constant": (lambda x, y: (y, torch.ones(3)), ["output_0", "output_1"]),
    "dataclass": (lambda x, y: Record(y), ["logits"]),
    "integers": (lambda x, y: (y.argmax(1), y > 0), ["output_0", "output_1"]),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(tmp_path: Path, name: str) -> None:
    make, names = OUTPUTS[name]
    model = Returning(make).eval()
    report = export(model, tmp_path / "m.onnx", example_inputs=torch.randn(2, 4))
    assert output_names(tmp_path / "m.onnx") == names
    assert report.dynamic_batch and not report.notes


def test_hugging_face_model_output(tmp_path: Path) -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    model = Returning(lambda x, y: outputs.BaseModelOutput(last_hidden_state=y)).eval()
    export(model, tmp_path / "m.onnx", example_inputs=torch.randn(2, 4))
    assert output_names(tmp_path / "m.onnx") == ["last_hidden_state"]


def test_an_output_that_is_no_tensor_is_named_in_the_report(tmp_path: Path) -> None:
    model = Returning(lambda x, y: {"y": y, "cache": Opaque()}).eval()
    report = export(model, tmp_path / "m.onnx", example_inputs=torch.randn(2, 4))
    assert "cache is a Opaque" in str(report)


def test_keyword_and_positional_inputs(tmp_path: Path) -> None:
    ids, mask = torch.randint(0, 10, (1, 7)), torch.ones(1, 7, dtype=torch.int64)
    keywords = {"attention_mask": mask, "input_ids": ids, "scale": 2.0}
    report = export(Masked().eval(), tmp_path / "a.onnx", example_inputs=keywords)
    assert report.dynamic_batch
    assert [i.name for i in onnx.load(tmp_path / "a.onnx").graph.input] == ["attention_mask", "input_ids"]
    report = export(Masked().eval(), tmp_path / "b.onnx", example_inputs=(ids, mask))
    assert report.dynamic_batch
    assert [i.name for i in onnx.load(tmp_path / "b.onnx").graph.input] == ["input_ids", "attention_mask"]


def test_views_are_copied_where_their_strides_are_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert, clones = conversion._convert, []

    def fail_at_first(program: torch.export.ExportedProgram, opset: int) -> ir.Model:
        clones.append(sum(node.target is torch.ops.aten.clone.default for node in program.graph.nodes))
        if len(clones) % 2:
            raise ValueError("Cannot view a tensor")
        return convert(program, opset)

    inputs = (torch.randn(2, 5, 32), torch.randn(1, 4, 5, 5))
    export(Attention(), tmp_path / "plain.onnx", example_inputs=inputs)
    monkeypatch.setattr(conversion, "_convert", fail_at_first)
    report = export(Attention(), tmp_path / "copied.onnx", example_inputs=inputs)
    assert report.dynamic_batch and report.deviation < 1e-5 and clones[0] == 0 < clones[1]
    assert operators(tmp_path / "copied.onnx") == operators(tmp_path / "plain.onnx")


class Overwriting(nn.Module):
    """Three tensors that nobody else reads are overwritten, and a part of one that somebody does."""

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu6(x * 3, inplace=True)
        z = nn.functional.leaky_relu(y + 1, 0.5, inplace=True)
        shown = z * 2
        read = shown.relu_() + shown
        shown[:, :1].clamp_(max=0.5)
        return read + shown


def test_what_is_overwritten_is_right(tmp_path: Path) -> None:
    x = torch.randn(2, 5)
    program = torch.export.export(Overwriting(), (x,), strict=False)
    assert out_of_place(program) == 3  # all but what is a view of another
    torch.testing.assert_close(program.module()(x), Overwriting()(x))
    assert export(Overwriting(), tmp_path / "m.onnx", example_inputs=x).deviation < 1e-6


def test_graph_modules(tmp_path: Path) -> None:
    net, x = conv_net(), torch.rand(2, 3, 8, 8)
    for index, module in enumerate([torch.fx.symbolic_trace(net), torch.export.export(net, (x,)).module()]):
        export(module, tmp_path / f"{index}.onnx", example_inputs=x, dynamic=False)
        assert operators(tmp_path / f"{index}.onnx")["Conv"] == 3


def test_batch_modes(tmp_path: Path) -> None:
    x = torch.randn(2, 6)
    report = export(FixedBatch(), tmp_path / "m.onnx", example_inputs=x)
    assert not report.dynamic_batch and [*report.shapes_checked] == [{"x": (2, 6)}]
    assert "all sizes fixed" in str(report)
    with pytest.raises((TraceError, ExportError)):
        export(FixedBatch(), tmp_path / "n.onnx", example_inputs=x, dynamic={"x": {0: "batch"}})
    assert not (tmp_path / "n.onnx").exists()
    report = export(conv_net(), tmp_path / "s.onnx", example_inputs=torch.rand(1, 3, 8, 8), dynamic=False)
    assert not report.dynamic_batch and [*report.shapes_checked] == [{"input": (1, 3, 8, 8)}] and not report.notes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    net = conv_net().to(dtype)
    report = export(net, tmp_path / "m.onnx", example_inputs=torch.rand(1, 3, 8, 8, dtype=dtype))
    assert str(dtype).removeprefix("torch.") in str(report)
    assert {parameter.dtype for parameter in net.parameters()} == {dtype}
    elements = {t.data_type for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert elements <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


def test_model_is_untouched(tmp_path: Path) -> None:
    net = conv_net().train()
    net[1].eval()
    modes = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.rand(2, 3, 8, 8)
    kept = x.clone()
    export(net, tmp_path / "m.onnx", example_inputs=x)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(x, kept)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", x)[0], net.eval()(x).detach(), rtol=1e-4, atol=1e-5)


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(conv_net(), tmp_path / "m.onnx", example_inputs=torch.rand(1, 3, 8, 8))
    assert capfd.readouterr() == ("", "")


def test_too_large_weights_go_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "SINGLE_FILE_BYTES", 100)
    net, x = conv_net(), torch.rand(1, 3, 8, 8)
    report = export(net, tmp_path / "m.onnx", example_inputs=x)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["m.onnx", "m.onnx.data"]
    assert report.bytes == sum(file.stat().st_size for file in files)
    np.testing.assert_allclose(run(report.path, x)[0], net(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_deviating_file_never_replaces_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.onnx"
    target.write_bytes(b"the old file")
    write = conversion.save

    def tampering_write(model: ir.Model, path: Path) -> None:
        write(model, path)
        tamper(path, "10.weight")

    monkeypatch.setattr(export_module, "save", tampering_write)
    with pytest.raises(ExportError, match=r"output 'output' deviates from PyTorch by .* tolerance 0.001"):
        export(conv_net(), target, example_inputs=torch.rand(1, 3, 8, 8))
    assert target.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [target]


def nan_net() -> nn.Module:
    net = conv_net()
    with torch.no_grad():
        net.get_parameter("10.weight").fill_(float("nan"))
    return net


X = torch.rand(1, 3, 8, 8)
REFUSED: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any], type[Exception], str]] = {
    "missing folder": (conv_net, "no/such/m.onnx", {"example_inputs": X}, OutputError, "does not exist"),
    "folder is a file": (conv_net, "file/m.onnx", {"example_inputs": X}, OutputError, "does not exist"),
    "path is a folder": (conv_net, "folder", {"example_inputs": X}, OutputError, "is a folder"),
    "no tensor": (conv_net, "m.onnx", {"example_inputs": ()}, InvalidInputs, "no tensor"),
    "not inputs": (conv_net, "m.onnx", {"example_inputs": "x"}, InvalidInputs, "is a str"),
    "empty": (conv_net, "m.onnx", {"example_inputs": X[:0]}, InvalidInputs, "is empty"),
    "wrong shape": (conv_net, "m.onnx", {"example_inputs": X[:, :2]}, InvalidInputs, r"\(1, 2, 8, 8\)"),
    "wrong keyword": (conv_net, "m.onnx", {"example_inputs": {"y": X}}, InvalidInputs, "'y'|y"),
    "too many": (conv_net, "m.onnx", {"example_inputs": (X, X)}, InvalidInputs, "input_1"),
    "tolerance": (conv_net, "m.onnx", {"example_inputs": X, "tolerance": 0.0}, InvalidArgument, "above 0"),
    "NaN tolerance": (
        conv_net,
        "m.onnx",
        {"example_inputs": X, "tolerance": float("nan")},
        InvalidArgument,
        "above 0",
    ),
    "untraceable": (Sorting, "m.onnx", {"example_inputs": X}, TraceError, "can't trace"),
    "NaN in the weights": (nan_net, "m.onnx", {"example_inputs": X}, ExportError, "nowhere finite"),
    "no output": (
        lambda: Returning(lambda x, y: None),
        "m.onnx",
        {"example_inputs": torch.randn(2, 4)},
        ExportError,
        "no tensor",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    make, path, arguments, error, message = REFUSED[name]
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        export(make(), tmp_path / path, **arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unwritable_folder_is_noticed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("surgeon.support.scratch._make", refuse)
    net = conv_net()
    net.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(OutputError, match="can't be written"):
        export(net, tmp_path / "m.onnx", example_inputs=X)


def test_report_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ExportReport(Path("a"), 1, 20, {}, 0.0, ()).bytes = 2  # type: ignore[misc]


def test_several_clamps_of_one_tensor(tmp_path: Path) -> None:
    assert export(Clamped(), tmp_path / "m.onnx", example_inputs=torch.randn(2, 5)).deviation < 1e-6
