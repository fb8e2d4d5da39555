"""Labels in what `--data` names: they get to the metric and the loss, and what does without them says so."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image
from torch import nn

import surgeon
from surgeon.cli.main import app
from surgeon.frontend.data_files import from_disk
from surgeon.frontend.pictures import Pictures
from surgeon.reference import data, images
from tests.cli.commands import call, good

NETS = '''
import torch
from torch import nn

torch.manual_seed(0)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))

def ready():
    return Net(), torch.zeros(2, 5)

def pairs():
    return [(torch.randn(16, 5), torch.arange(16) % 4) for _ in range(8)]

def right(batch, outputs):
    labels = batch["y"] if isinstance(batch, dict) else batch[1]
    return float((outputs[0].argmax(1) == labels).mean()) + 1

def brightness(batch, outputs):
    return float((batch["label"] == (batch["input"].mean((1, 2, 3)) > 0.5)).mean())

nothing = 3
'''
UNUSED = "labels, and whatever else batches of the data hold beside the inputs, were not used"
SHRINK = ("shrink", "label_nets.py:ready", "--ratio", 0.5, "--align", 1, "--no-bench", "--no-distill", "-o", "out")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    Path("label_nets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    np.savez("both.npz", x=rng.standard_normal((128, 5)).astype(np.float32), y=np.arange(128) % 4)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in name:
            del sys.modules[name]


def told(*options: object) -> dict[str, Any]:
    good(*SHRINK, *options)
    return json.loads(Path("out/report.json").read_text())


@pytest.mark.parametrize("source", ["both.npz", "label_nets.py:pairs"])
def test_labels_get_to_the_metric(source: str) -> None:
    metric = told("--data", source, "--samples", 64, "--metric", "label_nets.py:right")["metric"]
    assert metric["name"] == "right" and metric["count"] == 64


@pytest.mark.parametrize("source", ["both.npz", "label_nets.py:pairs"])
def test_labels_that_nothing_reads_are_told(source: str) -> None:
    assert any(UNUSED in note for note in told("--data", source)["recovery"]["notes"])
    assert UNUSED in good("recover", "label_nets.py:ready", "out", "--data", source, "-o", "better")


def test_inputs_alone_are_no_labels() -> None:
    np.save("x.npy", np.load("both.npz")["x"])
    assert not any("labels" in note for note in told("--data", "x.npy")["recovery"]["notes"])


def test_labels_get_to_the_loss() -> None:
    report = told(
        "--data", "label_nets.py:pairs", "--importance", "taylor", "--loss", "torch.nn.functional:cross_entropy",
    )
    assert not any(UNUSED in note for note in report["recovery"]["notes"])
    assert json.loads(Path("out/plan.json").read_text())["settings"]["importance"] == "taylor"
    result = call(*SHRINK, "--data", "label_nets.py:pairs", "--loss", "label_nets.py:nothing")
    assert result.exit_code == 1 and "--loss label_nets.py:nothing is a int, not a function" in result.stderr


def test_int8_says_so_too() -> None:
    net = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 4))
    surgeon.export(net, "net.onnx", example_inputs=torch.zeros(2, 5), input_names=["x"])
    made = json.loads(good("quantize", "net.onnx", "--data", "both.npz", "--json"))
    assert any(UNUSED in note for note in made["notes"])


@pytest.fixture
def folders(here: Path) -> Path:
    for index in range(40):
        place = here / "pictures" / ("dark", "light")[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (0, 255)[index % 2] * 0x010101).save(place / f"{index}.png")
    return here / "pictures"


def test_folders_of_pictures_are_classes(folders: Path) -> None:
    found = from_disk("data", folders)
    assert isinstance(found, Pictures) and found.classes == ("dark", "light")
    for pixels, labels in found.through(lambda picture: torch.tensor(picture.getpixel((0, 0))[0] / 255), 3):
        assert torch.equal(pixels, labels.float())
    Image.new("RGB", (12, 12)).save(folders / "loose.png")
    assert Pictures("data", folders).classes == ()
    assert Pictures("data", folders / "dark").classes == ()


def test_classes_get_to_the_metric_of_a_file(folders: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    surgeon.export(net, "net.onnx", example_inputs=torch.zeros(2, 3, 12, 12))
    metric = json.loads(good(
        "shrink", "net.onnx", "--ratio", 0.5, "--align", 1, "--no-bench", "--no-distill", "-o", "out", "--json",
        "--data", folders, "--metric", "label_nets.py:brightness", "--mean", 0, "--std", 1, "--resize", "12,12",
    ))["metric"]
    assert metric["before"]["value"] == 1.0 and metric["count"] == 40


def test_every_command_takes_the_same_forms() -> None:
    group: Any = typer.main.get_command(app)
    forms = {
        name: each.metavar for name, command in group.commands.items() for each in command.params
        if "--data" in each.opts
    }
    assert {"shrink", "recover", "quantize", "demo"} <= forms.keys() and len(set(forms.values())) == 1


def test_demo_takes_data(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, labels = data.load_test(200)
    monkeypatch.setattr(data, "load_test", lambda: (pictures, labels))
    monkeypatch.setattr("surgeon.cli.demo.SECONDS", 0.1)
    np.save("images.npy", images().numpy()[:64])
    shown = json.loads(good("demo", "--data", "images.npy", "--samples", 64, "--json"))["networks"]["residual"]
    assert shown.keys() == {"original", "plain cut", "default", "with data"}
    refused = call("demo", "--data", "gone.npy")
    assert refused.exit_code == 1 and "gone.npy" in refused.stderr
