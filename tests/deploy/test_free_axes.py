"""Every axis that a model leaves free is free in its ONNX file, and the file is right there; what is not is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.deploy import lowering
from surgeon.deploy.conversion import OPSETS
from surgeon.deploy.export import export
from surgeon.deploy.export_report import ExportReport
from surgeon.device.benchmark import benchmark
from surgeon.device.onnx_protobuf import OPSET
from surgeon.device.ort_session import make_feeds, open_session
from surgeon.errors import ExportError, InvalidArgument, TraceError
from surgeon.support.documents import EXAMPLE
from surgeon.support.time_limit import TimeIsUp
from tests.deploy_nets import conv_net, operators, output_names, run


class Segmenting(nn.Module):
    """As many classes for each pixel, at the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(F.relu(self.down(x)))
        return F.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=False)


class Reading(nn.Module):
    """Tokens and a mask of one length, with a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places, self.out = nn.Embedding(11, 8), nn.Embedding(32, 8), nn.Linear(8, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.table(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        scores = (x @ x.transpose(1, 2)).masked_fill(~mask[:, None].bool(), float("-inf"))
        return self.out(scores.softmax(-1) @ x)


class Patches(nn.Module):
    """A position table that fixes height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.places = nn.Conv2d(3, 8, 1), nn.Parameter(torch.randn(1, 16, 8))

    def forward(self, x: Tensor) -> Tensor:
        return (self.cut(x).flatten(2).transpose(1, 2) + self.places).mean(1)


class Summing(nn.Module):
    """A loop over the steps of a sequence, which a graph repeats as often as in the example."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x[:, 0])
        for step in range(int(x.shape[1])):
            y = y * 0.5 + x[:, step]
        return y


class Halving(nn.Module):
    """Takes another way on long inputs, by numbers that a trace keeps."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1) / float(len(x[0].tolist()) if not torch.compiler.is_exporting() else 5)


IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
Shapes = dict[str, tuple[int | str, ...]]
FREE: dict[str, tuple[type[nn.Module], tuple[Tensor, ...], Shapes, tuple[Tensor, ...]]] = {
    "segmenting": (
        Segmenting, (torch.randn(1, 3, 16, 16),), {"x": ("batch", 3, "height", "width")},
        (torch.randn(3, 3, 22, 12),),
    ),
    "reading": (
        Reading, (IDS, torch.ones(2, 5)), {"ids": ("batch", "length"), "mask": ("batch", "length")},
        (IDS[:1, :3].repeat(4, 3), torch.ones(4, 9)),
    ),
    "position table": (
        Patches, (torch.randn(2, 3, 4, 4),), {"x": ("batch", 3, 4, 4)}, (torch.randn(5, 3, 4, 4),),
    ),
}


@pytest.mark.parametrize("name", FREE)
def test_what_the_model_leaves_free_is_free(tmp_path: Path, name: str) -> None:
    make, inputs, shapes, others = FREE[name]
    net = make().eval()
    report = export(net, tmp_path / "m.onnx", example_inputs=inputs)
    assert dict(report.inputs) == shapes and not report.notes and report.dynamic_batch
    names = dict.fromkeys(size for shape in shapes.values() for size in shape if isinstance(size, str))
    assert f"free: {', '.join(names)}," in str(report)
    declared = {
        item.name: tuple(dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim)
        for item in onnx.load(report.path).graph.input
    }
    assert declared == shapes
    for each in (inputs, others):
        np.testing.assert_allclose(run(report.path, *each)[0], net(*each).detach(), rtol=1e-3, atol=1e-5)


def test_a_length_that_a_trace_unrolls_is_fixed_and_said_to_be(tmp_path: Path) -> None:
    x = torch.randn(2, 4, 3)
    report = export(Summing(), tmp_path / "m.onnx", example_inputs=x)
    assert report.inputs["x"][1] == 4 and report.inputs["x"][0] == "batch"
    (note,) = report.notes
    assert "fixed, though the model leaves it free: axis 1 of x (4), because" in note and note in str(report)
    longer = torch.randn(5, 4, 3)
    np.testing.assert_allclose(run(report.path, longer)[0], Summing()(longer), rtol=1e-5)
    with pytest.raises((TraceError, ExportError)):
        export(Summing(), tmp_path / "n.onnx", example_inputs=x, dynamic={"x": {1: "steps"}})
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


def test_a_file_that_is_wrong_at_another_length_has_it_fixed(tmp_path: Path) -> None:
    report = export(Halving(), tmp_path / "m.onnx", example_inputs=torch.randn(2, 5))
    assert report.inputs == {"x": ("batch", 5)}
    assert "because at other sizes, output 'output' deviates" in report.notes[0]


def test_a_trace_without_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, tried = torch.export.export, []

    def slow(*args: Any, **kwargs: Any) -> Any:
        free = [axes for axes in kwargs["dynamic_shapes"][0] if axes]
        tried.append(sorted({axis for axes in free for axis in axes}))
        if any(axis for axes in free for axis in axes):
            raise TimeIsUp
        return trace(*args, **kwargs)

    monkeypatch.setattr(torch.export, "export", slow)
    report = export(conv_net(), tmp_path / "m.onnx", example_inputs=torch.rand(1, 3, 8, 8))
    assert tried == [[0, 2, 3], [0]] and report.inputs["input"] == ("batch", 3, 8, 8)
    assert "axis 2 of input (8), axis 3 of input (8), because torch.export didn't get done" in report.notes[0]


MODES: dict[str, tuple[Any, tuple[int | str, ...]]] = {
    "default": (None, ("batch", 3, "height", "width")),
    "all": (True, ("batch", 3, "height", "width")),
    "none": (False, (1, 3, 8, 8)),
    "batch": ("batch", ("batch", 3, 8, 8)),
    "named": ({"input": {2: "rows", -1: "columns"}}, ("batch", 3, "rows", "columns")),
    "fixed": ({"input": {0: False, 3: False}}, (1, 3, "height", 8)),
    "all fixed": ({"input": False}, (1, 3, 8, 8)),
}


@pytest.mark.parametrize("name", MODES)
def test_axes_as_asked_for(tmp_path: Path, name: str) -> None:
    dynamic, shape = MODES[name]
    report = export(conv_net(), tmp_path / "m.onnx", example_inputs=torch.rand(1, 3, 8, 8), dynamic=dynamic)
    assert report.inputs == {"input": shape} and not report.notes


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such input": ({"dynamic": {"y": {2: "height"}}}, "no input 'y'; its inputs are input"),
    "no such axis": ({"dynamic": {"input": {4: "height"}}}, "'input' has 4 axes"),
    "an axis of channels": ({"dynamic": {"input": {1: "c"}}}, "axis 1 of 'input' can't be free, the model fixes"),
    "a word": ({"dynamic": "all"}, "dynamic"),
    "a list": ({"dynamic": {"input": [2, 3]}}, "give axes and their names, or False"),
    "no name": ({"dynamic": {"input": {2: 5}}}, "give an axis its name"),
    "an odd name": ({"dynamic": {"input": {2: "2 * height"}}}, "give an axis its name"),
    "an old opset": ({"opset": 11}, "from 18 to 23"),
    "too many names": ({"input_names": ["a", "b"]}, "holds 2 names for 1 tensors: input"),
    "no names": ({"output_names": "y"}, "names, one for each tensor"),
    "a name twice": ({"output_names": ["y", "y"]}, "twice"),
    "a name of both": ({"input_names": ["y"], "output_names": ["y"]}, "an input's name too"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    given, message = REFUSED[name]
    with pytest.raises(InvalidArgument, match=message):
        export(conv_net(), tmp_path / "m.onnx", example_inputs=torch.rand(1, 3, 8, 8), **given)
    assert not [*tmp_path.iterdir()]


def test_names_and_opset(tmp_path: Path) -> None:
    report = export(
        conv_net(), tmp_path / "m.onnx", example_inputs=torch.rand(1, 3, 8, 8), dynamic={"image": {2: "h"}}, opset=18,
        input_names=["image"], output_names=("scores",),
    )
    assert report.opset == 18 and report.inputs == {"image": ("batch", 3, "h", "width")}
    assert output_names(report.path) == ["scores"]
    assert next(each.version for each in onnx.load(report.path).opset_import if each.domain == "") == 18


def test_inputs_are_inferred(tmp_path: Path) -> None:
    report = export(nn.Sequential(nn.Linear(5, 3), nn.ReLU()), tmp_path / "m.onnx")
    assert report.inputs == {"input": ("batch", 5)}


def test_a_file_tells_at_what_size_to_run_it(tmp_path: Path) -> None:
    x = torch.rand(2, 3, 8, 10)
    paths = [
        export(conv_net(), tmp_path / f"{mode}.onnx", example_inputs=x, dynamic=mode).path for mode in (None, "batch")
    ]
    sessions = [open_session(path) for path in paths]
    assert json.loads(sessions[0].get_modelmeta().custom_metadata_map[EXAMPLE]) == {"input": [1, 3, 8, 10]}
    assert [make_feeds(session)["input"].shape for session in sessions] == [(1, 3, 8, 10)] * 2
    assert benchmark(*paths, runs=30).runs == 30
    model = onnx.load(paths[0])
    for wrong in ("[", "[1]", '{"input": [1, "a"]}'):
        model.metadata_props[0].value = wrong
        onnx.save(model, tmp_path / "wrong.onnx")
        assert make_feeds(open_session(tmp_path / "wrong.onnx"))["input"].shape == (1, 3, 1, 1)
    assert make_feeds(open_session(tmp_path / "wrong.onnx"), sessions[1])["input"].shape == (1, 3, 8, 10)


@torch.library.custom_op("surgeon_tests::grouped", mutates_args=())
def grouped(rows: Tensor, matrices: Tensor, offs: Tensor) -> Tensor:
    starts = [0, *offs.tolist()]
    parts = zip(matrices, starts, offs.tolist(), strict=False)
    return torch.cat([rows[start:end] @ matrix for matrix, start, end in parts])


@grouped.register_fake
def _(rows: Tensor, matrices: Tensor, offs: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], matrices.shape[2])


class Experts(nn.Module):
    """Rows, sorted by the number of their group, are multiplied with the matrix of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8, 4))

    def forward(self, x: Tensor, group: Tensor) -> Tensor:
        ends = (group <= torch.arange(3)[:, None]).sum(1)
        return grouped(x, self.weight, offs=ends.to(torch.int32))


class Airy(nn.Module):
    """Something that ONNX has no operator for."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.airy_ai(x)


def test_grouped_products_are_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = torch.randn(7, 8), torch.tensor([0, 0, 2, 2, 2, 2, 2])
    with pytest.raises(ExportError, match=r"can't translate the operator surgeon_tests\.grouped\.default"):
        export(Experts(), tmp_path / "m.onnx", example_inputs=inputs, dynamic=False)
    monkeypatch.setattr(lowering, "_GROUPED", {"surgeon_tests::grouped"})
    net = Experts()
    report = export(net, tmp_path / "m.onnx", example_inputs=inputs, dynamic=False)
    assert operators(report.path)["MatMul"] == 1
    for group in ([0, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 2, 2], [0] * 7):
        each = inputs[0], torch.tensor(group)
        np.testing.assert_allclose(run(report.path, *each)[0], net(*each).detach(), rtol=1e-4, atol=1e-5)


def test_an_operator_without_a_translation_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"can't translate the operator aten\.special_airy_ai\.default"):
        export(Airy(), tmp_path / "m.onnx", example_inputs=torch.rand(2, 3))
    assert not [*tmp_path.iterdir()]


def test_the_report_reads_as_text() -> None:
    report = ExportReport(
        Path("m.onnx"), 10**6, 20, {"x": ("batch", 3)}, 1e-6, ({"x": (2, 3)}, {"x": (3, 3)}), ("a note",)
    )
    assert str(report) == (
        "m.onnx: 1.00 MB, opset 20, free: batch, deviation from PyTorch 1.0e-06 (largest of 2 shapes)\n"
        "  x (batch, 3)\n  a note"
    )
    assert "all sizes fixed" in str(ExportReport(Path("m.onnx"), 10, 20, {"x": (2, 3)}, 0.0, ()))
    assert OPSET in OPSETS
