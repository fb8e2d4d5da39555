"""A folder of pictures as data: in the form that the model's own library gives them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from surgeon.calibration.data import Calibration, calibrate
from surgeon.errors import InvalidArgument, InvalidInputs
from surgeon.frontend import pictures as module
from surgeon.frontend.parameters import data as data_of
from surgeon.frontend.trace import trace
from tests.cli.commands import call


class Timms(nn.Module):
    """A network that says, as timm's do, what it was trained on."""

    pretrained_cfg: ClassVar[dict[str, Any]] = {
        "input_size": (3, 16, 16), "crop_pct": 0.5, "mean": (0.5, 0.25, 0.0), "std": (0.5, 0.25, 1.0),
        "interpolation": "bilinear",
    }

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().mean((2, 3)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty pictures of several forms and sizes, in folders of their own."""
    for index in range(40):
        place = tmp_path / "pictures" / f"class {index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        color = (255, 128, index * 6)
        picture = Image.new(("RGB", "RGBA", "P", "L")[index % 4], (40 + index, 50))
        picture.paste(color if picture.mode.startswith("RGB") else index, (0, 0, *picture.size))
        if picture.mode == "RGBA":
            picture.putalpha(255)
        picture.save(place / f"{index}.{('png', 'webp', 'gif', 'bmp')[index % 4]}")
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    return tmp_path / "pictures"


def read(folder: Path, model: nn.Module, size: int = 16, samples: int = 256) -> Calibration:
    return calibrate(str(folder), trace(model, torch.zeros(2, 3, size, size)), model, samples)


def test_pictures_take_the_form_that_timm_tells(folder: Path) -> None:
    found = read(folder, Timms())
    pixels = torch.cat([args[0] for args, _ in found.batches])
    assert found.samples == 40 and pixels.shape == (40, 3, 16, 16)
    assert pixels[:, 0].max() == 1.0  # (255 / 255 - .5) / .5
    assert read(folder, Timms(), size=12).batches[0][0][0].shape[1:] == (3, 12, 12)
    assert torch.equal(pixels, torch.cat([args[0] for args, _ in read(folder, Timms()).batches]))


def test_they_come_from_all_folders_however_few_are_read(folder: Path) -> None:
    for path in (folder / "class 0").iterdir():
        Image.new("RGB", (40, 40), (255, 255, 255)).save(path)
    for path in (folder / "class 1").iterdir():
        Image.new("RGB", (40, 40), (0, 0, 0)).save(path)
    pixels = torch.cat([args[0] for args, _ in read(folder, Timms(), samples=10).batches])
    assert len(pixels) == 10 and 0 < (pixels[:, 0, 0, 0] > 0).sum() < 10


@pytest.mark.filterwarnings("default")
def test_what_is_no_picture_is_counted(folder: Path) -> None:
    first, second, *_ = sorted(folder.rglob("*.png"))
    first.write_bytes(b"no picture")
    second.write_bytes(second.read_bytes()[:60])
    third = next(folder.rglob("*.gif"))
    Image.new("RGB", (8, 8)).save(third, "EPS")  # which Pillow decodes by Ghostscript
    with pytest.warns(UserWarning, match=f"3 of the 40 pictures of {folder} .* left out; the first: .*png: "):
        assert read(folder, Timms()).samples == 37
    for path in folder.rglob("*.*"):
        path.write_bytes(b"no picture")
    with pytest.raises(InvalidInputs, match=r"none of the 40 pictures .* can be read; .*: UnidentifiedImageError"):
        read(folder, Timms())


def test_a_model_that_tells_no_form_gets_no_pictures(folder: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 14 * 14, 4))
    with pytest.raises(InvalidArgument, match=r"does not tell how they are scaled .*package.module:loader"):
        read(folder, net)
    flat = nn.Linear(5, 4)
    with pytest.raises(InvalidArgument, match=r"takes inputs of shape \(2, 5\); expected \(batch, 1 or 3, height"):
        calibrate(folder, trace(flat, torch.zeros(2, 5)), flat)


def test_pictures_need_pillow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("surgeon.frontend.pictures.importlib.import_module", missing)
    with pytest.raises(InvalidArgument, match=r"pip install 'model-surgeon\[pictures\]'"):
        list(data_of("data", folder).through(lambda picture: torch.zeros(3, 2, 2), 3))


@pytest.mark.parametrize("size, shape", [(None, (224, 224)), ((3, 64, 64), (64, 64)), ((3, 64, 96), (64, 96))])
def test_torchvisions_models_tell_by_their_published_weights(
    size: tuple[int, int, int] | None, shape: tuple[int, int]
) -> None:
    models = importlib.import_module("torchvision.models")
    transform = module.transform_of(models.squeezenet1_1(), size)
    assert transform is not None
    white = transform(Image.new("RGB", (300, 400), (255, 255, 255)))
    assert white.shape == (3, *shape)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(white.mean((1, 2)), expected, rtol=1e-4, atol=1e-4)


def test_a_folder_of_pictures_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    result = call(
        "shrink", "tests.frontend.test_pictures:Timms", "--ratio", 0.4, "--align", 1, "--no-bench", "--no-distill",
        "--shape", "2,3,16,16", "--data", folder, "-o", tmp_path / "out",
    )
    assert result.exit_code == 0, result.output
    assert "40" in result.output


def test_arrays_go_before_pictures(folder: Path) -> None:
    np.save(folder / "rows.npy", np.zeros((7, 3, 16, 16), np.float32))
    assert read(folder, Timms()).samples == 7
