"""Arrays that somebody else saved: numbers alone, and no more of them than the file holds."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file

from surgeon.support.opening import MIB, Unfit, open_file
from surgeon.support.safetensors_io import check_header

_KINDS: Final = "biufc"
_HEADER: Final = 1000
"""Characters of a header; one of numbers has about a hundred."""
_MEMBERS: Final = 10_000
_PACKED: Final = 100
"""How many times as large as the file arrays may be that are packed in it, where they are large."""
_SMALL: Final = 64 * MIB
_ENCRYPTED: Final = 0x1


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays in a .npy, .npz or .safetensors file by name; the one in a .npy file is mapped, not read.

    What a file claims is held against its size before memory is taken for it.

    Raises:
        Unfit: the file is none of these, is damaged, or holds something other than numbers.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/a.npy", np.zeros((2, 3)))
    ...     read_arrays(f"{folder}/a.npy")["array"].shape
    (2, 3)
    """
    match Path(path).suffix:
        case ".npy":
            return {"array": _mapped(path)}
        case ".npz":
            return _unpacked(path)
        case ".safetensors":
            return _safetensors(path)
    raise Unfit("its name ends in none of .npy, .npz, .safetensors")


def _mapped(path: str | os.PathLike[str]) -> np.ndarray:
    with open_file(path) as file:
        shape, fortran, dtype = _header(file)
        start, size = file.tell(), os.fstat(file.fileno()).st_size
        count = math.prod(shape)
        if count * dtype.itemsize != size - start:
            raise Unfit(f"it claims {count * dtype.itemsize:,} bytes of numbers, and has {size - start:,}")
        order: Any = "F" if fortran else "C"
        if not count:
            return np.zeros(shape, dtype, order)
        return np.memmap(file, dtype, "r", start, shape, order)


def _unpacked(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _check_sizes(entries, os.fstat(file.fileno()).st_size)
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if name in found:
                    raise Unfit(f"it holds {name[:80]!r} twice")
                try:
                    found[name] = _member(archive, entry)
                except Unfit as error:
                    raise Unfit(f"{name[:80]}: {error}") from error
    # zipfile raises most kinds of errors for a broken directory
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, Unfit):
            raise
        raise Unfit(f"it is no whole .npz file: {error}") from error
    if not found:
        raise Unfit("it holds no array")
    return found


def _check_sizes(entries: list[zipfile.ZipInfo], size: int) -> None:
    if len(entries) > _MEMBERS:
        raise Unfit(f"it holds {len(entries):,} arrays; at most {_MEMBERS:,} are read")
    if any(entry.flag_bits & _ENCRYPTED for entry in entries):
        raise Unfit("it is encrypted")
    claimed, packed = sum(entry.file_size for entry in entries), sum(entry.compress_size for entry in entries)
    if packed > size:
        raise Unfit("its arrays overlap, or claim more bytes than the file has")
    if claimed > max(_SMALL, _PACKED * size):
        raise Unfit(f"its {size:,} bytes unpack to {claimed:,}; save it with numpy.savez, which packs nothing")


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        shape, fortran, dtype = _header(file)  # type: ignore[arg-type]
        left = entry.file_size - file.tell()
        count = math.prod(shape)
        if count * dtype.itemsize != left:
            raise Unfit(f"it claims {count * dtype.itemsize:,} bytes of numbers, and has {left:,}")
        content = file.read()
    if len(content) != left:
        raise Unfit("it is cut short")
    array = np.frombuffer(content, dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type, of an array's header; the file is behind it then."""
    form = np.lib.format
    try:
        version = form.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise Unfit(f"it is of numpy's version {version}, which is not read")
        reader = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        shape, fortran, dtype = reader(file, max_header_size=_HEADER)
    # numpy's parser raises what it meets: a header is a dict in Python's notation
    except (ValueError, TypeError, SyntaxError, EOFError, KeyError, OverflowError, RecursionError, TokenError) as error:
        if isinstance(error, Unfit):
            raise
        told = str(error).partition("\n")[0].partition("allow_pickle")[0][:200]  # what numpy recommends runs code
        raise Unfit(f"it is no array of numpy's: {told}") from error
    if dtype.kind not in _KINDS or dtype.hasobject or dtype.subdtype is not None:
        kind = "Python objects" if dtype.hasobject else str(dtype)[:80]
        raise Unfit(f"it holds {kind}, not numbers; save an array of numbers")
    sizes: list[Any] = list(shape)
    fits = len(sizes) <= 32 and all(type(size) is int and size >= 0 for size in sizes)
    if not fits or math.prod(size or 1 for size in sizes) * dtype.itemsize >= 1 << 62:
        raise Unfit(f"it has the shape {str(shape)[:80]}, which no array has")
    return shape, fortran, dtype


def _safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    try:
        check_header(Path(path))
        tensors: Mapping[str, Any] = load_file(path)
        return {name: tensor.numpy() for name, tensor in tensors.items()}
    except Unfit:
        raise
    except TypeError as error:
        raise Unfit("it holds numbers of a type that numpy has not, such as bfloat16; save float32") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise Unfit(f"it is no whole safetensors file: {error}") from error
