"""Convolutions of very many inputs, whose covariance would not fit into memory, taken channel by channel.

The inputs are channels at the taps of the kernel. Their covariance is taken for the Kronecker product of the channels'
and the taps', as in Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature",
ICML 2015: channels are made up for by other channels at the same tap.
"""

from __future__ import annotations

import torch
from torch import Tensor

from surgeon.calibration.layers import Contraction

#: Inputs of a layer above which it is taken channel by channel.
WIDEST = 6144
#: Positions in each batch from which the covariance of taps is estimated.
POSITIONS = 64


def taps_of(layer: Contraction) -> int:
    """The inputs of each channel that share its place in a covariance; 1 for a layer that is not too wide."""
    return layer.taps if layer.matrix(layer.weight.places).shape[1] > WIDEST else 1


def rows(value: Tensor, most: float, generator: torch.Generator, shown: Tensor | None = None) -> Tensor:
    """At most so many positions of a value (B, C, …), those that are `shown`, as rows (1, n, C).

    >>> rows(torch.arange(8.0).reshape(1, 2, 4), 10, torch.Generator()).shape
    torch.Size([1, 4, 2])
    """
    found = value.movedim(1, -1).flatten(0, -2)
    if shown is not None:
        found = found[shown.expand(value.shape).movedim(1, -1).flatten(0, -2)[:, 0]]
    if len(found) > most:
        chosen = torch.randperm(len(found), generator=generator)[: int(most)].sort().values
        found = found[chosen.to(found.device)]
    return found[None]


def between_taps(layer: Contraction, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """The sum of x xᵀ over channels and some positions, of a channel's taps, less their mean: (taps, taps)."""
    positions = max(y.shape[2:].numel() * len(y), 1)
    windows, _ = layer.rows(x, y, POSITIONS / positions, generator)
    flat = windows.reshape(-1, layer.taps).double()
    flat = flat - flat.mean()
    return flat.t() @ flat
