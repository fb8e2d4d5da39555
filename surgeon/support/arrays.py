"""Arrays from files that are not trusted: only numbers are read, and no more than the file holds."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file

from surgeon.support.opening import MIB, Unfit, open_file
from surgeon.support.safetensors_io import check_header

_KINDS: Final = "biufc"
_HEADER: Final = 1000
"""Characters of a header; that of an array of numbers has about a hundred."""
_MEMBERS: Final = 10_000
_PACKED: Final = 100
"""The largest ratio of unpacked to packed bytes, for arrays that are not small."""
_SMALL: Final = 64 * MIB
_ENCRYPTED: Final = 0x1


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays in a .npy, .npz or .safetensors file by name; the one in a .npy file is mapped, not read.

    The sizes in a header are checked against the file's size before memory is allocated.

    Raises:
        Unfit: the file is of another format, is damaged, or holds something other than numbers.

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
    raise Unfit("its name must end in .npy, .npz or .safetensors")


def _mapped(path: str | os.PathLike[str]) -> np.ndarray:
    with open_file(path) as file:
        shape, order, dtype = _header(file, os.fstat(file.fileno()).st_size)
        if not math.prod(shape):
            return np.zeros(shape, dtype, order)
        return np.memmap(file, dtype, "r", file.tell(), shape, order)


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
        raise Unfit(f"it is not a complete .npz file: {error}") from error
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
        raise Unfit(f"its {size:,} bytes unpack to {claimed:,}; save it with numpy.savez, which does not compress")


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        shape, order, dtype = _header(file, entry.file_size)
        content = file.read()
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise Unfit("it is cut short")
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _header(file: Any, size: int) -> tuple[tuple[int, ...], Any, np.dtype[Any]]:
    """The shape, order ("C" or "F") and type of the array in a file of `size` bytes, which is read up to its numbers.

    Raises Unfit where the numbers that it claims are not the rest of the file.
    """
    form = np.lib.format
    try:
        version = form.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise Unfit(f"it is of version {version} of NumPy's format, which is not supported")
        reader = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        shape, fortran, dtype = reader(file, max_header_size=_HEADER)
    # numpy's parser raises what it meets: a header is a dict in Python's notation
    except (ValueError, TypeError, SyntaxError, EOFError, KeyError, OverflowError, RecursionError, TokenError) as error:
        if isinstance(error, Unfit):
            raise
        told = str(error).partition("\n")[0].partition("allow_pickle")[0][:200]  # NumPy's advice would run code
        raise Unfit(f"it is not a NumPy array: {told}") from error
    if dtype.kind not in _KINDS or dtype.hasobject or dtype.subdtype is not None:
        kind = "Python objects" if dtype.hasobject else str(dtype)[:80]
        raise Unfit(f"it holds {kind}, not numbers; save an array of numbers")
    sizes: list[Any] = list(shape)
    fits = len(sizes) <= 32 and all(type(size) is int and size >= 0 for size in sizes)
    if not fits or math.prod(size or 1 for size in sizes) * dtype.itemsize >= 1 << 62:
        raise Unfit(f"it has the shape {str(shape)[:80]}, which no array has")
    claimed, left = math.prod(shape) * dtype.itemsize, size - file.tell()
    if claimed != left:
        raise Unfit(f"it claims {claimed:,} bytes of numbers, and has {left:,}")
    return shape, "F" if fortran else "C", dtype


def _safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    try:
        check_header(Path(path))
        tensors: Mapping[str, Any] = load_file(path)
        return {name: tensor.numpy() for name, tensor in tensors.items()}
    except Unfit:
        raise
    except TypeError as error:
        raise Unfit("it holds numbers of a type that NumPy lacks, such as bfloat16; save float32") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise Unfit(f"it is not a complete safetensors file: {error}") from error
