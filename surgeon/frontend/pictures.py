"""Inputs from a folder of pictures, in the form that the model was trained with, where its library tells that form."""

from __future__ import annotations

import importlib
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import InvalidArgument, InvalidInputs, first_line
from surgeon.frontend.model_loading import library

#: What is decoded, by Pillow's names. It knows others that start programs, or are seldom looked after.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(".bmp .gif .jpeg .jpg .jp2 .pgm .png .ppm .tif .tiff .webp".split())
#: Pictures that make a batch.
BATCH = 32
#: How the pictures of a model with so many channels are opened.
_MODES = {1: "L", 3: "RGB"}

Transform = Callable[[Any], Tensor]


class Pictures:
    """The pictures of a folder and of those in it. None is read before a model is known, whose transform they need.

    They come in a random order, the same each time: those of a folder often resemble each other. If all lie in folders
    beside each other, these are `classes`, by name, and their numbers come along as labels.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder
        self._paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        self._labels = _classes(self._paths)
        self.classes = tuple(sorted(set(self._labels.values())))
        random.Random(0).shuffle(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def of(self, model: nn.Module, shape: tuple[int, ...] | None) -> Iterator[Any]:
        """Batches for a model, read as they are asked for; `shape` is that of its input (batch, channels, …), if known.

        What is no picture is skipped, and counted in a warning once the last batch was asked for.

        Raises:
            InvalidArgument: the model tells no transform, or a library is missing.
            InvalidInputs: none of the files can be read.
        """
        if shape is not None and (len(shape) != 4 or shape[1] not in _MODES):
            raise InvalidArgument(
                f"{self._name}: {self._folder} holds pictures, and the model takes inputs of shape {shape}; "
                f"expected (batch, 1 or 3, height, width). {_REMEDY}"
            )
        transform = transform_of(model, None if shape is None else (shape[1], shape[2], shape[3]))
        if transform is None:
            raise InvalidArgument(
                f"{self._name}: {self._folder} holds pictures, and the model does not tell how they are scaled and "
                "normalized, as models of timm (by their pretrained_cfg) and of torchvision do. " + _REMEDY
            )
        return self.through(transform, 3 if shape is None else shape[1])

    def through(self, transform: Transform, channels: int, size: int = BATCH) -> Iterator[Any]:
        """Batches of `size` pictures that were opened with 1 or 3 channels, each made an input by `transform`.

        With `classes`, a batch is `(pictures, labels)`. As with `of`, what is no picture is skipped and counted.

        Raises:
            InvalidInputs: none of the files can be read.
        """
        mode = _MODES[channels]
        made: list[tuple[Tensor, int]] = []
        bad: list[str] = []
        count = 0
        try:
            for path in self._paths:
                try:
                    picture = _opened(path, mode)
                except InvalidInputs as error:
                    bad.append(str(error))
                    continue
                label = self.classes.index(self._labels[path]) if self.classes else 0
                made.append((transform(picture), label))
                count += 1
                if len(made) == size:
                    yield self._batch(made)
                    made = []
            if made:
                yield self._batch(made)
            if not count:
                raise InvalidInputs(
                    f"{self._name}: none of the {len(self._paths)} pictures of {self._folder} can be read; {bad[0]}"
                )
        finally:
            if bad and count:
                warnings.warn(
                    f"{self._name}: {len(bad)} of the {len(bad) + count} pictures of {self._folder} that were needed "
                    f"can't be read and are left out; the first: {bad[0]}", stacklevel=2,
                )


    def _batch(self, made: list[tuple[Tensor, int]]) -> Any:
        pictures = torch.stack([picture for picture, _ in made])
        return (pictures, torch.tensor([label for _, label in made])) if self.classes else pictures


def _classes(paths: list[Path]) -> dict[Path, str]:
    """The folder of each picture below the last one that all are in; nothing if some lie right in that one.

    >>> [*_classes([Path("a/cat/1.png"), Path("a/dog/x/2.png")]).values()]
    ['cat', 'dog']
    >>> _classes([Path("a/1.png"), Path("a/b/2.png")])
    {}
    """
    if not paths:
        return {}
    whole = Path(os.path.commonpath([path.parent for path in paths]))
    below = {path: path.parent.relative_to(whole).parts for path in paths}
    return {path: parts[0] for path, parts in below.items()} if all(below.values()) else {}


_REMEDY = "Save arrays that are ready for it, or give what yields batches of them, as package.module:loader does"


def _opened(path: Path, mode: str) -> Any:
    try:
        image = importlib.import_module("PIL.Image")
    except ModuleNotFoundError as error:
        raise InvalidArgument("pictures are read by Pillow: pip install 'model-surgeon[pictures]'") from error
    try:
        with image.open(path, formats=FORMATS) as opened:
            return opened.convert(mode)
    except Exception as error:  # decoders of damaged files raise all kinds
        raise InvalidInputs(f"{os.fspath(path)}: {type(error).__name__}: {first_line(error)}") from error


def transform_of(model: nn.Module, size: tuple[int, int, int] | None = None) -> Transform | None:
    """From a picture to an input of the model (channels, height, width), as its library evaluates it; None if untold.

    A model of timm tells it by its `pretrained_cfg`, one of torchvision by the published weights of its architecture.
    `size` replaces the size that they were trained at.
    """
    if isinstance(getattr(model, "pretrained_cfg", None), Mapping):
        library("timm")
        data = importlib.import_module("timm.data")
        wanted = {} if size is None else {"input_size": size}
        made: Transform = data.create_transform(**data.resolve_data_config(wanted, model=model), is_training=False)
        return made
    if type(model).__module__.startswith("torchvision.models"):
        return _torchvisions(model, size)
    return None


def _torchvisions(model: nn.Module, size: tuple[int, int, int] | None) -> Transform | None:
    """The transform of the published weights with as many parameters; those of another head by what is nearest."""
    library("torchvision")
    models = importlib.import_module("torchvision.models")
    count = sum(each.numel() for each in model.parameters())
    found = []
    for name in models.list_models():
        builder = models.get_model_builder(name)
        if builder.__module__ == type(model).__module__:
            weights = getattr(models.get_model_weights(name), "DEFAULT", None)
            told = getattr(getattr(weights, "transforms", None), "keywords", {})
            if weights is not None and "crop_size" in told:
                found.append((abs(int(weights.meta["num_params"]) - count), name, weights.transforms))
    if not found:
        return None
    _, _, transforms = min(found, key=lambda each: each[:2])
    own = transforms.keywords
    if size is None or size[1] == own["crop_size"] == size[2]:
        made: Transform = transforms()
        return made
    share = own.get("resize_size", 256) / own["crop_size"]
    made = transforms(crop_size=size[1], resize_size=round(max(size[1:]) * share))
    vars(made)["crop_size"] = list(size[1:])  # it takes a single number, and crops to two
    return made
