"""Weights on channels that are gone, merged into those on channels that tell of them.

As in Srinivas and Babu, "Data-free Parameter Pruning for Deep Neural Networks", BMVC 2015, but each removed channel is
spread over all that are kept, by least squares.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from surgeon.calibration.layers import Contraction
from surgeon.calibration.moments import Moments
from surgeon.recovery.pair import Pair
from surgeon.rules.base import size_of


def merged(pair: Pair, layer: Contraction, weight: Tensor, moments: Moments, ridge: float) -> Tensor:
    """The matrix (1, f, o) of a convolution whose channels stand for the original's as `moments` say.

    These are of the smaller model's channels, x, and the original's, y; `weight` is the original's.
    """
    inputs, outputs = (_kept(pair, node) for node in (layer.source, layer.node))
    whole = weight[outputs.to(weight.device)]
    start = torch.zeros(1, len(inputs), whole.shape[1], dtype=torch.float64)
    start[0, torch.arange(len(inputs)), inputs] = 1
    spread, _ = moments.solve(start.to(whole.device), ridge)
    found = torch.einsum("ac,oc...->oa...", spread[0], whole.double())
    return layer.matrix(found.reshape(layer.weight.places.shape))


def _kept(pair: Pair, node: fx.Node) -> Tensor:
    """The numbers of the channels of a value that the smaller model has."""
    shape = size_of(node)
    numbers = torch.arange(shape[1]).reshape(1, -1, *[1] * (len(shape) - 2)).expand(shape)
    found: Tensor = pair.at_kept(node, numbers)
    return found[0].flatten(1)[:, 0]
