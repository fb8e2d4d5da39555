"""The inputs named by `--data` and `--calibration`: what the Python API takes as a string too, or Python objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgeon.errors import InvalidArgument
from surgeon.support.spec import parts


def read(spec: str) -> Any:
    """The inputs named by `spec`, as `data=` of `surgeon.shrink` takes them.

    `package.module:NAME` is imported, also from the current folder, and so is `folder/file.py:NAME`. NAME is anything
    that yields batches, such as a DataLoader, or a function or class that makes one without arguments. Any other spec
    is returned unchanged.

    Raises:
        InvalidArgument: it can't be imported or called.
    """
    named = parts(spec)
    return spec if named is None or Path(spec).exists() else _imported(*named)


def _imported(package: str, name: str) -> Any:
    from surgeon.frontend.model_loading import current_folder_importable, user_module

    spec = f"{package}:{name}"
    with current_folder_importable():
        try:
            found: Any = user_module(package)
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


def fitting(
    data: Any, model: Any, mean: str | None = None, std: str | None = None, layout: str | None = None,
    resize: str | None = None,
) -> Any:
    """The inputs that are on disk, as a model of an ONNX file takes them; other data as they are.

    The other arguments are those of the command, for pictures.

    Raises:
        InvalidArgument: they can't be read, or something is told of pictures where there are none.
    """
    from surgeon.frontend.parameters import MADE  # with torch, which the command line does without until it is needed

    told = {"mean": mean, "std": std, "layout": layout, "resize": resize}
    given = [name for name, value in told.items() if value is not None]
    ports = getattr(model, "inputs", None)
    if not isinstance(data, str) or data in MADE or not isinstance(ports, tuple) or not Path(data).exists():
        if given:
            raise InvalidArgument(f"--{given[0]} is for a folder of pictures as --data of an ONNX file alone")
        return data
    from surgeon.cli.options import sizes_of
    from surgeon.onnx_import.feeds import Feeds, Pixels

    size = None if resize is None else sizes_of(resize, "--resize")
    if size is not None and len(size) != 2:
        raise InvalidArgument(f"--resize {resize!r}: give height and width, such as 224,224")
    pixels = Pixels(
        _numbers("mean", mean), _numbers("std", std), layout, None if size is None else (size[0], size[1])
    )
    return Feeds("data", data, model, pixels)


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidArgument(f"--{name} {text!r}: give a number, or one for each channel") from error
