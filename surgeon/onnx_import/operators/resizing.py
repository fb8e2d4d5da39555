"""Resize and Upsample: by torch's own interpolation where it is the same, else axis by axis."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.table import NotCovered, operator
from surgeon.onnx_import.values import Numbers, Value, as_numbers, bounded, integers, normalized, told

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@operator("Upsample", numbers=(1,))
def upsample(o: Operator, x: Tensor, scales: Value | None = None) -> Tensor:
    factors = as_numbers(scales).items if scales is not None else list(o.get("scales", ()))
    return _resized(o, x, factors, None, "asymmetric", "floor")


@operator("Resize", numbers=(1, 2, 3))
def resize(
    o: Operator, x: Tensor, roi: Numbers | None = None, scales: Numbers | None = None, sizes: Numbers | None = None
) -> Tensor:
    if o.opset < 11:
        if roi is None:  # opset 10 gives scales second
            raise ValueError("neither sizes nor scales are given")
        return _resized(o, x, roi.items, None, "asymmetric", "floor")
    factors = scales.items if scales is not None and scales.items else None
    wanted = integers(sizes) if sizes is not None and sizes.items else None
    axes = o.get("axes", None)
    if axes is not None:
        places = [normalized(axis, x.dim()) for axis in axes]
        whole: list[Any] = list(x.shape)
        if wanted is not None:
            for axis, size in zip(places, wanted, strict=True):
                whole[axis] = size
            wanted = whole
        if factors is not None:
            every = [1.0] * x.dim()
            for axis, factor in zip(places, factors, strict=True):
                every[axis] = factor
            factors = every
    if wanted is not None and o.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NotCovered("sizes that keep the ratio of height and width")
    return _resized(
        o, x, factors, wanted, o.get("coordinate_transformation_mode", "half_pixel"),
        o.get("nearest_mode", "round_prefer_floor"),
    )


def _resized(
    o: Operator, x: Tensor, factors: list[Any] | None, wanted: list[Any] | None, coordinates: str, nearest: str
) -> Tensor:
    if (factors is None) == (wanted is None) or len(factors or wanted or ()) != x.dim():
        raise ValueError(f"scales {factors} and sizes {wanted} for {x.dim()} axes")
    mode = o.get("mode", "nearest")
    if wanted is None:
        assert factors is not None
        wanted = [_scaled(size, factor) for size, factor in zip(x.shape, factors, strict=True)]
        touched = [axis for axis, factor in enumerate(factors) if factor != 1]
    else:
        touched = [
            axis for axis, (a, b) in enumerate(zip(x.shape, wanted, strict=True))
            if not (told(a) and told(b) and a == b) and axis >= (2 if x.dim() >= 3 else 0)
        ]
        pairs = zip(x.shape[:2], wanted[:2], strict=True)
        if any(told(a) and told(b) and a != b for a, b in pairs):
            touched = [axis for axis, (a, b) in enumerate(zip(x.shape, wanted, strict=True)) if str(a) != str(b)]
    bounded(wanted)
    if not touched:
        return x
    if coordinates == "tf_crop_and_resize":
        raise NotCovered("cropping by a region")
    made = _by_torch(o, x, touched, factors, wanted, mode, coordinates, nearest)
    if made is not None:
        return made
    if o.get("antialias", 0):
        raise NotCovered("antialiasing of this kind")
    for axis in touched:
        factor = factors[axis] if factors is not None else None
        x = _axis(o, x, axis, wanted[axis], factor, mode, coordinates, nearest)
    return x


def _scaled(size: Any, factor: Any) -> Any:
    if isinstance(factor, float) and factor.is_integer():
        return size * int(factor)
    if isinstance(factor, float) and factor > 0 and (1 / factor).is_integer():
        return size // int(1 / factor)
    return torch.sym_int(size * factor) if not isinstance(size, int) else math.floor(size * factor)


def _by_torch(
    o: Operator, x: Tensor, touched: list[int], factors: list[Any] | None, wanted: list[Any], mode: str,
    coordinates: str, nearest: str,
) -> Tensor | None:
    """Interpolated by torch, if that is the same for spatial axes (batch, channels, …); else None."""
    count = x.dim() - 2
    if count not in _LINEAR or min(touched) < 2 or not x.is_floating_point():
        return None
    sizes, smooth = wanted[2:], bool(o.get("antialias", 0))
    whole = factors is None or all(float(f).is_integer() for f in factors)
    exact = factors is None or all(float(f).is_integer() or (f > 0 and (1 / f).is_integer()) for f in factors)
    if mode == "nearest":
        up = whole and (factors is not None or all(
            told(a) and told(b) and b % a == 0 for a, b in zip(x.shape, wanted, strict=True)
        ))
        plain = coordinates == "asymmetric" and nearest == "floor"
        centered = coordinates in ("half_pixel", "pytorch_half_pixel") and nearest == "round_prefer_floor"
        if (plain and exact) or (up and centered):
            return F.interpolate(x, sizes, mode="nearest")
        return None
    if mode == "linear" or (mode == "cubic" and count == 2 and o.get("cubic_coeff_a", -0.75) == -0.75):
        kind = _LINEAR[count] if mode == "linear" else "bicubic"
        if o.get("exclude_outside", 0):
            return None
        if coordinates == "align_corners" and not smooth and exact:
            return F.interpolate(x, sizes, mode=kind, align_corners=True)
        single = any(isinstance(size, int) and size == 1 for size in sizes)
        centered = coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and not single)
        if centered and exact and not smooth:
            return F.interpolate(x, sizes, mode=kind, align_corners=False)
    return None


def _axis(
    o: Operator, x: Tensor, axis: int, size: Any, factor: Any, mode: str, coordinates: str, nearest: str
) -> Tensor:
    """One axis resized, by the places of its values in the original."""
    old = x.shape[axis]
    scale = factor if factor is not None else size / old
    kind = x.dtype if x.is_floating_point() else torch.float32
    place = _places(size, old, scale, coordinates, x.device)
    if coordinates == "align_corners" and factor is not None:
        last = factor * old - 1
        place = torch.arange(size, device=x.device, dtype=torch.float64) * ((old - 1) / last if last != 0 else 0.0)
    if mode == "nearest":
        index = _rounded(place, nearest).clamp(0, old - 1).long()
        return x.index_select(axis, index)
    low = place.floor()
    part = (place - low).to(kind)
    taps, weights = ([0, 1], [1 - part, part]) if mode == "linear" else (
        [-1, 0, 1, 2], _cubic(part, o.get("cubic_coeff_a", -0.75))
    )
    at = [(low + tap).long() for tap in taps]
    if o.get("exclude_outside", 0):
        weights = [torch.where((i >= 0) & (i < old), w, torch.zeros_like(w)) for i, w in zip(at, weights, strict=True)]
        total = sum(weights, torch.zeros_like(part))
        weights = [w / total for w in weights]
    shape = [1] * x.dim()
    shape[axis] = -1
    made = [
        x.index_select(axis, i.clamp(0, old - 1)) * w.reshape(shape) for i, w in zip(at, weights, strict=True)
    ]
    return sum(made[1:], made[0]).to(x.dtype)


def _places(size: Any, old: Any, scale: Any, coordinates: str, device: torch.device) -> Tensor:
    x = torch.arange(size, device=device, dtype=torch.float64)
    match coordinates:
        case "half_pixel":
            return (x + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            shift = size / (scale * old)
            return old / 2 * (1 - shift) + (x + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return torch.zeros_like(x) if isinstance(size, int) and size == 1 else (x + 0.5) / scale - 0.5
        case "align_corners":
            return x * ((old - 1) / (size - 1)) if not (isinstance(size, int) and size == 1) else torch.zeros_like(x)
        case "asymmetric":
            return x / scale
        case "tf_half_pixel_for_nn":
            return (x + 0.5) / scale
    raise NotCovered(f"coordinates by {coordinates}")


def _rounded(place: Tensor, nearest: str) -> Tensor:
    match nearest:
        case "floor":
            return place.floor()
        case "ceil":
            return place.ceil()
        case "round_prefer_floor":
            return (place - 0.5).ceil()
        case "round_prefer_ceil":
            return (place + 0.5).floor()
    raise NotCovered(f"rounding by {nearest}")


def _cubic(t: Tensor, a: float) -> list[Tensor]:
    """Keys' weights of the four values around a place."""
    far, near = t + 1, 1 - t
    other = 2 - t
    return [
        a * far**3 - 5 * a * far**2 + 8 * a * far - 4 * a,
        (a + 2) * t**3 - (a + 3) * t**2 + 1,
        (a + 2) * near**3 - (a + 3) * near**2 + 1,
        a * other**3 - 5 * a * other**2 + 8 * a * other - 4 * a,
    ]
