"""Operators that give values another shape or order, and tell shapes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.onnx_import.operators.convolution import padded
from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.table import INTERNAL, NotCovered, axes_of, operator
from surgeon.onnx_import.values import Numbers, Value, as_tensor, bounded, integers, normalized, number, product, told


@operator("Shape", mixed=True)
def shape(o: Operator, x: Tensor) -> Numbers:
    sizes = list(x.shape)
    return Numbers.of(sizes[slice(o.get("start", 0), o.get("end", None))], torch.int64)


@operator("Size", mixed=True)
def size(o: Operator, x: Tensor) -> Numbers:
    return Numbers.of(product(x.shape), torch.int64)


@operator("Reshape", numbers=(1,))
def reshape(o: Operator, x: Tensor, sizes: Value | None = None) -> Tensor:
    wanted = integers(sizes) if sizes is not None else list(o.get("shape", ()))
    if not o.get("allowzero", 0):
        wanted = [
            x.shape[place] if told(each) and each == 0 else each for place, each in enumerate(wanted)
        ]
    return x.reshape(wanted)


@operator("InOrder", domain=INTERNAL, numbers=(1, 2))
def in_order(o: Operator, x: Tensor, sizes: Value, count: Value | None = None) -> Tensor:
    """The values of a tensor in their order, the first of them where there are more; `count` is the first size."""
    first, *rest = integers(sizes)
    whole = product([first if count is None else integers(count)[0], *rest])
    if whole != x.numel():
        x = x.flatten().narrow(0, 0, whole)
    return x.reshape([first, *rest])


@operator("Flatten")
def flatten(o: Operator, x: Tensor) -> Tensor:
    axis = o.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1 and x.dim() > 1:
        return x.flatten(1)
    return x.reshape(product(x.shape[:axis]), product(x.shape[axis:]))


@operator("Transpose")
def transpose(o: Operator, x: Tensor) -> Tensor:
    return x.permute(list(o.get("perm", range(x.dim() - 1, -1, -1))))


@operator("Squeeze", numbers=(1,))
def squeeze(o: Operator, x: Tensor, axes: Value | None = None) -> Tensor:
    chosen = axes_of(o, axes)
    if chosen is None:
        return x.squeeze()
    places = sorted(normalized(axis, x.dim()) for axis in chosen)
    if any(told(x.shape[axis]) and x.shape[axis] != 1 for axis in places):
        raise ValueError(f"axes {chosen} of {tuple(x.shape)} are not all 1")
    return x.squeeze(places[0]) if len(places) == 1 else x.squeeze(places)


@operator("Unsqueeze", numbers=(1,))
def unsqueeze(o: Operator, x: Tensor, axes: Value | None = None) -> Tensor:
    chosen = axes_of(o, axes) or []
    rank = x.dim() + len(chosen)
    for axis in sorted(normalized(axis, rank) for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Concat", mixed=True)
def concat(o: Operator, *values: Value) -> Tensor:
    device = next((each.device for each in values if isinstance(each, Tensor)), None)
    return torch.cat([as_tensor(each, device) for each in values], o.get("axis", 1))


@operator("Split", numbers=(1,))
def split(o: Operator, x: Tensor, sizes: Value | None = None) -> list[Tensor]:
    axis, count = normalized(o.get("axis", 0), x.dim()), o.outputs
    lengths = integers(sizes) if sizes is not None else o.get("split", None)
    if lengths is None:
        whole = x.shape[axis]
        if told(whole) and whole % count:
            each = -(-whole // count)
            lengths = [each] * (count - 1) + [whole - each * (count - 1)]
        else:
            return list(x.chunk(count, axis))
    if len({*lengths}) == 1 and len(lengths) == count and sum(lengths) == x.shape[axis]:
        return list(x.chunk(count, axis))
    return list(torch.split(x, list(lengths), axis))


@operator("Expand", numbers=(1,), mixed=True)
def expand(o: Operator, x: Value, sizes: Value) -> Tensor:
    return expanded(as_tensor(x), integers(sizes))


def expanded(x: Tensor, wanted: list[Any]) -> Tensor:
    """Broadcast to the wanted sizes, where those of 1 leave the tensor's own."""
    rank = max(x.dim(), len(wanted))
    own = [1] * (rank - x.dim()) + list(x.shape)
    wanted = [1] * (rank - len(wanted)) + wanted
    return x.expand(bounded(a if isinstance(b, int) and b == 1 else b for a, b in zip(own, wanted, strict=True)))


@operator("Tile", numbers=(1,))
def tile(o: Operator, x: Tensor, repeats: Value) -> Tensor:
    times = integers(repeats)
    bounded(a * b for a, b in zip(x.shape, times, strict=True))
    return x.repeat(times)


@operator("Pad", numbers=(1, 2, 3))
def pad(
    o: Operator, x: Tensor, pads: Value | None = None, value: Value | None = None, axes: Value | None = None
) -> Tensor:
    amounts = integers(pads) if pads is not None else list(o.get("pads", ()))
    fill = number(value) if value is not None and len(value.items if isinstance(value, Numbers) else [0]) else (
        o.get("value", 0.0)
    )
    places = [normalized(int(axis), x.dim()) for axis in integers(axes)] if axes is not None else list(range(x.dim()))
    if len(amounts) != 2 * len(places):
        raise ValueError(f"{len(amounts)} pads for {len(places)} axes")
    before, after = [0] * x.dim(), [0] * x.dim()
    for axis, less, more in zip(places, amounts[: len(places)], amounts[len(places) :], strict=True):
        before[axis], after[axis] = less, more
    bounded(a + max(b, 0) + max(c, 0) for a, b, c in zip(x.shape, before, after, strict=True) if (
        told(a) and told(b) and told(c)
    ))
    match o.get("mode", "constant"):
        case "constant":
            if not x.is_floating_point():
                fill = bool(fill) if x.dtype is torch.bool else int(fill)
            return padded(x, before, after, fill)
        case "reflect" | "edge" | "wrap" as mode:
            kind = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode]
            return _by_axis(x, before, after, kind)
    raise NotCovered(f"padding of mode {o.get('mode', '')}")


def _by_axis(x: Tensor, before: list[Any], after: list[Any], kind: str) -> Tensor:
    """Padded by values of the tensor itself, axis by axis, or at once where torch does so."""
    touched = [axis for axis in range(x.dim()) if not (
        isinstance(before[axis], int) and before[axis] == 0 and isinstance(after[axis], int) and after[axis] == 0
    )]
    if not touched:
        return x
    last = x.dim() - min(touched)
    if last <= x.dim() - 1 <= 4 and last <= 3 and x.is_floating_point():
        flat = [a for axis in range(x.dim() - 1, x.dim() - last - 1, -1) for a in (before[axis], after[axis])]
        lead = x.dim() - last
        if lead <= 2:
            return F.pad(x, flat, mode=kind)
    for axis in touched:
        size, less, more = x.shape[axis], before[axis], after[axis]
        index = torch.arange(-less, size + more, device=x.device)
        if kind == "replicate":
            index = index.clamp(0, size - 1)
        elif kind == "circular":
            index = index % size
        else:
            period = torch.sym_max(2 * (size - 1), 1)
            index = index % period
            index = torch.minimum(index, period - index)
        x = x.index_select(axis, index)
    return x


@operator("DepthToSpace")
def depth_to_space(o: Operator, x: Tensor) -> Tensor:
    block = o.get("blocksize", 1)
    if o.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // (block * block), h, w)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(n, c // (block * block), h * block, w * block)


@operator("SpaceToDepth")
def space_to_depth(o: Operator, x: Tensor) -> Tensor:
    block = o.get("blocksize", 1)
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block)
    order = (0, 1, 3, 5, 2, 4) if o.get("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    return parts.permute(order).reshape(n, c * block * block, h // block, w // block)
