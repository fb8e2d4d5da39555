"""A convolution as a matrix product: its windows as rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from surgeon.ir.convolution import each, pads


def windows(x: Tensor, given: dict[str, Any], kernel: Sequence[int], chosen: Tensor | None = None) -> Tensor:
    """The windows of `x` (B, C, *spatial) that a convolution reads: (B, C, m, *kernel).

    Args:
        given: the convolution's arguments "stride", "padding" and "dilation".
        chosen: the positions of its output, counted as if flattened, (m,); by default all.

    >>> x, given = torch.arange(4.0).reshape(1, 1, 4), {"stride": [1], "padding": [0], "dilation": [1]}
    >>> windows(x, given, [2])[0, 0].tolist()
    [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]]
    >>> windows(x, given, [2], torch.tensor([1]))[0, 0].tolist()
    [[1.0, 2.0]]
    """
    rank = len(kernel)
    stride, dilation = (each(given[name], rank) for name in ("stride", "dilation"))
    before, after = pads(given["padding"], kernel, dilation)
    if any((*before, *after)):
        # F.pad takes the last axis first
        x = F.pad(x, [side for sides in zip(reversed(before), reversed(after), strict=True) for side in sides])
    x = x if chosen is None else x.contiguous()
    views = x
    for axis in range(rank):
        views = views.unfold(2 + axis, (kernel[axis] - 1) * dilation[axis] + 1, stride[axis])[..., :: dilation[axis]]
    if chosen is None:
        return views.flatten(2, 1 + rank)
    places = _places(views.shape[2 : 2 + rank], views.stride()[2 : 2 + rank], x.device).flatten()[chosen.to(x.device)]
    taps = _places(kernel, views.stride()[2 + rank :], x.device).flatten()
    found = x.flatten(2).index_select(2, (places[:, None] + taps).flatten())
    return found.reshape(*x.shape[:2], len(places), *kernel)


def _places(shape: Sequence[int], strides: Sequence[int], device: torch.device) -> Tensor:
    """Where the elements of a view lie in memory, counted from its first one: (*shape,)."""
    found = torch.zeros((), dtype=torch.long, device=device)
    for size, step in zip(shape, strides, strict=True):
        found = found[..., None] + torch.arange(size, device=device) * step
    return found


def at_positions(x: Tensor, chosen: Tensor | None) -> Tensor:
    """The `chosen` positions (m,) of the spatial axes of `x` (B, C, *spatial), counted as if flattened: (B, C, m).

    >>> at_positions(torch.arange(6).reshape(1, 1, 2, 3), torch.tensor([1, 5])).tolist()
    [[[1, 5]]]
    """
    flat = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    return flat if chosen is None else flat.index_select(2, chosen.to(x.device))
