"""The inputs named by `--data`: what the Python API takes as a string too, or Python objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgeon.errors import InvalidArgument
from surgeon.support.spec import parts


def read(spec: str) -> Any:
    """The inputs named by `spec`, as `data=` of `surgeon.shrink` takes them.

    `package.module:NAME` or `file.py:NAME` is imported, also from the current folder. NAME is anything that yields
    batches, such as a DataLoader, or a function or class that makes one without arguments. Any other spec is returned
    unchanged.

    Raises:
        InvalidArgument: it can't be imported or called.
    """
    named = parts(spec)
    return spec if named is None or Path(spec).exists() else _imported(spec)


def _imported(spec: str) -> Any:
    from surgeon.frontend.own_python import called, current_folder_importable

    with current_folder_importable():
        found = called(spec)
        if found is None:
            raise InvalidArgument(f"{spec} does not exist; name something that yields batches, or a function that does")
        if callable(found) and (isinstance(found, type) or not hasattr(found, "__iter__")):
            try:
                found = found()
            except Exception as error:  # the user's own code may raise anything
                raise InvalidArgument(f"{spec} could not be called: {type(error).__name__}: {error}") from error
    return found


def metric(spec: str) -> Any:
    """The function that `spec`, `folder/file.py:NAME` or `package.module:NAME`, names for `--metric`.

    Raises:
        InvalidArgument: there is none, or it can't be imported.
    """
    return _function("metric", spec, "of feeds and outputs")


def loss(spec: str) -> Any:
    """The function that `spec` names for `--loss`, as for `metric`."""
    return _function("loss", spec, "of the model's output and the labels, such as torch.nn.functional:cross_entropy")


def _function(option: str, spec: str, wanted: str) -> Any:
    from surgeon.frontend.own_python import called

    found = called(spec) if parts(spec) is not None else None
    if not callable(found):
        what = "names no function" if found is None else f"is a {type(found).__name__}, not a function"
        raise InvalidArgument(f"--{option} {spec} {what}; give file.py:NAME or package.module:NAME, {wanted}")
    return found


def fitting(
    data: Any, model: Any, mean: str | None = None, std: str | None = None, layout: str | None = None,
    resize: str | None = None, beside: bool = False,
) -> Any:
    """The inputs that are on disk, as a model of an ONNX file takes them; other data as they are.

    The other arguments are those of the command, for pictures. They may be of other data, `beside` which these are.

    Raises:
        InvalidArgument: they can't be read, or something is told of pictures where there are none.
    """
    from surgeon.frontend.parameters import MADE  # with torch, which the command line does without until it is needed

    told = {"mean": mean, "std": std, "layout": layout, "resize": resize}
    given = [name for name, value in told.items() if value is not None]
    ports = getattr(model, "inputs", None)
    if not isinstance(data, str) or data in MADE or not isinstance(ports, tuple) or not Path(data).exists():
        if given and not beside:
            raise InvalidArgument(f"--{given[0]} is for a folder of pictures as --data of an ONNX file alone")
        return data
    from surgeon.cli.options import sizes_of
    from surgeon.frontend.data_files import from_disk
    from surgeon.frontend.pictures import Pictures
    from surgeon.onnx_import.feeds import Feeds, Pixels

    if beside and not isinstance(from_disk("data", data), Pictures):
        return Feeds("data", data, model)
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
