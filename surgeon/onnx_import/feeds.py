"""Inputs of a file's module that are in files: in batches of the size that the module takes, by its own names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from surgeon.errors import InvalidArgument
from surgeon.frontend.data_files import DataFiles, from_disk
from surgeon.frontend.pictures import BATCH, Pictures

if TYPE_CHECKING:
    from surgeon.onnx_import.module import OnnxModel, Port

#: Where the channels of a picture are, by the name of a layout.
LAYOUTS = {"NCHW": 1, "NHWC": 3}


@dataclass(frozen=True)
class Pixels:
    """How a picture becomes an input, of which a file tells nothing but sizes.

    It is resized to `resize`, (height, width), and its values are (pixel / 255 - mean) / std, with one number for each
    channel or one for all; an input of type uint8 takes the pixels themselves. `layout` is NCHW or NHWC. What is None
    follows from the file, where that is clear.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str | None = None
    resize: tuple[int, int] | None = None


class Feeds:
    """The batches of a file or folder of arrays, by the names of forward's parameters, or of a folder of pictures.

    A lone array is for the only input. Arrays of other names, such as labels, come along, and so do the classes of
    pictures, as "label". `pixels` says how pictures are read.

    Raises:
        InvalidArgument: they can't be read, or the file's input is none for pictures, or `pixels` does not say enough.
    """

    def __init__(
        self, name: str, place: str | os.PathLike[str], model: OnnxModel, pixels: Pixels | None = None
    ) -> None:
        self._model = model
        found = from_disk(name, place)
        self._files: DataFiles | _Pictures
        if isinstance(found, Pictures):
            self._files = _Pictures(name, Path(place), found, model, pixels or Pixels())
        elif pixels is not None and pixels != Pixels():
            raise InvalidArgument(
                f"{name}: {os.fspath(place)} holds arrays, or nothing; mean, std, layout and resize are for pictures"
            )
        else:
            self._files = found

    def __iter__(self) -> Iterator[dict[str, Any]]:
        ports = self._model.inputs
        fixed = [port.sizes[0] for port in ports if port.sizes and isinstance(port.sizes[0], int)]
        free = [port for port in ports if port.sizes and not isinstance(port.sizes[0], int)]
        for batch in self._files:
            arrays = batch if isinstance(batch, dict) else {ports[0].name: batch}
            named = {
                port.parameter: arrays[name]
                for port in ports for name in (port.name, port.parameter) if name in arrays
            }
            rows = min((len(each) for each in named.values()), default=0)
            taken = {*(port.name for port in ports), *named}
            named |= {name: array for name, array in arrays.items() if name not in taken}
            size = rows if free or not fixed else fixed[0]
            for start in range(0, rows - size + 1, max(size, 1)):
                yield {name: np.asarray(array)[start : start + size] for name, array in named.items()}


class _Pictures:
    """The pictures of a folder as inputs of a file."""

    def __init__(self, name: str, folder: Path, found: Pictures, model: OnnxModel, pixels: Pixels) -> None:
        if len(model.inputs) != 1:
            told = ", ".join(port.name for port in model.inputs)
            raise InvalidArgument(
                f"{name}: {folder} holds pictures, and the file takes the inputs {told}; save arrays of all of them"
            )
        (port,) = model.inputs
        self._found, self._port, self._name = found, port, name
        where = _channels(name, folder, port, pixels.layout)
        self._last = where == 3
        sizes = port.sizes or ()
        channels = sizes[where]
        self.channels = channels if isinstance(channels, int) else 3
        height, width = (sizes[1], sizes[2]) if self._last else (sizes[2], sizes[3])
        self._size = _resized(name, port, (height, width), pixels.resize, model.sizes, 1 if self._last else 2)
        self._scale = _scale(name, port, pixels, self.channels)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        size = self._port.sizes[0] if self._port.sizes else None
        for batch in self._found.through(self._input, self.channels, size if isinstance(size, int) else BATCH):
            if self._found.classes:
                pictures, labels = batch
                yield {self._port.name: pictures.numpy(), "label": labels.numpy()}
            else:
                yield {self._port.name: batch.numpy()}

    def _input(self, picture: Any) -> Tensor:
        height, width = self._size
        array = np.asarray(picture.resize((width, height), 2), np.float32)  # bilinear, of all pixels below
        array = array.reshape(height, width, -1)
        if self._scale is not None:
            mean, std = self._scale
            array = (array / 255 - mean) / std
        made = torch.from_numpy(np.ascontiguousarray(array if self._last else array.transpose(2, 0, 1)))
        return made.to(self._port.dtype)


def _channels(name: str, folder: Path, port: Port, layout: str | None) -> int:
    """The axis of the channels."""
    if layout is not None and layout not in LAYOUTS:
        raise InvalidArgument(f"layout={layout!r} is not known; give one of {', '.join(LAYOUTS)}")
    sizes = port.sizes or ()
    fits = [
        each for each, axis in LAYOUTS.items()
        if len(sizes) == 4 and (sizes[axis] in (1, 3) or (layout is not None and not isinstance(sizes[axis], int)))
        and layout in (None, each)
    ]
    if len(fits) == 1:
        return LAYOUTS[fits[0]]
    shape = "of any shape" if port.sizes is None else str(tuple("?" if size is None else size for size in sizes))
    told = "say by layout which of the axes are the channels" if fits or len(sizes) == 4 else "save arrays"
    raise InvalidArgument(
        f"{name}: {folder} holds pictures, and the file's input {port.name!r} is {shape}; one of pictures has 4 "
        f"axes, 1 or 3 channels among them; {told}"
    )


def _resized(
    name: str, port: Port, sizes: tuple[int | str | None, ...], wanted: tuple[int, int] | None,
    given: Any, first: int,
) -> tuple[int, int]:
    """Height and width of the inputs."""
    found: list[int] = []
    for place, size in enumerate(sizes):
        told = given.get(f"{port.name}:{first + place}", given.get(str(size))) if not isinstance(size, int) else size
        value = wanted[place] if wanted is not None else told
        if value is None:
            raise InvalidArgument(
                f"{name}: the file leaves the height or width of its pictures free; give resize=, height and width"
            )
        if isinstance(size, int) and value != size:
            raise InvalidArgument(f"resize: the file takes pictures of {sizes[0]} x {sizes[1]} only, not {wanted}")
        found.append(int(value))
    return found[0], found[1]


def _scale(name: str, port: Port, pixels: Pixels, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and standard deviation of each channel; None where the pixels themselves are the input."""
    if port.dtype is torch.uint8:
        if pixels.mean is not None or pixels.std is not None:
            raise InvalidArgument(f"{name}: the file takes the pixels themselves, as uint8; leave mean and std out")
        return None
    if pixels.mean is None or pixels.std is None:
        raise InvalidArgument(
            f"{name}: a file does not tell how its pictures are normalized; give mean= and std=, of pixels from 0 to 1 "
            "(0 and 1 where they are not normalized, 0 and 0.00392157 where the file takes numbers up to 255)"
        )
    for each, values in (("mean", pixels.mean), ("std", pixels.std)):
        if len(values) not in (1, channels):
            raise InvalidArgument(f"{each} holds {len(values)} numbers; the file's pictures have {channels} channels")
    if not all(value > 0 for value in pixels.std):
        raise InvalidArgument(f"std={pixels.std} holds what is not above 0")
    return np.array(pixels.mean, np.float32), np.array(pixels.std, np.float32)
