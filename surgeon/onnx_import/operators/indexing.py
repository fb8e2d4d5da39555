"""Operators that pick values by their places, and put values at places."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.table import NotCovered, operator
from surgeon.onnx_import.values import Numbers, Value, as_tensor, normalized


@operator("Gather", mixed=True)
def gather(o: Operator, x: Value, index: Value) -> Tensor:
    """Indices that are known are a selection or a run where they can be."""
    device = next((each.device for each in (x, index) if isinstance(each, Tensor)), None)
    data = as_tensor(x, device)
    axis = normalized(o.get("axis", 0), data.dim())
    if isinstance(index, Numbers) and index.plain:
        places = index.items
        if index.array.ndim == 0:
            return data.select(axis, places[0])
        if index.array.ndim == 1:
            if places and places[0] >= 0 and places == list(range(places[0], places[0] + len(places))):
                return data.narrow(axis, places[0], len(places))
            if all(each >= 0 for each in places):
                return data.index_select(axis, as_tensor(index, device))
    before: list[Any] = [slice(None)] * axis
    return data[(*before, as_tensor(index, device).long())]


def _positive(index: Tensor, size: Any) -> Tensor:
    index = index.long()
    return torch.where(index < 0, index + size, index)


@operator("GatherElements")
def gather_elements(o: Operator, x: Tensor, index: Tensor) -> Tensor:
    axis = normalized(o.get("axis", 0), x.dim())
    return torch.gather(x, axis, _positive(index, x.shape[axis]))


@operator("GatherND")
def gather_nd(o: Operator, x: Tensor, index: Tensor) -> Tensor:
    batch, depth = o.get("batch_dims", 0), index.shape[-1]
    index = index.long()
    if not batch:
        return x[tuple(index[..., place] for place in range(depth))]
    rows = []
    for axis in range(batch):
        shape = [1] * (index.dim() - 1)
        shape[axis] = -1
        rows.append(torch.arange(x.shape[axis], device=x.device).reshape(shape))
    return x[(*rows, *(index[..., place] for place in range(depth)))]


@operator("ScatterElements", "Scatter")
def scatter_elements(o: Operator, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    axis = normalized(o.get("axis", 0), x.dim())
    places = _positive(index, x.shape[axis])
    match o.get("reduction", "none"):
        case "none":
            return x.scatter(axis, places, updates)
        case "add":
            return x.scatter_add(axis, places, updates)
        case "mul" | "max" | "min" as kind:
            names = {"mul": "prod", "max": "amax", "min": "amin"}
            return x.scatter_reduce(axis, places, updates, names[kind])
    raise NotCovered(f"the reduction {o.get('reduction', '')}")


@operator("ScatterND")
def scatter_nd(o: Operator, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    depth = index.shape[-1]
    places = tuple(index.long()[..., place] for place in range(depth))
    match o.get("reduction", "none"):
        case "none" | "add" as kind:
            return x.index_put(places, updates, accumulate=kind == "add")
    raise NotCovered(f"the reduction {o.get('reduction', '')}")


@operator("GridSample")
def grid_sample(o: Operator, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(o.get("mode", "linear"), o.get("mode", "linear"))
    if x.dim() == 5 and mode == "bicubic":
        raise NotCovered("cubic sampling of volumes")
    return F.grid_sample(x, grid, mode, o.get("padding_mode", "zeros"), bool(o.get("align_corners", 0)))
