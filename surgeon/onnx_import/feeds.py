"""Inputs of a file's module that are in files: in batches of the size that the module takes, by its own names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from surgeon.frontend.data_files import DataFiles
from surgeon.onnx_import.module import OnnxModel


class Feeds:
    """The batches of a file of arrays, by the names of forward's parameters; a lone array is for the only input.

    Raises:
        InvalidArgument: the file can't be read.
    """

    def __init__(self, name: str, place: str | os.PathLike[str], model: OnnxModel) -> None:
        self._files = DataFiles(name, place)
        self._model = model

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
            size = rows if free or not fixed else fixed[0]
            for start in range(0, rows - size + 1, max(size, 1)):
                yield {name: np.asarray(array)[start : start + size] for name, array in named.items()}
