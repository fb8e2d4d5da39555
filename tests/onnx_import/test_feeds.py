"""Arrays and pictures from disk, as a file's module takes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import surgeon
from surgeon.errors import InvalidArgument
from testbed.onnx_graphs import model, weight

COLOR = (255, 51, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures of one color."""
    (tmp_path / "pictures").mkdir()
    for index in range(5):
        Image.new("RGB", (20 + index, 10), COLOR).save(tmp_path / "pictures" / f"{index}.png")
    return tmp_path / "pictures"


def loaded(folder: Path, shape: str, kind: str = "float") -> Any:
    proto = model(f"net ({kind}[{shape}] x) => (float[a,b,c,d] y) {{ t = Cast <to = 1> (x)  y = Relu (t) }}")
    onnx.save(proto, folder / "net.onnx")
    return surgeon.load_onnx(folder / "net.onnx")


@pytest.mark.parametrize(("shape", "options", "sizes"), [
    ("n,3,6,8", {}, [(5, 3, 6, 8)]),
    ("2,3,6,8", {}, [(2, 3, 6, 8)] * 2),
    ("n,3,h,w", {"resize": (6, 8)}, [(5, 3, 6, 8)]),
    ("n,6,8,3", {}, [(5, 6, 8, 3)]),
    ("n,3,8,3", {"layout": "NHWC"}, [(5, 3, 8, 3)]),
    ("n,1,6,8", {}, [(5, 1, 6, 8)]),
])
def test_pictures_have_the_form_of_the_input(
    shape: str, options: dict[str, Any], sizes: list[tuple[int, ...]], folder: Path, tmp_path: Path
) -> None:
    net = loaded(tmp_path, shape)
    batches = [batch["x"] for batch in net.batches(folder, mean=(0.5,), std=(0.25,), **options)]
    assert [batch.shape for batch in batches] == sizes and batches[0].dtype == np.float32
    assert net(x=torch.from_numpy(batches[0])).shape == sizes[0]


@pytest.mark.parametrize(("shape", "axes"), [("n,3,6,8", (0, 2, 3)), ("n,6,8,3", (0, 1, 2))])
def test_pixels_are_normalized(shape: str, axes: tuple[int, ...], folder: Path, tmp_path: Path) -> None:
    (batch,) = loaded(tmp_path, shape).batches(folder, mean=(0.5, 0.2, 0.0), std=(0.5, 1.0, 2.0))
    np.testing.assert_allclose(batch["x"].mean(axes), [1.0, 0.0, 0.0], atol=1e-6)


def test_an_input_of_bytes_takes_the_pixels(folder: Path, tmp_path: Path) -> None:
    net = loaded(tmp_path, "n,6,8,3", "uint8")
    (batch,) = net.batches(folder)
    assert batch["x"].dtype == np.uint8 and batch["x"][0, 0, 0].tolist() == list(COLOR)
    with pytest.raises(InvalidArgument, match="the file takes the pixels themselves"):
        net.batches(folder, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize(("shape", "options", "told"), [
    ("n,3,6,8", {}, "give mean= and std="),
    ("n,3,6,8", {"mean": (0, 0), "std": (1,)}, "mean holds 2 numbers; the file's pictures have 3 channels"),
    ("n,3,6,8", {"mean": (0,), "std": (0,)}, "std=(0,) holds what is not above 0"),
    ("n,3,h,w", {"mean": (0,), "std": (1,)}, "leaves the height or width of its pictures free; give resize="),
    ("n,3,6,8", {"mean": (0,), "std": (1,), "resize": (8, 8)}, "takes pictures of 6 x 8 only"),
    ("n,3,8,3", {"mean": (0,), "std": (1,)}, "say by layout which of the axes are the channels"),
    ("n,3,6,8", {"layout": "HWC"}, "layout='HWC' is not known; give one of NCHW, NHWC"),
    ("n,5,6,8", {}, "is ('n', 5, 6, 8); one of pictures has 4"),
])
def test_what_is_not_told_is_asked_for(
    shape: str, options: dict[str, Any], told: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(told)):
        loaded(tmp_path, shape).batches(folder, **options)


def test_a_folder_of_arrays_by_the_names_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "feeds").mkdir()
    for index in range(2):
        np.savez(tmp_path / "feeds" / f"{index}.npz", x=weight(3, 3, 6, 8, seed=index))
    net = loaded(tmp_path, "2,3,6,8")
    batches = list(net.batches(tmp_path / "feeds"))
    assert [batch["x"].shape for batch in batches] == [(2, 3, 6, 8)] * 2
    np.testing.assert_array_equal(batches[1]["x"], weight(3, 3, 6, 8, seed=1)[:2])
    with pytest.raises(InvalidArgument, match="are for pictures"):
        net.batches(tmp_path / "feeds", mean=(0,))
