"""The tensors of an exported program: bytes in the file, and their metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._export.serde import schema
from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

from surgeon.frontend.exported.members import Members
from surgeon.frontend.exported.schema import checked
from surgeon.support import strict_json
from surgeon.support.opening import MIB, Unfit

_CONFIG: Final = 32 * MIB
_STRIDED: Final = int(schema.Layout.Strided)


def read_tensors(archive: Members, folder: str, kind: str) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The tensors of `data/weights` or `data/constants` by name, and the metadata of each.

    Tensors in the same member share memory.

    Raises:
        Unfit: a tensor is a pickle, or claims more values than its member has.
    """
    config = f"data/{folder}/model_{folder}_config.json"
    try:
        entries = checked(schema.PayloadConfig, strict_json.loads(archive.read(config, _CONFIG)))["config"]
    except Unfit as error:
        raise Unfit(f"{config}: {error}") from error
    found: dict[str, Tensor] = {}
    storages: dict[str, Tensor] = {}
    for name, entry in entries.items():
        try:
            found[name] = _tensor(archive, f"data/{folder}/{entry['path_name']}", entry, kind, storages)
        except Unfit as error:
            raise Unfit(f"{config}: {name[:80]}: {error}") from error
    return found, {name: entry["tensor_meta"] for name, entry in entries.items()}


def _tensor(archive: Members, member: str, entry: Mapping[str, Any], kind: str, storages: dict[str, Tensor]) -> Tensor:
    if entry["use_pickle"] or entry["tensor_meta"] is None:
        raise Unfit("it is a pickled Python object, which would run code when it is read; export the model without it")
    if not entry["path_name"].startswith(f"{kind}_"):
        raise Unfit(f"its member is {entry['path_name']}, which is not that of a {kind}")
    meta = entry["tensor_meta"]
    shape, stride = numbers(meta["sizes"]), numbers(meta["strides"])
    (offset,) = numbers([meta["storage_offset"]])
    dtype = _SERIALIZE_TO_TORCH_DTYPE.get(meta["dtype"])
    if dtype is None or meta["layout"] != _STRIDED:
        raise Unfit("it is not a dense tensor of a known type")
    count = archive.size(member) // dtype.itemsize
    extent(shape, stride, offset, count)
    if member not in storages:
        storages[member] = flat(archive.read(member), dtype)
    values = storages[member]
    if values.dtype != dtype:
        raise Unfit(f"it is {dtype}, and another tensor of {member} is {values.dtype}")
    tensor = values.as_strided(shape, stride, offset)
    if (device := meta["device"]["type"]) != "cpu":
        try:
            tensor = tensor.to(torch.device(device, meta["device"]["index"] or 0))
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise Unfit(f"it is on the device {device}, which is not here; export the model on the CPU") from error
    grad = meta["requires_grad"] and (dtype.is_floating_point or dtype.is_complex)
    return nn.Parameter(tensor, requires_grad=grad) if entry["is_param"] else tensor


def numbers(sizes: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Sizes that are numbers of at least 0; raises Unfit for expressions."""
    found = [size.get("as_int") for size in sizes]
    if any(value is None or value < 0 or value >= 1 << 48 for value in found):
        raise Unfit("its sizes are not numbers of at least 0")
    return tuple(value for value in found if value is not None)


def extent(shape: Any, stride: Any, offset: Any, count: int) -> None:
    """Make sure that a tensor of this shape fits into `count` values.

    >>> extent((2, 3), (3, 1), 0, 6)
    >>> extent((10**9,), (1,), 0, 6)
    Traceback (most recent call last):
        ...
    surgeon.support.opening.Unfit: it needs 1,000,000,000 values, but 6 are stored
    """
    if not all(isinstance(each, tuple) and all(type(n) is int and n >= 0 for n in each) for each in (shape, stride)):
        raise Unfit("its shape or stride is invalid")
    if len(shape) != len(stride) or len(shape) > 64 or type(offset) is not int or offset < 0:
        raise Unfit("its shape or stride is invalid")
    needed = offset + 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if math.prod(shape) == 0:
        needed = offset if max((*shape, 0)) < 1 << 48 else 1 << 63
    if needed > count:
        raise Unfit(f"it needs {needed:,} values, but {count:,} are stored")
    if math.prod(shape) > max(count, 1) * 64:  # possible with a stride of 0, as in expanded tensors
        raise Unfit(f"it expands {count:,} values to {math.prod(shape):,}")


def flat(content: bytes, dtype: torch.dtype) -> Tensor:
    if len(content) % dtype.itemsize:
        raise Unfit(f"its {len(content)} bytes are not a whole number of {dtype} values")
    return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
