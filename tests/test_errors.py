"""Bad input: a row each, with the kind of error and a piece of its message; and nothing has changed afterwards."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import surgeon
from surgeon.errors import (
    Infeasible,
    InvalidArgument,
    InvalidInputs,
    InvalidModel,
    NotEquivalent,
    NothingToPrune,
    OutputError,
    PlanError,
    SurgeonError,
    SurgeryError,
    TraceError,
    WeightsError,
)


class Net(nn.Module):
    """Two layers with units of their own between them."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(8, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.last = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


class Branches(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


class Sparse(Net):
    def __init__(self) -> None:
        super().__init__()
        self.first.weight = nn.Parameter(self.first.weight.detach().to_sparse())


def with_values(name: str, value: float) -> Net:
    model = Net()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = value
    return model


def buffer_of_nan() -> Net:
    model = Net()
    model.get_buffer("norm.running_mean")[2] = torch.nan
    return model


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear})


X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def nothing_changed(act: Callable[[], object], model: Any, kind: type[SurgeonError], message: str) -> None:
    """`act` raises, and `model` is as it was, down to its memory."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())} if isinstance(model, nn.Module) else {}
    values = {name: tensor.clone() for name, tensor in tensors.items() if not is_lazy(tensor) and not tensor.is_meta}
    modes = [m.training for m in model.modules()] if isinstance(model, nn.Module) else []
    with pytest.raises(kind, match=f"(?s){message}") as caught:
        act()
    assert type(caught.value) is kind
    if isinstance(model, nn.Module):
        after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        assert all(after[name] is tensor for name, tensor in tensors.items())
        for name, value in values.items():
            torch.testing.assert_close(after[name].to_dense(), value.to_dense(), rtol=0, atol=0, equal_nan=True)
        assert [m.training for m in model.modules()] == modes


# options, kind, message; the model is Net and the inputs are X unless the options say otherwise
ARGUMENTS: list[tuple[str, dict[str, Any], type[SurgeonError], str]] = [
    ("ratio of one", {"ratio": 1}, InvalidArgument, r"ratio=1: .*at least 0 and less than 1"),
    ("ratio above one", {"ratio": 1.5}, InvalidArgument, r"ratio=1\.5"),
    ("ratio below zero", {"ratio": -0.1}, InvalidArgument, r"ratio=-0\.1"),
    ("ratio that is text", {"ratio": "half"}, InvalidArgument, r"ratio='half'"),
    ("ratio that is none", {"ratio": None}, InvalidArgument, r"ratio to remove, latency_ms, min_agreement, or"),
    ("ratio of NaN", {"ratio": float("nan")}, InvalidArgument, r"ratio=nan"),
    ("ratio that is infinite", {"ratio": float("inf")}, InvalidArgument, r"ratio=inf"),
    ("ratio that is a truth", {"ratio": True}, InvalidArgument, r"ratio=True"),
    ("ratio that is a tensor", {"ratio": torch.tensor(0.5)}, InvalidArgument, r"ratio=tensor"),
    ("ratio that can't be reached", {"ratio": 0.99}, Infeasible, r"at most|only"),
    ("model that is a class", {"model": Net}, InvalidArgument, "model is a type, not a torch.nn.Module"),
    ("model that is a function", {"model": torch.relu}, InvalidArgument, "not a torch.nn.Module"),
    ("model that is a state_dict", {"model": Net().state_dict()}, InvalidArgument, "OrderedDict, not a torch"),
    ("model with control flow on values", {"model": Branches()}, TraceError,
     r"torch\.export can't trace Branches: .*[Dd]ata.dependent.*Remedy: .*torch\.cond"),
    ("nothing to prune", {"model": nn.Linear(8, 4)}, NothingToPrune, "an (in|out)put of the model"),
    ("no parameters", {"model": nn.ReLU()}, NothingToPrune, "no"),
    ("everything ignored", {"ignore": "*"}, NothingToPrune, "left alone, as asked by ignore"),
    ("NaN in a weight", {"model": with_values("first.weight", torch.nan)}, InvalidModel,
     r"first\.weight \(32, 8\) holds NaN or infinity in 1 of 256 places"),
    ("infinity in a bias", {"model": with_values("last.bias", torch.inf)}, InvalidModel, r"last\.bias \(4,\)"),
    ("NaN in a buffer", {"model": buffer_of_nan()}, InvalidModel, r"norm\.running_mean \(32,\) holds NaN in 1"),
    ("sparse weights", {"model": Sparse()}, InvalidModel, r"first\.weight.*sparse"),
    ("weights without a shape yet", {"model": nn.Sequential(nn.LazyLinear(16), nn.Linear(16, 4))}, InvalidModel,
     r"0\.weight has no shape yet; run the model once"),
    ("quantized weights", {"model": quantized()}, InvalidModel, "is quantized; prune the floating model"),
    ("weights on the meta device", {"model": Net().to("meta")}, InvalidModel, r"first\.weight.*meta device"),
    ("inputs of another size", {"example_inputs": torch.randn(2, 9)}, InvalidInputs,
     r"Net\.forward does not run on example inputs of shapes \[\(2, 9\)\]"),
    ("inputs of another type", {"example_inputs": torch.zeros(2, 8, dtype=torch.long)}, InvalidInputs, "does not run"),
    ("a batch of nothing", {"example_inputs": torch.zeros(0, 8)}, InvalidInputs, "a batch of size 0"),
    ("too many inputs", {"example_inputs": (X, X)}, InvalidInputs, r"\(2, 8\), \(2, 8\).*positional argument"),
    ("inputs by a name that is none", {"example_inputs": {"y": X}}, InvalidInputs, "unexpected keyword argument 'y'"),
    ("inputs that are text", {"example_inputs": "x"}, InvalidInputs, "example_inputs is a str; give a tensor, a tuple"),
    ("inputs that are a shape", {"example_inputs": (2, 8)}, InvalidInputs, "holds no tensor"),
    ("inputs that are a number", {"example_inputs": 3}, InvalidInputs, "example_inputs is a int"),
    ("no inputs", {"example_inputs": ()}, InvalidInputs, "holds no tensor"),
    ("ignore a name that is none", {"ignore": "frist"}, InvalidArgument, r"ignore: 'frist' .*did you mean first"),
    ("ignore a module of another model", {"ignore": nn.Linear(2, 2)}, InvalidArgument, "not a part of the model"),
    ("ignore a number", {"ignore": [3]}, InvalidArgument, "ignore holds a int"),
    ("ignore a number alone", {"ignore": 3}, InvalidArgument, "ignore"),
    ("unknown importance", {"importance": "hessian"}, InvalidArgument, "'hessian' is not a criterion; .*magnitude"),
    ("importance that is a number", {"importance": 3}, InvalidArgument, "importance is a int"),
    ("importance of another size", {"importance": lambda groups, group, rng: [1.0]}, InvalidArgument,
     r"expected scores of shape \(32,\)"),
    ("budget that is none", {"budget": None}, InvalidArgument, r"macs.*params.*channels.*latency"),
    ("unknown scope", {"scope": "layer"}, InvalidArgument, "scope='layer'.*global, local"),
    ("align of zero", {"align": 0}, InvalidArgument, "align=0: give an integer of at least 1"),
    ("align that is a share", {"align": 0.5}, InvalidArgument, r"align=0\.5"),
    ("align that is a truth", {"align": True}, InvalidArgument, "align=True"),
    ("min_width above all", {"min_width": 1.5}, InvalidArgument, r"min_width=1\.5: give a share"),
    ("min_width of no unit", {"min_width": 0}, InvalidArgument, "min_width=0"),
    ("min_width that is text", {"min_width": "all"}, InvalidArgument, "min_width='all'"),
    ("min_width of no group", {"min_width": {"frist": 0.5}}, InvalidArgument, "no group is named 'frist'; there are"),
    ("unknown form", {"form": "onnx"}, InvalidArgument, "form='onnx'.*auto.*module.*graph"),
    ("seed that is text", {"seed": "x"}, InvalidArgument, "seed='x'"),
    ("seed below zero", {"seed": -1}, InvalidArgument, "seed=-1"),
]


@pytest.mark.parametrize(("options", "kind", "message"), [pytest.param(*row[1:], id=row[0]) for row in ARGUMENTS])
def test_shrink_refuses(options: dict[str, Any], kind: type[SurgeonError], message: str) -> None:
    given = {"model": Net(), "ratio": 0.5, "example_inputs": X, **options}
    nothing_changed(lambda: surgeon.shrink(**given), given["model"], kind, message)


@pytest.fixture(scope="module")
def slim() -> nn.Module:
    return surgeon.shrink(Net(), 0.5, example_inputs=X, align=1)


@pytest.fixture
def folder(slim: nn.Module, tmp_path: Path) -> Path:
    surgeon.save(slim, tmp_path / "slim")
    return tmp_path / "slim"


def first_cut(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda data: data["cuts"][0].update(changes)


# what is done to plan.json, kind, message; the plan is then read and applied
PLANS: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("of another format", lambda data: data.update(format="other"), r"plan\.json"),
    ("of a newer version", lambda data: data.update(version=3), "version 3.*update surgeon"),
    ("of steps that are none", lambda data: data.update(version=2, steps=[3]), r"steps\[0\].*int"),
    ("of one step", lambda data: data.update(version=2, steps=[dict(data)]), "at least two are expected"),
    ("of a tensor that is none", first_cut(tensor="head.weight"), r"head\.weight axis 0.*no such tensor"),
    ("of an axis that is none", first_cut(axis=2), r"axis 2"),
    ("of another size", first_cut(size=64), r"32.*another architecture|another architecture.*32"),
    ("index out of range", first_cut(keep=[0, 32]), "index 32 is out of range for 32 positions"),
    ("index below zero", first_cut(keep=[-1, 0]), "index -1 is out of range"),
    ("index twice", first_cut(keep=[0, 0]), "repeated"),
    ("indices unsorted", first_cut(keep=[1, 0]), "not strictly ascending"),
    ("no index", first_cut(keep=[]), "no index is kept"),
    ("other units than its other cuts", first_cut(keep=[0]), "belong to the units that its other cuts keep"),
    ("no cuts", lambda data: data.pop("cuts"), '"cuts" is missing'),
]


@pytest.mark.parametrize(("change", "message"), [pytest.param(*row[1:], id=row[0]) for row in PLANS])
def test_a_plan_is_refused(folder: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    path = folder / "plan.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    model = Net()
    nothing_changed(lambda: surgeon.Plan.load(path).apply(model), model, PlanError, message)


def test_a_plan_that_was_cut_short_is_refused(folder: Path) -> None:
    path = folder / "plan.json"
    path.write_bytes(path.read_bytes()[:-50])
    nothing_changed(lambda: surgeon.load(folder, Net()), None, PlanError, r"plan\.json.*cut short")


def test_a_plan_for_another_width_is_refused(slim: nn.Module) -> None:
    model: Any = slim
    other = Net(hidden=48)
    nothing_changed(lambda: model.surgeon_plan.apply(other), other, PlanError, r"first\.weight.*\(48, 8\)")
    nothing_changed(lambda: surgeon.verify(other, slim, model.surgeon_plan), other, PlanError, "another architecture")


# what is done to the tensors of a weights file, message
WEIGHTS: list[tuple[str, Callable[[dict[str, Tensor]], object], str]] = [
    ("missing", lambda tensors: tensors.pop("last.bias"), r"missing: last\.bias"),
    ("extra", lambda tensors: tensors.update(more=torch.zeros(2)), "extra: more"),
    ("misshapen", lambda tensors: tensors.update({"last.bias": torch.zeros(5)}),
     r"misshapen: last\.bias is \[5\] in the file, and \[4\] after the plan's cuts"),
    ("of another type", lambda tensors: tensors.update({"last.bias": torch.zeros(4).half()}),
     r"last\.bias is torch\.float16 in the file, and torch\.float32"),
]


@pytest.mark.parametrize(("change", "message"), [pytest.param(*row[1:], id=row[0]) for row in WEIGHTS])
def test_a_weights_file_is_refused(folder: Path, change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    path = folder / "weights.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    model = Net()
    nothing_changed(lambda: surgeon.load(folder, model), model, WeightsError, message)


def test_a_weights_file_that_is_none_is_refused(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"no weights")
    nothing_changed(lambda: surgeon.load(folder, Net()), None, WeightsError, "not a complete safetensors file")


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    nothing_changed(lambda: surgeon.load(tmp_path, Net()), None, InvalidArgument, r"no model\.json")


# content, kind, message
MODELS: list[tuple[str, bytes | None, str]] = [
    ("missing", None, r"a\.onnx"),
    ("empty", b"", r"a\.onnx"),
    ("no ONNX file", b"not an ONNX file", r"a\.onnx"),
]


@pytest.mark.parametrize(("content", "message"), [pytest.param(*row[1:], id=row[0]) for row in MODELS])
def test_benchmark_refuses_a_file_that_is_not_onnx(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.onnx"
    if content is not None:
        path.write_bytes(content)
    nothing_changed(lambda: surgeon.benchmark(path, path, seconds=0.1), None, InvalidArgument, message)


def test_a_model_without_a_plan_is_not_saved(tmp_path: Path) -> None:
    model = Net()
    nothing_changed(lambda: surgeon.save(model, tmp_path / "slim"), model, InvalidArgument, "Net carries no plan")
    assert not (tmp_path / "slim").exists()


def plan_of(model: Any) -> surgeon.Plan:
    return model.surgeon_plan


# Tests may run as root, who may write anywhere: but not below a file.
WRITERS: list[tuple[str, Callable[[Any, Path], object]]] = [
    ("save", lambda slim, place: surgeon.save(slim, place)),
    ("plan", lambda slim, place: plan_of(slim).save(place / "plan.json")),
    ("export", lambda slim, place: surgeon.export(slim, place / "slim.onnx", example_inputs=X)),
]


@pytest.mark.parametrize("write", [pytest.param(row[1], id=row[0]) for row in WRITERS])
def test_a_place_that_can_not_be_written_is_refused(
    slim: nn.Module, tmp_path: Path, write: Callable[[Any, Path], object]
) -> None:
    (tmp_path / "file").write_text("old")
    nothing_changed(lambda: write(slim, tmp_path / "file" / "folder"), slim, OutputError, "can't be written|exist")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("write", [pytest.param(row[1], id=row[0]) for row in WRITERS])
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["key", "full"])
def test_an_interruption_leaves_the_old_files(
    slim: nn.Module, tmp_path: Path, write: Callable[[Any, Path], object], stop: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("plan.json", "weights.safetensors", "model.json", "slim.onnx")
    for name in names:
        (tmp_path / name).write_text("old")

    def interrupted(*args: object, **kwargs: object) -> None:
        raise stop

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt if isinstance(stop, KeyboardInterrupt) else OutputError):
        write(slim, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert all((tmp_path / name).read_text() == "old" for name in names)


def test_a_smaller_model_of_other_weights_is_refused(slim: Any) -> None:
    torch.manual_seed(1)
    other = Net()
    nothing_changed(lambda: surgeon.verify(other, slim, slim.surgeon_plan, X), other, NotEquivalent, "linear in first")


class Written(Net):
    """The width stands in the code."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))).view(-1, 32))


def test_a_form_that_can_not_be_had_is_refused() -> None:
    model = Written()
    nothing_changed(lambda: surgeon.shrink(model, 0.5, example_inputs=X, form="module"), model, SurgeryError,
                    "Written can't hold the smaller tensors in its own class: its Python code does not run")
