"""An ONNX file as a model: `surgeon inspect model.onnx`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import surgeon
from surgeon.errors import InvalidArgument, SurgeonError
from surgeon.support.shapes import shapes

if TYPE_CHECKING:
    from torch import nn


def load_file(path: str, shapes: Sequence[str], fixed: Sequence[str] = ()) -> tuple[nn.Module, dict[str, Any]]:
    """The module of a file, and inputs of the shapes that are given, by name if there are several, or usual ones.

    Raises:
        InvalidArgument: a shape or a fixed value names no input, or is none that the file takes.
    """
    from surgeon.cli.options import sizes_of
    from surgeon.onnx_import.module import listed_ports

    model = surgeon.load_onnx(path, fixed=dict(map(_fixed, fixed)))
    names = {port.name: port for port in model.inputs}
    for text in shapes:
        name, equals, sizes = text.rpartition("=")
        name = name if equals else next(iter(names)) if len(names) == 1 else ""
        if name not in names:
            raise InvalidArgument(f"--shape {text!r}: give INPUT=SIZES; the file takes {listed_ports(model.inputs)}")
        given = sizes_of(sizes)
        known = names[name].sizes
        if known is not None and (len(known) != len(given) or any(
            isinstance(size, int) and size != wanted for size, wanted in zip(known, given, strict=True)
        )):
            raise InvalidArgument(f"--shape {text!r}: the file takes {listed_ports([names[name]])}")
        model.sizes.update({f"{name}:{axis}": size for axis, size in enumerate(given)})
    return model, model.dummy_inputs


def _fixed(text: str) -> tuple[str, float | int]:
    """An input's name and its value.

    >>> _fixed("rate=16000"), _fixed("scale=1e-3")
    (('rate', 16000), ('scale', 0.001))
    """
    name, equals, number = text.rpartition("=")
    try:
        value = int(number) if number.lstrip("+-").isdecimal() else float(number)
    except ValueError:
        equals = ""
    if not equals or not name:
        raise InvalidArgument(f"--fixed {text!r}: give INPUT=NUMBER, the value of one of the inputs")
    return name, value


def of_these_sizes(model: nn.Module, inputs: Any, data: Any) -> Any:
    """Example inputs of a file's module that were made up, of the sizes of its feeds instead."""
    import torch

    from surgeon.onnx_import.feeds import Feeds
    from surgeon.onnx_import.module import OnnxModel

    if not isinstance(model, OnnxModel) or not isinstance(data, Feeds) or not isinstance(inputs, dict):
        return inputs
    first, found = next(iter(data), {}), dict(inputs)
    for port in model.inputs:
        if port.parameter in first and port.parameter in inputs and port.sizes:
            rows = len(inputs[port.parameter])
            given = torch.as_tensor(first[port.parameter][:rows])
            if len(given) < rows or given.dim() != len(port.sizes):
                return inputs  # what is wrong with the feeds is told where they are read
            found[port.parameter] = given.to(port.dtype)
    return found


def feeds_to_measure(path: Path, shapes: Sequence[str]) -> dict[str, Any] | None:
    """Inputs to measure a file on: of the shapes that are given, or of usual ones where it leaves more free than a
    batch and does not tell the sizes that it was exported with. None where no inputs have to be chosen.

    Raises:
        InvalidArgument: a shape names no input, or is none that the file takes; or there is no such file.
    """
    from surgeon.device.ort_session import open_session, untold

    if not shapes and not untold(open_session(path)):
        return None
    try:
        return feeds_of(*load_file(str(path), shapes))
    except SurgeonError:
        if shapes:
            raise
        return None


def feeds_of_most(path: Path, given: Any) -> dict[str, Any] | None:
    """Inputs of the shape that most runs have; None where no shapes are given, or the file takes only other sizes."""
    from surgeon.device.ort_session import feeds_at

    if not given:
        return None
    try:
        return feeds_at(path, max(shapes("shapes", given), key=lambda each: each.weight).sizes)
    except InvalidArgument:  # the file is of the example's sizes: the budget was measured in files of its own
        return None


def feeds_of(model: nn.Module, inputs: Any) -> dict[str, Any] | None:
    """The inputs of a file's module as its file takes them, by name; None for another module."""
    from surgeon.onnx_import.module import OnnxModel

    if not isinstance(model, OnnxModel) or not isinstance(inputs, dict):
        return None
    return {port.name: inputs[port.parameter].numpy() for port in model.inputs if port.parameter in inputs}
