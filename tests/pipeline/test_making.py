"""Saved models that come back without a fresh one: of known libraries, and of the user's own factories."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import InvalidArgument, SurgeonError, WeightsError
from surgeon.pipeline.storage import MODEL

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(12).view(2, 6)


def convnet(**arguments: Any) -> Any:
    return timm.create_model("test_resnet", **arguments).eval()


def bert(**settings: Any) -> Any:
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, **settings
    )
    return transformers.BertForSequenceClassification(config).eval()


def other_head() -> Any:
    model = convnet()
    model.fc = nn.Linear(model.fc.in_features, 5)
    return model


def shrink(model: nn.Module, x: Tensor, **options: Any) -> Any:
    return surgeon.shrink(model, 0.3, example_inputs=x, align=1, **options)


def head_since(model: Any) -> Any:
    slim = shrink(model, IMAGE)
    slim.fc = nn.Linear(slim.fc.in_features, 3)
    return slim.eval()


MADE: dict[str, tuple[Callable[[], Any], Tensor, str, dict[str, Any]]] = {
    "timm": (lambda: shrink(convnet(), IMAGE), IMAGE, "timm:test_resnet", {}),
    "timm, for other classes": (
        lambda: shrink(convnet(num_classes=7), IMAGE), IMAGE, "timm:test_resnet", {"num_classes": 7}),
    "timm, in gray": (
        lambda: shrink(convnet(num_classes=7, in_chans=1), IMAGE[:, :1]), IMAGE[:, :1], "timm:test_resnet",
        {"num_classes": 7, "in_chans": 1}),
    "timm, another head since": (lambda: head_since(convnet()), IMAGE, "timm:test_resnet", {}),
    "timm, twice": (lambda: shrink(shrink(convnet(), IMAGE), IMAGE), IMAGE, "timm:test_resnet", {}),
    "timm, as a graph": (lambda: shrink(convnet(), IMAGE, form="graph"), IMAGE, "timm:test_resnet", {}),
    "torchvision": (
        lambda: shrink(torchvision.models.resnet18(num_classes=9).eval(), IMAGE), IMAGE, "torchvision:resnet18",
        {"num_classes": 9}),
    "transformers": (
        lambda: shrink(bert(num_labels=3), IDS), IDS, "transformers:BertForSequenceClassification", {"config": ...}),
    "half": (lambda: shrink(bert().bfloat16(), IDS), IDS, "transformers:BertForSequenceClassification",
             {"config": ...}),
}  # fmt: skip


@pytest.mark.parametrize(("life", "x", "by", "arguments"), MADE.values(), ids=MADE)
def test_a_librarys_model_is_made_again(
    life: Callable[[], Any], x: Tensor, by: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    slim = life()
    for _ in range(2):
        surgeon.save(slim, tmp_path)
        made = json.loads((tmp_path / MODEL).read_text())["made"]
        assert made["by"] == by
        assert arguments in (made["arguments"], dict.fromkeys(made["arguments"], ...))
        loaded = surgeon.load(tmp_path)
        assert loaded.training == slim.training
        first, second = (getattr(each(x), "logits", each(x)) for each in (slim, loaded))
        assert torch.equal(first, second)
        slim = loaded


def test_what_no_arguments_give_is_not_remembered(tmp_path: Path) -> None:
    surgeon.save(shrink(other_head(), IMAGE), tmp_path)  # its num_classes is still that of before
    assert "made" not in json.loads((tmp_path / MODEL).read_text())
    assert surgeon.load(tmp_path, other_head())(IMAGE).shape == (1, 5)


def test_what_is_not_as_the_library_makes_it_is_refused(tmp_path: Path) -> None:
    def smooth() -> Any:
        model = convnet()
        model.act1 = nn.GELU()
        return model

    slim = shrink(smooth(), IMAGE)
    surgeon.save(slim, tmp_path)
    with pytest.raises(WeightsError, match=r"timm:test_resnet makes here differs .* pass fresh_model"):
        surgeon.load(tmp_path)
    assert torch.equal(surgeon.load(tmp_path, smooth())(IMAGE), slim(IMAGE))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


X = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    surgeon.save(shrink(Net(), X), tmp_path / "slim")
    return tmp_path / "slim"


FACTORY = """
from pathlib import Path
from torch import nn

Path("imported").touch()

def make():
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
"""


def test_a_factory_is_called_only_if_the_user_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    (tmp_path / "my_nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    slim = shrink(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), X)
    surgeon.save(slim, folder, factory="my_nets:make")
    with pytest.raises(InvalidArgument, match=r"made by my_nets:make, which is not called .* factory='my_nets:make'"):
        surgeon.load(folder)
    assert not (tmp_path / "imported").exists()
    assert "my_nets" not in sys.modules
    loaded = surgeon.load(folder, factory="my_nets:make")
    assert (tmp_path / "imported").exists()
    assert torch.equal(loaded(X), slim(X))
    surgeon.save(shrink(loaded, X), folder)  # it is remembered
    assert json.loads((folder / MODEL).read_text())["made"] == {"by": "my_nets:make", "arguments": {}}
    with pytest.raises(InvalidArgument, match="give either fresh_model or factory="):
        surgeon.load(folder, Net(), factory="my_nets:make")


def test_a_model_of_ones_own_needs_a_fresh_one(folder: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"does not tell how the original was made: pass fresh_model"):
        surgeon.load(folder)


def test_folders_of_before(folder: Path) -> None:
    meta = json.loads((folder / MODEL).read_text())
    old = {key: meta[key] for key in ("format", "version", "form", "tied")}
    (folder / MODEL).write_text(json.dumps(old))
    assert surgeon.load(folder, Net())(X).shape == (2, 4)
    with pytest.raises(InvalidArgument, match="does not tell"):
        surgeon.load(folder)


CONFIG = {"vocab_size": 20, "hidden_size": 16}
# what the folder says made the model, and what the error must say
HOSTILE: list[tuple[Any, str]] = [
    ("os:system", "made is"),
    ({"by": "os:system"}, "made is"),
    ({"by": "os:system\n", "arguments": {}}, "made is"),
    ({"by": "os.path:join", "arguments": {}}, r"made by os\.path:join, which is not called"),
    ({"by": "timm:create_model", "arguments": {}}, "timm has no model 'create_model'"),
    ({"by": "timm:test_resnet", "arguments": {"pretrained": 1}}, "pretrained=1 is no argument of a recipe"),
    ({"by": "timm:test_resnet", "arguments": {"num_classes": 1 << 40}}, "is no argument of a recipe"),
    ({"by": "timm:test_resnet", "arguments": {"num_classes": "os"}}, "is no argument of a recipe"),
    ({"by": "timm:test_resnet", "arguments": {}}, "gives a model with other tensors"),
    ({"by": "torchvision:get_model", "arguments": {}}, "torchvision has no model 'get_model'"),
    ({"by": "transformers:pipeline", "arguments": {"config": {}}}, "transformers has no model 'pipeline'"),
    ({"by": "transformers:models.bert", "arguments": {"config": {}}}, "transformers has no model"),
    ({"by": "transformers:BertModel", "arguments": {"config": CONFIG, "trust_remote_code": True}}, "alone"),
    ({"by": "transformers:BertModel", "arguments": {"config": 3}}, "alone"),
    ({"by": "transformers:BertModel", "arguments": {"config": CONFIG | {"backbone": "evil/repository"}}}, "may name"),
    ({"by": "transformers:BertModel", "arguments": {"config": CONFIG | {"a": {"use_pretrained_backbone": True}}}},
     "asks for published weights"),
    ({"by": "transformers:BertModel", "arguments": {"config": CONFIG | {"vocab_size": 1 << 40}}}, "larger than any"),
    ({"by": "transformers:BertModel", "arguments": {"config": CONFIG | {"hidden_size": "x"}}}, "can't be made of its"),
    ({"by": "transformers:BertModel", "arguments": {"config": CONFIG | {"hidden_size": 24}}}, "other tensors"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "message"), HOSTILE)
def test_what_a_stranger_may_write(made: Any, message: str, folder: Path) -> None:
    meta = json.loads((folder / MODEL).read_text())
    (folder / MODEL).write_text(json.dumps({**meta, "made": made}))
    with pytest.raises(SurgeonError, match=message):
        surgeon.load(folder)


def test_a_model_far_larger_than_its_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surgeon.save(shrink(convnet(), IMAGE), tmp_path)
    monkeypatch.setattr("surgeon.pipeline.making.LARGEST", 0)
    monkeypatch.setattr("surgeon.pipeline.making.TIMES", 1)
    with pytest.raises(WeightsError, match="far larger than what is stored"):
        surgeon.load(tmp_path)


# What is raised in a callback is lost, and Python says so; the thread is told again.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_model_that_takes_forever_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surgeon.save(shrink(bert(), IDS), tmp_path)
    meta = json.loads((tmp_path / MODEL).read_text())
    meta["made"]["arguments"]["config"]["num_hidden_layers"] = 1 << 20
    (tmp_path / MODEL).write_text(json.dumps(meta))
    monkeypatch.setattr("surgeon.frontend.recipes._PATIENCE", 0.5)
    with pytest.raises(WeightsError, match=r"takes more than 0 s; pass fresh_model"):
        surgeon.load(tmp_path)
