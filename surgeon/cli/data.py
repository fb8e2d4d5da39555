"""The inputs named by `--data` and `--calibration`: what the Python API takes as a string too, or Python objects."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from surgeon.errors import InvalidArgument


def read(spec: str) -> Any:
    """The inputs named by `spec`, as `data=` of `surgeon.shrink` takes them.

    `package.module:NAME` is imported, also from the current folder. NAME is anything that yields batches, such as a
    DataLoader, or a function or class that makes one without arguments. Any other spec is returned unchanged.

    Raises:
        InvalidArgument: it can't be imported or called.
    """
    package, colon, name = spec.partition(":")
    return _imported(package, name) if colon and package and name and not Path(spec).exists() else spec


def _imported(package: str, name: str) -> Any:
    from surgeon.frontend.model_loading import current_folder_importable

    spec = f"{package}:{name}"
    with current_folder_importable():
        try:
            found: Any = importlib.import_module(package)
        except Exception as error:  # importing runs the user's code
            raise InvalidArgument(f"{package} can't be imported: {type(error).__name__}: {error}") from error
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is None:
            raise InvalidArgument(f"{spec} does not exist; name something that yields batches, or a function that does")
        if callable(found) and (isinstance(found, type) or not hasattr(found, "__iter__")):
            try:
                found = found()
            except Exception as error:  # the user's own code may raise anything
                raise InvalidArgument(f"{spec} could not be called: {type(error).__name__}: {error}") from error
    return found


def fitting(data: Any, model: Any) -> Any:
    """The inputs that are in files, in batches of the size that a model of an ONNX file fixes; other data as they are.

    Raises:
        InvalidArgument: they can't be read.
    """
    ports = getattr(model, "inputs", None)
    if not isinstance(data, str) or not data.endswith((".npy", ".npz", ".safetensors")) or not isinstance(ports, tuple):
        return data
    from surgeon.onnx_import.feeds import Feeds

    return Feeds("data", data, model)
