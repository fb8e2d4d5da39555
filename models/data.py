"""Fashion-MNIST (Xiao et al., 2017, arXiv:1708.07747): gray images of ten kinds of clothing, 28 x 28."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
TEST_FOLDER = Path(__file__).with_suffix("")
TRAIN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
# Of the training images, with pixels from 0 to 1.
MEAN = 0.2860
STD = 0.3530


def normalize(pixels: Tensor) -> Tensor:
    """Pixels from 0 to 255, uint8, any shape, as the networks expect them: float32 of mean 0 and deviation 1.

    >>> normalize(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-0.8102,  2.0227])
    """
    return (pixels.float() / 255 - MEAN) / STD


def read_idx(path: Path) -> Tensor:
    """The uint8 array of a gzipped idx file. Raises ValueError where the file is missing or no such file."""
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: the training images come with Debian's package dataset-fashion-mnist "
            f"(apt-get install dataset-fashion-mnist), the test images with this repository"
        )
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file: {error}") from error
    # Two zero bytes, the type (8 is uint8), the number of axes, their sizes as big-endian 32-bit integers.
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        start = content[:4].hex(" ") or "nothing"
        raise ValueError(f"{path} is not an idx file of bytes: it starts with {start}")
    axes = content[3]
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes)
    if values.size != np.prod(shape, dtype=np.int64):
        raise ValueError(f"{path} is cut short or too long: shape {shape}, but {values.size} values")
    return torch.from_numpy(values.reshape(shape).copy())


def read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Pixels (N, 1, 28, 28) uint8 and labels (N,) int64 of `part`, "train" or "t10k". Raises ValueError."""
    folder = Path(folder)
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{folder}: expected images of shape (N, 28, 28) and N labels, "
            f"found {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    return images.unsqueeze(1), labels.long()


def load_test(limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The 10,000 test images, or the first `limit`: normalized (N, 1, 28, 28) float32, and labels (N,) int64.

    >>> images, labels = load_test(2)
    >>> images.shape, [CLASSES[label] for label in labels]
    (torch.Size([2, 1, 28, 28]), ['Ankle boot', 'Pullover'])
    """
    pixels, labels = read(TEST_FOLDER, "t10k")
    return normalize(pixels[:limit]), labels[:limit]


def load_train(folder: Path = TRAIN_FOLDER, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The 60,000 training images, or the first `limit`, as from `load_test`. Raises ValueError."""
    pixels, labels = read(folder, "train")
    return normalize(pixels[:limit]), labels[:limit]
