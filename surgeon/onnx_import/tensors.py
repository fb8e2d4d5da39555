"""The tensors in a file: their types, sizes and values, of which none are read from outside of its folder."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from surgeon.errors import InvalidModel
from surgeon.onnx_import.values import Numbers
from surgeon.support.opening import Unfit, open_file

_T = TensorProto
#: By ONNX's type: torch's, and the type of numpy that the bytes in a file are of.
_TYPES: dict[int, tuple[torch.dtype, Any]] = {
    _T.FLOAT: (torch.float32, np.float32), _T.DOUBLE: (torch.float64, np.float64),
    _T.FLOAT16: (torch.float16, np.float16), _T.BFLOAT16: (torch.bfloat16, ml_dtypes.bfloat16),
    _T.INT8: (torch.int8, np.int8), _T.INT16: (torch.int16, np.int16), _T.INT32: (torch.int32, np.int32),
    _T.INT64: (torch.int64, np.int64), _T.UINT8: (torch.uint8, np.uint8), _T.UINT16: (torch.uint16, np.uint16),
    _T.UINT32: (torch.uint32, np.uint32), _T.UINT64: (torch.uint64, np.uint64), _T.BOOL: (torch.bool, np.bool_),
    _T.COMPLEX64: (torch.complex64, np.complex64), _T.COMPLEX128: (torch.complex128, np.complex128),
    _T.FLOAT8E4M3FN: (torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
    _T.FLOAT8E5M2: (torch.float8_e5m2, ml_dtypes.float8_e5m2),
}
#: Types of which a byte holds two; they are int8 or uint8 here, with the same values.
HALVES = {_T.INT4: np.int8, _T.UINT4: np.uint8}
_NOT_NUMPYS = {
    np.dtype(array): kind for kind, array in _TYPES.values() if np.dtype(array).type.__module__ == "ml_dtypes"
}
_BY_TORCH = {kind: code for code, (kind, _) in _TYPES.items()}
MOST_AXES = 64


def torch_type(code: int, place: str) -> torch.dtype:
    """torch's type for one of ONNX's.

    Raises:
        InvalidModel: it has none, as for text.
    """
    if code in HALVES:
        return torch.int8 if code == _T.INT4 else torch.uint8
    if code not in _TYPES:
        name = _T.DataType.Name(code) if code in _T.DataType.values() else code
        raise InvalidModel(
            f"{place} is of type {name}, which torch has no tensors of; cut the part with it off the file"
        )
    return _TYPES[code][0]


def onnx_type(kind: torch.dtype) -> int:
    return _BY_TORCH[kind]


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that a file holds, or numbers that follow from what it holds."""

    name: str
    held: TensorProto | Numbers | np.ndarray
    folder: Path
    #: Whether it is one of the file's initializers, not what a Constant gives.
    initializer: bool = False
    #: The integers of the file that it is made of, if it is.
    of: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        if isinstance(self.held, Numbers):
            return self.held.array.shape
        return tuple(self.held.shape if isinstance(self.held, np.ndarray) else self.held.dims)

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        if isinstance(self.held, Numbers):
            return self.held.dtype
        if isinstance(self.held, np.ndarray):
            return torch.from_numpy(self.held).dtype
        return torch_type(self.held.data_type, f"the tensor {self.name!r}")

    @property
    def halves(self) -> bool:
        """Whether it is of 4 bits."""
        return isinstance(self.held, TensorProto) and self.held.data_type in HALVES

    @property
    def floating(self) -> bool:
        return self.dtype.is_floating_point

    def tensor(self) -> Tensor:
        if isinstance(self.held, Numbers):
            return self.held.tensor()
        array = self.held if isinstance(self.held, np.ndarray) else read_tensor(self.held, self.folder, self.name)
        return from_array(array)

    def numbers(self) -> Numbers:
        if isinstance(self.held, Numbers):
            return self.held
        value = self.tensor()
        return Numbers.of(value.reshape(-1).tolist(), value.dtype, value.shape)


def from_array(array: np.ndarray) -> Tensor:
    """A tensor of an array's values, which numpy may hold in a type of `ml_dtypes`.

    >>> from_array(np.array([1.5], ml_dtypes.float8_e5m2))
    tensor([1.5000], dtype=torch.float8_e5m2)
    """
    kind = _NOT_NUMPYS.get(array.dtype)
    if kind is not None:
        return torch.from_numpy(array.astype(np.float32)).to(kind)
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:  # numpy has two types of 64 bits, torch knows one
        array = array.astype(np.uint64)
    return torch.from_numpy(np.array(array))


def check_sizes(tensor: TensorProto, name: str) -> tuple[int, ...]:
    """The sizes of a tensor, which are none below 0 and of no more values than a file can hold.

    Raises:
        InvalidModel: they are.
    """
    sizes = tuple(tensor.dims)
    if len(sizes) > MOST_AXES or any(size < 0 for size in sizes) or math.prod(sizes) > 1 << 40:
        raise InvalidModel(f"the tensor {name!r} is of sizes {sizes[:8]}, which no tensor has; the file is damaged")
    return sizes


def read_tensor(tensor: TensorProto, folder: Path, name: str) -> np.ndarray:
    """The values of a tensor, which may be in another file below the folder.

    Raises:
        InvalidModel: it holds more or fewer values than its sizes say, or is of a type that torch lacks, or in a file
            that can't be read or lies elsewhere.
    """
    sizes = check_sizes(tensor, name)
    torch_type(tensor.data_type, f"the tensor {name!r}")
    count = math.prod(sizes)
    halves = tensor.data_type in HALVES
    kind = np.dtype(np.uint8 if halves else _TYPES[tensor.data_type][1])
    stored = (count + 1) // 2 if halves else count
    if tensor.data_location == TensorProto.EXTERNAL:
        array = np.frombuffer(_external(tensor, folder, name, stored * kind.itemsize), kind)
    elif tensor.HasField("raw_data"):
        if len(tensor.raw_data) != stored * kind.itemsize:
            raise _lies(name, sizes, len(tensor.raw_data) // kind.itemsize)
        array = np.frombuffer(tensor.raw_data, kind)
    else:
        array = _listed(tensor, kind, halves)
        if array.size != stored:
            raise _lies(name, sizes, array.size)
    if halves:
        pairs = np.stack([array & 0xF, array >> 4], 1).reshape(-1)[:count]
        array = pairs if tensor.data_type == _T.UINT4 else ((pairs.astype(np.int8) ^ 8) - 8).astype(np.int8)
    return array.reshape(sizes)


def _lies(name: str, sizes: tuple[int, ...], found: int) -> InvalidModel:
    return InvalidModel(
        f"the tensor {name!r} is of sizes {sizes}, which are {math.prod(sizes):,} values, and holds {found:,}; "
        "the file is damaged"
    )


def _listed(tensor: TensorProto, kind: np.dtype, halves: bool) -> np.ndarray:
    """The values of a tensor that is stored number by number."""
    code = tensor.data_type
    if code in (_T.FLOAT, _T.COMPLEX64):
        found = np.array(tensor.float_data, np.float32)
    elif code in (_T.DOUBLE, _T.COMPLEX128):
        found = np.array(tensor.double_data, np.float64)
    elif code == _T.INT64:
        found = np.array(tensor.int64_data, np.int64)
    elif code in (_T.UINT32, _T.UINT64):
        found = np.array(tensor.uint64_data, np.uint64)
    else:
        whole = np.array(tensor.int32_data, np.int64)
        if code in (_T.FLOAT16, _T.BFLOAT16):
            return whole.astype(np.uint16).view(kind)
        return whole.astype(np.uint8).view(kind) if halves or (kind.itemsize == 1 and kind.kind not in "iub") else (
            whole.astype(kind)
        )
    return found[: found.size // 2 * 2].view(kind) if kind.kind == "c" else found.astype(kind)


def _external(tensor: TensorProto, folder: Path, name: str, size: int) -> bytes:
    told = {entry.key: entry.value for entry in tensor.external_data}
    location = str(told.get("location", ""))
    place = f"the tensor {name!r} is in the file {location!r}"
    root = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(root, location)) if location and "\0" not in location else root
    if os.path.isabs(location) or not path.startswith(root.rstrip(os.sep) + os.sep):
        raise InvalidModel(f"{place}, which does not lie below the folder of the ONNX file; only files there are read")
    try:
        start, length = int(told.get("offset", "0") or 0), int(told.get("length", str(size)) or size)
    except ValueError as error:
        raise InvalidModel(f"{place} at {told}, which are no numbers of bytes; the file is damaged") from error
    if start < 0 or length != size:
        found = f"{length:,} bytes from {start:,}, and its sizes make {size:,}"
        raise InvalidModel(f"{place}: {found}; the file is damaged")
    try:
        with open_file(path) as file:
            if os.fstat(file.fileno()).st_size < start + size:
                raise Unfit(f"it ends before byte {start + size:,}")
            file.seek(start)
            return file.read(size)
    except Unfit as error:
        raise InvalidModel(f"{place}, which can't be read: {error}") from error
