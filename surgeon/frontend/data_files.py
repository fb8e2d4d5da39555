"""Inputs from disk: a file of arrays, or a folder of such files or of pictures, read as they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from surgeon.errors import InvalidArgument
from surgeon.frontend.pictures import Pictures
from surgeon.support import arguments
from surgeon.support.arguments import shown
from surgeon.support.arrays import read_arrays
from surgeon.support.opening import Unfit

SUFFIXES = (".npy", ".npz", ".safetensors")
FORMS = (
    'FILE.npy, FILE.npz, FILE.safetensors, a folder of such files or of pictures, "noise", "synthetic", or what yields '
    "batches"
)
#: Rows of a file that make a batch.
BATCH = 32


class DataFiles:
    """The batches of files. The first is looked at at once, the others when their turn comes; nothing is unpickled.

    - `FILE.npy`: an array, its first axis the samples;
    - `FILE.npz` or `FILE.safetensors`: one array, or one for each of the model's inputs, by name;
    - a folder of such files, which are read in the order of their names.

    Raises:
        InvalidArgument: nothing has that name, or it can't be read or holds no rows.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/images.npy", np.zeros((40, 3, 8, 8), np.float32))
    ...     [batch.shape for batch in DataFiles("data", folder)]
    [(32, 3, 8, 8), (8, 3, 8, 8)]
    """

    def __init__(self, name: str, place: str | os.PathLike[str]) -> None:
        path = Path(arguments.path(name, place))
        if path.is_dir():
            self._paths = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
            if not self._paths:
                raise InvalidArgument(
                    f"{name}: {path} holds no {', '.join(SUFFIXES)} file, and no picture. Texts and sounds are to be "
                    "brought into the form that the model takes first: save them as arrays, or give what yields "
                    "batches of them"
                )
        elif path.suffix in SUFFIXES:
            self._paths = [path]
        else:
            raise InvalidArgument(f"{name}={shown(place)} names no inputs; give {FORMS}")
        _arrays(self._paths[0])

    def __iter__(self) -> Iterator[Any]:
        for path in self._paths:
            arrays = _arrays(path)
            rows = len(next(iter(arrays.values())))
            for start in range(0, rows, BATCH):
                # copied: an array that is mapped from a file can't be written
                batch = {name: np.array(array[start : start + BATCH]) for name, array in arrays.items()}
                yield batch if len(batch) > 1 else next(iter(batch.values()))


def from_disk(name: str, place: str | os.PathLike[str]) -> DataFiles | Pictures:
    """What a file or folder holds: the pictures of a folder without arrays, else arrays.

    Raises:
        InvalidArgument: nothing has that name, or it holds neither.
    """
    path = Path(arguments.path(name, place))
    arrays = not path.is_dir() or any(file.suffix in SUFFIXES for file in path.iterdir())
    pictures = None if arrays else Pictures(name, path)
    return pictures if pictures is not None and len(pictures) else DataFiles(name, place)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name, equally long; an array in a .npy file is mapped, not read."""
    try:
        found = read_arrays(path)
    except Unfit as error:
        raise InvalidArgument(f"{path} can't be read: {error}") from error
    lengths = {len(array) if array.ndim else 0 for array in found.values()}
    if not any(lengths):
        raise InvalidArgument(f"{path} holds no rows; save an array of inputs, its first axis the samples")
    if len(lengths) > 1:
        told = ", ".join(f"{name} {array.shape}" for name, array in found.items())
        raise InvalidArgument(f"{path} holds arrays of different lengths: {told}; give one for each of the inputs")
    return found
