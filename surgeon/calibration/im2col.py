"""A convolution as a matrix product: its windows as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from surgeon.ir.convolution import each, pads


def windows(x: Tensor, given: dict[str, Any], kernel: Sequence[int]) -> Tensor:
    """All windows of `x` (B, C, *spatial) that a convolution reads, as a view: (B, C, *output, *kernel).

    `given` holds the convolution's arguments "stride", "padding" and "dilation".

    >>> x = torch.arange(4.0).reshape(1, 1, 4)
    >>> windows(x, {"stride": [1], "padding": [0], "dilation": [1]}, [2])[0, 0].tolist()
    [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]]
    """
    rank = len(kernel)
    stride, dilation = (each(given[name], rank) for name in ("stride", "dilation"))
    before, after = pads(given["padding"], kernel, dilation)
    if any((*before, *after)):
        # F.pad takes the last axis first
        x = F.pad(x, [side for sides in zip(reversed(before), reversed(after), strict=True) for side in sides])
    for axis in range(rank):
        x = x.unfold(2 + axis, (kernel[axis] - 1) * dilation[axis] + 1, stride[axis])[..., :: dilation[axis]]
    return x


def at_positions(x: Tensor, rank: int, chosen: Tensor) -> Tensor:
    """The `chosen` positions (m,) of the axes 2 … 2 + rank of `x`, counted as if flattened: (B, C, m, …).

    >>> at_positions(torch.arange(6).reshape(1, 1, 2, 3), 2, torch.tensor([1, 5]))
    tensor([[[1, 5]]])
    """
    places: list[Any] = [slice(None), slice(None), *torch.unravel_index(chosen, x.shape[2 : 2 + rank])]
    return x[tuple(places)]
