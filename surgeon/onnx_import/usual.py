"""The shapes of usual inputs of a file that leaves their sizes free."""

from __future__ import annotations

import os

from surgeon.errors import SurgeonError
from surgeon.onnx_import.load import load_onnx


def usual_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """The shapes by the file's names; none where the file can't be imported, or runs at no usual sizes."""
    try:
        net = load_onnx(path)
        inputs = net.dummy_inputs
    except SurgeonError:
        return {}
    return {port.name: tuple(inputs[port.parameter].shape) for port in net.inputs if port.parameter in inputs}
