"""float16: half the bytes, by onnxruntime's converter."""

from __future__ import annotations

from pathlib import Path

import onnx

from surgeon.errors import ExportError
from surgeon.frontend.isolation import quietly

#: What a result in float16 is called.
HALF = "float16, inputs and outputs as they were"


def in_half(source: Path, target: Path) -> Path:
    """Write a float32 file in float16, its inputs and outputs as they were.

    Operators that onnxruntime does not compute in float16, or that lose too much, stay in float32.

    Raises:
        ExportError: the file can't be read, or can't be converted.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        with quietly():
            onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)
    except Exception as error:  # the converter and protobuf raise kinds of their own
        raise ExportError(f"{source} can't be converted to float16: {error}") from error
    return target
