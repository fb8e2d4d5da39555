"""Files that are written whole or not at all, and smaller models in folders."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import surgeon
from surgeon.errors import InvalidArgument, InvalidModel, OutputError, PlanError, SurgeonError, WeightsError
from surgeon.pipeline.storage import MODEL, PLAN, WEIGHTS
from surgeon.support import files
from surgeon.support.safetensors_io import write_tensors


class Net(nn.Module):
    """Convolutions, of which two may share their weight, BatchNorm, and a buffer that is not stored."""

    scale: Tensor

    def __init__(self, width: int = 32, tie: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(width, width, 1)
        self.twin = nn.Conv2d(width, width, 1)
        if tie:
            self.twin.weight = self.mix.weight
        self.head = nn.Linear(width, 4)
        self.register_buffer("scale", torch.ones(width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        x = torch.relu(self.twin(torch.relu(self.mix(x))))
        return self.head(x.mean((2, 3)) * self.scale)


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def slim() -> nn.Module:
    model = Net()
    model(X)  # so that the statistics are some
    return surgeon.shrink(model.eval(), 0.5, example_inputs=X, align=1, compensate=False)


@pytest.fixture
def folder(slim: nn.Module, tmp_path: Path) -> Path:
    surgeon.save(slim, tmp_path / "slim")
    return tmp_path / "slim"


def test_a_loaded_model_is_the_saved_one(slim: nn.Module, folder: Path) -> None:
    fresh = Net().eval()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    again = surgeon.load(folder, fresh)
    assert type(again) is type(slim)
    assert list(again.state_dict()) == list(slim.state_dict())
    assert all(torch.equal(again.state_dict()[name], value) for name, value in slim.state_dict().items())
    assert torch.equal(again(X), slim(X))
    assert all(torch.equal(fresh.state_dict()[name], value) for name, value in before.items())
    assert again.surgeon_plan == slim.surgeon_plan


def test_tied_tensors_are_stored_once_and_tied_again(slim: nn.Module, folder: Path) -> None:
    assert "twin.weight" not in load_file(folder / WEIGHTS)
    assert json.loads((folder / MODEL).read_text())["tied"] == {"twin.weight": "mix.weight"}
    again = surgeon.load(folder, Net())
    assert again.get_parameter("twin.weight") is again.get_parameter("mix.weight")


def test_the_folder_is_json_and_safetensors(slim: nn.Module, folder: Path) -> None:
    assert sorted(os.listdir(folder)) == [MODEL, PLAN, WEIGHTS]
    assert json.loads((folder / MODEL).read_text())["form"] == "module"
    stored = load_file(folder / WEIGHTS)
    assert stored["conv.weight"].shape == slim.get_parameter("conv.weight").shape
    assert "scale" not in stored


class Plain(nn.Module):
    """A model that holds tensors as plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 32), nn.Linear(32, 4)
        self.table = torch.randn(32)
        self.shifts = [torch.randn(4), {"more": torch.randn(32)}]

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.first(x)
        more: Any = self.shifts[1]
        return self.last(self.seen * self.table * more["more"]) + self.shifts[0]


@pytest.mark.parametrize("form", ["auto", "graph"])
def test_tensors_that_are_plain_attributes_are_saved(form: Any, tmp_path: Path) -> None:
    x = torch.randn(3, 6)
    slim = surgeon.shrink(Plain().eval(), 0.5, example_inputs=x, form=form, compensate=False)
    expected = slim(x)
    surgeon.save(slim, tmp_path)
    assert sum(name.startswith("attribute:") for name in load_file(tmp_path / WEIGHTS)) == 3
    assert torch.equal(surgeon.load(tmp_path, Plain())(x), expected)


def test_a_loaded_model_can_be_saved(folder: Path, tmp_path: Path) -> None:
    surgeon.save(surgeon.load(folder, Net()), tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_half_precision_comes_back(tmp_path: Path) -> None:
    slim = surgeon.shrink(
        Net().eval().to(torch.bfloat16), 0.5, example_inputs=X.to(torch.bfloat16), align=1, compensate=False
    )
    surgeon.save(slim, tmp_path)
    again = surgeon.load(tmp_path, Net().to(torch.bfloat16))
    assert again.get_parameter("conv.weight").dtype == torch.bfloat16
    assert torch.equal(again.get_parameter("conv.weight"), slim.get_parameter("conv.weight"))


def test_a_model_in_training_is_saved_as_it_is(slim: nn.Module, folder: Path) -> None:
    with torch.no_grad():
        slim.get_parameter("head.weight").add_(1)
    surgeon.save(slim, folder)
    again = surgeon.load(folder, Net())
    assert torch.equal(again.get_parameter("head.weight"), slim.get_parameter("head.weight"))


def edit(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """Change the tensors of a stored model."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return apply


def cut_short(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])  # type: ignore[return-value]


def put(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)  # type: ignore[return-value]


def forget(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def other_plan(folder: Path) -> None:
    """The plan of another cut of the same sizes beside the weights."""
    plan = json.loads((folder / PLAN).read_text())
    (folder / PLAN).write_text(json.dumps(plan, indent=2))


def double(tensors: dict[str, Tensor]) -> None:
    tensors["conv.weight"] = tensors["conv.weight"].double()


# what is wrong, how it comes about, the error, what its message must say
DAMAGED = [
    ("a missing tensor", edit(lambda t: t.pop("head.bias")), WeightsError, "missing: head.bias"),
    ("an extra tensor", edit(lambda t: t.update(more=torch.zeros(1))), WeightsError, "extra: more"),
    ("a misshapen tensor", edit(lambda t: t.update({"head.bias": torch.zeros(9)})), WeightsError,
     r"misshapen: head.bias is \[9\] in the file, and \[4\]"),
    ("a tensor of another type", edit(double), WeightsError,
     r"conv.weight is torch.float64 in the file, and torch.float32 in the model; call fresh_model.to"),
    ("weights cut in the header", cut_short(WEIGHTS, 20), WeightsError, "not a complete safetensors file"),
    ("weights cut in the values", cut_short(WEIGHTS, -40), WeightsError, "not a complete safetensors file"),
    ("weights that are none", put(WEIGHTS, "not a safetensors file at all"), WeightsError, "not a complete"),
    ("empty weights", put(WEIGHTS, ""), WeightsError, "not a complete safetensors file"),
    ("no weights", forget(WEIGHTS), InvalidArgument, "has no weights.safetensors"),
    ("no plan", forget(PLAN), InvalidArgument, "has no plan.json"),
    ("a plan cut short", cut_short(PLAN, -30), PlanError, "plan.json"),
    ("a plan that is not the weights'", other_plan, WeightsError, "not saved with the plan beside it"),
    ("a description cut short", cut_short(MODEL, 20), WeightsError, "model.json is not a saved model, or was cut"),
    ("a description of something else", put(MODEL, "{}"), WeightsError, "must be \"surgeon-model\""),
    ("a newer version", put(MODEL, '{"format": "surgeon-model", "version": 2}'), WeightsError, "update surgeon"),
    ("a list of ties", put(MODEL, '{"format": "surgeon-model", "version": 1, "tied": []}'), WeightsError, "tied is"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "kind", "message"), [pytest.param(*row[1:], id=row[0]) for row in DAMAGED]
)
def test_a_damaged_folder_is_refused(
    damage: Callable[[Path], None], kind: type[SurgeonError], message: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(kind, match=message):
        surgeon.load(folder, Net())


def test_another_architecture_is_refused(folder: Path) -> None:
    with pytest.raises(PlanError):
        surgeon.load(folder, Net(width=48))


class Twins(nn.Module):
    """A network with two layers behind the part that is cut, which may share their weight."""

    def __init__(self, tie: bool) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(3, 32), nn.Linear(32, 4)
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        if tie:
            self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.out(torch.relu(self.hidden(x)))))


def save_twins(tie: bool, folder: Path) -> nn.Module:
    slim = surgeon.shrink(
        Twins(tie), 0.5, example_inputs=torch.randn(2, 3), align=1, ignore=("a", "b"), compensate=False
    )
    surgeon.save(slim, folder)
    return slim


def test_weights_that_are_tied_here_but_not_there(tmp_path: Path) -> None:
    save_twins(False, tmp_path)
    with pytest.raises(WeightsError, match=r"b\.weight and a\.weight have different values, but fresh_model ties them"):
        surgeon.load(tmp_path, Twins(True))


def test_weights_that_are_tied_there_but_not_here(tmp_path: Path) -> None:
    slim = save_twins(True, tmp_path)
    again = surgeon.load(tmp_path, Twins(False))
    assert again.get_parameter("b.weight") is again.get_parameter("a.weight")
    x = torch.randn(2, 3)
    assert torch.equal(again(x), slim(x))


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"has no model.json, no plan.json, no weights.safetensors"):
        surgeon.load(tmp_path, Net())


def test_a_model_that_is_none(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="fresh_model is a str"):
        surgeon.load(folder, "net")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="model is a NoneType"):
        surgeon.save(None, tmp_path)  # type: ignore[arg-type]


def test_a_model_without_a_plan(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="Net carries no plan"):
        surgeon.save(Net(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Stateful(nn.Module):
    def get_extra_state(self) -> object:
        return {"seen": 3}

    def set_extra_state(self, state: object) -> None:
        return


def test_what_safetensors_can_not_hold(slim: nn.Module, tmp_path: Path) -> None:
    slim.extra = Stateful()
    with pytest.raises(InvalidModel, match=r"extra\._extra_state is a dict"):
        surgeon.save(slim, tmp_path)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_save_leaves_the_old_folder(
    slim: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    def interrupted(*_: object) -> None:
        (folder / "half").touch()
        (folder / "half").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("surgeon.support.safetensors_io.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        surgeon.save(slim, folder)
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()} == before


def test_a_folder_that_can_not_be_written(slim: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here first")
    with pytest.raises(OutputError, match="can't be written"):
        surgeon.save(slim, tmp_path / "file" / "slim")
    (tmp_path / "slim" / PLAN).mkdir(parents=True)
    with pytest.raises(OutputError, match="is a folder; name a file"):
        surgeon.save(slim, tmp_path / "slim")
    assert os.listdir(tmp_path / "slim") == [PLAN]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def write(error: type[BaseException]) -> None:
        with files.replace(path) as temporary:
            temporary.write_text("half of the ne")
            raise error

    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            write(error)
    assert (os.listdir(tmp_path), path.read_text()) == (["a.txt"], "old")


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left"), files.replace(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_disk_that_is_full_of_weights(slim: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("surgeon.support.safetensors_io.save_file", full)
    with pytest.raises(OutputError, match=f"{WEIGHTS} can't be written: No space left on device$"):
        surgeon.save(slim, folder)
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()} == before


def test_a_kind_of_numbers_that_safetensors_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="can't be stored"):
        write_tensors(tmp_path / WEIGHTS, {"a": torch.zeros(2, dtype=torch.complex128)})


def test_a_file_is_replaced_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    files.write_text(tmp_path / "ours", "text")
    write_tensors(tmp_path / WEIGHTS, {"a": torch.zeros(2)})
    for name in ("ours", WEIGHTS):
        assert (tmp_path / name).stat().st_mode == (tmp_path / "plain").stat().st_mode, name


# what can't be written, what the message must say
UNWRITABLE = [
    ("", "is a folder"),
    ("missing/a.txt", "does not exist"),
    ("file/a.txt", "does not exist"),
    ("pipe", "not a regular file"),
]


@pytest.mark.parametrize(("name", "message"), UNWRITABLE)
def test_what_can_not_be_written(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here first")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match=message):
        files.write_text(tmp_path / name, "text")
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]


def test_folders_are_made(tmp_path: Path) -> None:
    made = files.ensure_folder(tmp_path / "a" / "b")
    assert os.listdir(made) == []
