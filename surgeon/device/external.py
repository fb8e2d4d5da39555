"""The weights that an ONNX file keeps in other files: their paths are checked.

onnxruntime opens whatever path a file names; here, paths must stay in the file's own folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from surgeon.device.protobuf import BYTES, Buffer, fields, text, varint
from surgeon.errors import InvalidArgument
from surgeon.support.opening import Unfit, require_file

_DEPTH: Final = 60

# For each message, the fields that lead to tensors: from number to kind of message, from onnx.proto
_INSIDE: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_TENSOR_EXTERNAL, _TENSOR_PLACE = 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2


def check_external(model: Buffer, folder: str | os.PathLike[str]) -> None:
    """Make sure that the external data of an ONNX model's tensors lie in `folder`, in files that are large enough.

    Raises `InvalidArgument` if a path leads elsewhere, or a file is missing, not a regular file, or too short.
    """
    for entries in _tensors(model, 0, len(model), "model", 0):
        _check(entries, Path(folder))


def _tensors(model: Buffer, start: int, end: int, kind: str, depth: int) -> Iterator[dict[str, str]]:
    """Each tensor's entries about the file that holds its values."""
    if depth > _DEPTH:
        raise InvalidArgument("not an ONNX model (its graphs are nested too deeply)")
    if kind == "tensor":
        entries: dict[str, str] = {}
        outside = False
        for number, wire, low, high in fields(model, start, end):
            if number == _TENSOR_EXTERNAL and wire == BYTES:
                parts = {part: text(model, a, b) for part, form, a, b in fields(model, low, high) if form == BYTES}
                entries[parts.get(_ENTRY_KEY, "")] = parts.get(_ENTRY_VALUE, "")
            elif number == _TENSOR_PLACE and wire != BYTES:
                outside = varint(model, low)[0] != 0
        if entries or outside:
            yield entries
        return
    inside = _INSIDE[kind]
    for number, wire, low, high in fields(model, start, end):
        if number in inside and wire == BYTES:
            yield from _tensors(model, low, high, inside[number], depth + 1)


def _check(entries: Mapping[str, str], folder: Path) -> None:
    location = entries.get("location", "")
    place = folder / location
    shown = f"weights in {location[:120]!a}"
    if not location or location.startswith(("/", "\\")) or ".." in Path(location).parts or "\\" in location:
        raise InvalidArgument(f"{shown}, which is not a file in the model's own folder")
    try:
        if not Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder)):
            raise InvalidArgument(f"{shown}, which is a link to another folder")
        size = require_file(place)
        offset, length = (int(entries.get(name) or 0) for name in ("offset", "length"))
    except Unfit as error:
        raise InvalidArgument(f"{shown}: {error}") from error
    except ValueError as error:
        raise InvalidArgument(f"{shown} have an offset or a length that is not a number ({error})") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise InvalidArgument(f"{shown}: {length:,} bytes from {offset:,} on are claimed, and it has {size:,}")
