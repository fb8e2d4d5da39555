"""Inputs by name, for the command line: arrays on disk, folders of them, or what the user's own Python gives."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from surgeon.errors import InvalidArgument
from surgeon.frontend.model_loading import current_folder_importable
from surgeon.frontend.parameters import SYNTHETIC
from surgeon.support.arrays import read_arrays
from surgeon.support.opening import Unfit

SUFFIXES = (".npy", ".npz", ".safetensors")
FORMS = f"FILE.npy, FILE.npz, FILE.safetensors, a folder of such files, package.module:NAME, or {SYNTHETIC}"
#: Rows of a file that make a batch.
BATCH = 32


def read(spec: str) -> Iterable[Any]:
    """The batches that `spec` names, read as they are asked for; nothing is unpickled.

    `spec` is one of

    - `FILE.npy`: an array, its first axis the samples;
    - `FILE.npz` or `FILE.safetensors`: one array, or one for each of the model's inputs, by name;
    - a folder of such files, which are read in the order of their names;
    - `package.module:NAME`: imported, from the current folder too. NAME is anything that yields batches, such as a
      DataLoader, or a function or class that gives one when called without arguments;
    - `synthetic`, which is handed on: inputs are made from the model alone.

    Raises:
        InvalidArgument: nothing has that name, or it can't be read or holds no rows. Of files, all but the first are
            looked at when their turn comes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/images.npy", np.zeros((40, 3, 8, 8), np.float32))
    ...     [batch.shape for batch in read(folder)]
    [(32, 3, 8, 8), (8, 3, 8, 8)]
    """
    if spec == SYNTHETIC:
        return spec
    path = Path(spec)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not files:
            raise InvalidArgument(
                f"{spec} holds no {', '.join(SUFFIXES)} file. Pictures and texts are to be brought into the form that "
                "the model takes first: save them as arrays, or name Python that does it, as package.module:NAME"
            )
        return _Files(files)
    if path.suffix in SUFFIXES:
        return _Files([path])
    module, colon, name = spec.partition(":")
    if path.exists() or not (colon and module and name):
        raise InvalidArgument(f"{spec!r} names no inputs; give {FORMS}")
    return _imported(module, name)


class _Files:
    """The batches of files. The first is looked at at once."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        _arrays(paths[0])

    def __iter__(self) -> Iterator[Any]:
        for path in self._paths:
            arrays = _arrays(path)
            rows = len(next(iter(arrays.values())))
            for start in range(0, rows, BATCH):
                # copied: an array that is mapped from a file can't be written
                batch = {name: np.array(array[start : start + BATCH]) for name, array in arrays.items()}
                yield batch if len(batch) > 1 else next(iter(batch.values()))


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


def _imported(package: str, name: str) -> Iterable[Any]:
    spec = f"{package}:{name}"
    with current_folder_importable():
        try:
            found: Any = importlib.import_module(package)
        except Exception as error:  # importing runs the user's code
            raise InvalidArgument(f"{package} can't be imported: {type(error).__name__}: {error}") from error
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is None:
            raise InvalidArgument(f"{spec} is nothing; give something that yields batches, or a function that does")
        if callable(found) and (isinstance(found, type) or not hasattr(found, "__iter__")):
            try:
                found = found()
            except Exception as error:  # the user's own code may raise anything
                raise InvalidArgument(f"{spec} could not be called: {type(error).__name__}: {error}") from error
    return found
