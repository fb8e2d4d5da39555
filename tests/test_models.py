import doctest
import gzip
import importlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import models
from models import data, train

Images = tuple[torch.Tensor, torch.Tensor]

FLOORS = {"residual": 0.91, "depthwise": 0.91, "transformer": 0.87}


def zipped(content: bytes) -> bytes:
    """Compressed, without the time: the same bytes in every process that collects the tests."""
    return gzip.compress(content, mtime=0)



@pytest.fixture(scope="module", name="test_set")
def first_test_images() -> Images:
    return data.load_test(1000)


def facts(name: str) -> dict[str, Any]:
    return json.loads((models.WEIGHTS / f"{name}.json").read_text())


@pytest.mark.parametrize("room", ["residual", "depthwise", "transformer", "data", ""])
def test_examples_in_the_docstrings(room: str) -> None:
    result = doctest.testmod(importlib.import_module(f"models.{room}".rstrip(".")))
    assert result.attempted > 0
    assert result.failed == 0


def test_every_network_has_a_floor_and_a_recipe() -> None:
    assert set(models.names()) == set(FLOORS) == set(train.RECIPES)


@pytest.mark.parametrize("name", models.names())
def test_accuracy_is_what_the_json_says(name: str, test_set: Images) -> None:
    # 1,000 images of 10,000: the deviation of a share near 0.91 is below 0.01.
    assert models.accuracy(models.load(name), *test_set) == pytest.approx(facts(name)["accuracy"], abs=0.03)


@pytest.mark.parametrize("name", models.names())
def test_weights_are_small_accurate_and_float32(name: str) -> None:
    path = models.WEIGHTS / f"{name}.safetensors"
    stated = facts(name)
    assert path.stat().st_size < 3_000_000
    assert stated["accuracy"] >= FLOORS[name]
    assert stated["images"] == 60_000
    tensors = load_file(path)
    assert tensors.keys() == models.build(name).state_dict().keys()
    for key, value in tensors.items():
        assert value.dtype == (torch.int64 if key.endswith("num_batches_tracked") else torch.float32), key
        assert bool(value.isfinite().all()), key
    assert stated["parameters"] == sum(p.numel() for p in models.load(name).parameters())


@pytest.mark.parametrize("name", models.names())
def test_any_batch_size_exports_and_agrees(name: str, test_set: Images) -> None:
    model = models.load(name)
    assert not model.training
    images = test_set[0][:3]
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(model, (images[:2],), dynamic_shapes=({0: batch},), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images))


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="'resnet'; there are residual, depthwise, transformer"):
        models.load("resnet")


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models, "WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match=r"residual\.safetensors is missing; train it with"):
        models.load("residual")


def test_accuracy_restores_the_mode(test_set: Images) -> None:
    model = models.build("depthwise")
    model.get_submodule("features.0").eval()
    modes = [module.training for module in model.modules()]
    models.accuracy(model, test_set[0][:20], test_set[1][:20], batch=7)
    assert [module.training for module in model.modules()] == modes


def test_accuracy_counts_every_batch() -> None:
    images = torch.arange(7.0).view(7, 1, 1, 1)
    linear = torch.nn.Linear(1, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.0], [1.0]]))
        linear.bias.copy_(torch.tensor([4.5, 0.0]))
    model = torch.nn.Sequential(torch.nn.Flatten(), linear)
    # The model says 1 for the pixels 5 and 6 only.
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    assert models.accuracy(model, images, labels, batch=3) == pytest.approx(5 / 7)


def test_accuracy_refuses_no_images_and_other_counts(test_set: Images) -> None:
    model = models.build("depthwise")
    for images, labels in ((0, 0), (3, 2)):
        with pytest.raises(ValueError, match=f"{images} images, {labels} labels"):
            models.accuracy(model, test_set[0][:images], test_set[1][:labels])


def test_test_images_are_complete_and_balanced() -> None:
    pixels, labels = data.read(data.TEST_FOLDER, "t10k")
    assert pixels.shape == (10_000, 1, 28, 28)
    assert pixels.dtype == torch.uint8
    assert torch.bincount(labels).tolist() == [1000] * len(data.CLASSES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing: the training images come with"),
        (b"plain", "is not a complete gzip file"),
        (zipped(b"\0" * 100)[:-12], "is not a complete gzip file"),
        (zipped(b""), "it starts with nothing"),
        (zipped(b"\0\0\x0d\1" + bytes(4)), "it starts with 00 00 0d 01"),
        (zipped(b"\0\0\x08\3" + bytes(4)), "is not an idx file"),
        (zipped(b"\0\0\x08\1" + struct.pack(">I", 5) + bytes(4)), r"shape \(5,\), but 4 values"),
    ],
)
def test_bad_idx_files_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.load_train(tmp_path)


def write_images(folder: Path, count: int, labels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count * 784,), generator=generator, dtype=torch.uint8)
    classes = torch.randint(0, 10, (labels,), generator=generator, dtype=torch.uint8)
    images = b"\0\0\x08\3" + struct.pack(">3I", count, 28, 28) + bytes(pixels.tolist())
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, 1))
    content = b"\0\0\x08\1" + struct.pack(">I", labels) + bytes(classes.tolist())
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))


def test_images_without_a_label_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, 3, 2)
    with pytest.raises(ValueError, match=r"found \(3, 28, 28\) and \(2,\)"):
        data.load_train(tmp_path)


def test_augment_only_shifts_and_mirrors() -> None:
    images = torch.zeros(64, 1, 28, 28)
    images[:, :, 10, 5] = 1.0
    shifted = train.augment(images, torch.Generator().manual_seed(0))
    assert shifted.shape == images.shape
    found = (shifted == 1.0).nonzero()
    assert found[:, 0].tolist() == list(range(64))
    assert set(found[:, 2].tolist()) == {8, 9, 10, 11, 12}
    assert set(found[:, 3].tolist()) == {3, 4, 5, 6, 7} | {20, 21, 22, 23, 24}


def test_training_again_gives_the_same_bytes(tmp_path: Path) -> None:
    write_images(tmp_path, 2 * train.BATCH, 2 * train.BATCH)
    images, labels = data.load_train(tmp_path)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        model = models.build("depthwise")
        before = model.get_parameter("head.weight").clone()
        train.fit(model, train.RECIPES["depthwise"], images, labels, epochs=1, seed=3)
        assert not torch.equal(model.get_parameter("head.weight"), before)
        runs.append(model.state_dict())
    for key in runs[0]:
        torch.testing.assert_close(runs[0][key], runs[1][key], rtol=0, atol=0, msg=key)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folder", "nowhere"], "train-images-idx3-ubyte.gz is missing"),
        (["--epochs", "0"], "at least 1 epoch"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    write_images(folder, train.BATCH, train.BATCH)
    output = tmp_path / "weights.safetensors"
    command = [sys.executable, "-m", "models.train", "depthwise", "--folder", str(folder), "-o", str(output)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=Path(models.__file__).parents[1])
    assert done.returncode == 2
    assert message in done.stderr
    assert not output.exists()


def test_an_interrupted_write_keeps_the_old_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"old")

    def interrupted(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
