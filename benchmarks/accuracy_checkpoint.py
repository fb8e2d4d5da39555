"""Tensors out of a checkpoint of torch without unpickling it: no code in the file can run.

Since torch 1.6, such a file is a ZIP archive of a pickle and a file for each storage. Before, it was five pickles (a
magic number, a version, sizes of C types, the state, the storages' keys) and then the storages, each a count and its
numbers. The pickles' opcodes are listed by `pickletools`, which only reads them, and followed here as far as plain data
go: a call is kept as the tuple of what is called and with what.
"""

from __future__ import annotations

import functools
import io
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

_MAGIC = 0x1950A86A20F9469CFC6C
_TYPES = {
    "torch FloatStorage": torch.float32, "torch DoubleStorage": torch.float64, "torch HalfStorage": torch.float16,
    "torch LongStorage": torch.int64, "torch IntStorage": torch.int32,
}
_TENSOR = "torch._utils _rebuild_tensor_v2"
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LITERALS = ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "GLOBAL")
_MARK = object()

Reference = tuple[Any, ...]


def tensors(path: Path, entry: str | None = None) -> dict[str, Tensor]:
    """The state that a file holds, by name; the one of an `entry` if that is given.

    Raises:
        ValueError: the file is no checkpoint, or holds anything but a dict of tensors.
    """
    read = _archived if zipfile.is_zipfile(path) else _concatenated
    state, storage_of = read(path)
    state = state if entry is None else state[entry]
    for name, made in state.items():
        if not isinstance(made, tuple) or made[0] != _TENSOR:
            raise ValueError(f"{path}: {name} is no tensor but {made!r}")
    return {
        name: torch.as_strided(storage_of(source), size, stride, offset).clone()
        for name, (_, (source, offset, size, stride, *_)) in state.items()
    }


def _archived(path: Path) -> tuple[dict[str, Any], Callable[[Reference], Tensor]]:
    """The state of a ZIP archive, and what finds a storage by the reference to it."""
    archive = zipfile.ZipFile(path)
    place = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")

    def storage_of(reference: Reference) -> Tensor:
        return torch.frombuffer(bytearray(archive.read(f"{place}data/{reference[2]}")), dtype=_TYPES[reference[1]])

    return _plain(io.BytesIO(archive.read(f"{place}data.pkl"))), storage_of


def _concatenated(path: Path) -> tuple[dict[str, Any], Callable[[Reference], Tensor]]:
    """The same of a file of torch before 1.6."""
    with path.open("rb") as file:
        if _plain(file) != _MAGIC:
            raise ValueError(f"{path} is no checkpoint of torch")
        _, _, state, keys = (_plain(file) for _ in range(4))
        place = file.tell()

    @functools.cache
    def storages() -> dict[str, Tensor]:
        kinds = {reference[2]: _TYPES[reference[1]] for reference in _references(state)}
        with path.open("rb") as file:
            file.seek(place)
            return {key: _storage(file, kinds[key]) for key in keys}

    return state, lambda reference: storages()[reference[2]]


def _references(value: Any) -> Iterator[Reference]:
    """All references to storages in plain data: (the word "storage", type, key, device, count)."""
    if isinstance(value, tuple) and value and value[0] == "storage":
        yield value
    elif isinstance(value, tuple | list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _references(each)


def _storage(file: BinaryIO, kind: torch.dtype) -> Tensor:
    (count,) = struct.unpack("<q", file.read(8))
    return torch.frombuffer(bytearray(file.read(count * kind.itemsize)), dtype=kind)


def _plain(file: BinaryIO) -> Any:
    """The next pickle as plain data; a call is (function, arguments), a reference to a storage its own tuple."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def marked() -> list[Any]:
        at = len(stack) - 1 - stack[::-1].index(_MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    for code, value, _ in pickletools.genops(file):
        name = code.name
        if name in _LITERALS:
            stack.append(value)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            last = tuple(stack[-_TUPLES[name] :])
            stack[-_TUPLES[name] :] = [last]
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(marked()))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[value] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name in ("SETITEM", "SETITEMS"):
            items = marked() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name in ("APPEND", "APPENDS"):
            items = marked() if name == "APPENDS" else [stack.pop()]
            stack[-1].extend(items)
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append({} if function == "collections OrderedDict" else (function, arguments))
        elif name == "BUILD":
            stack.pop()  # attributes of a dict
        elif name not in ("PROTO", "BINPERSID", "STOP"):
            raise ValueError(f"a pickle with the opcode {name}, which plain tensors don't need")
    return stack.pop()
