"""BatchNorm's running statistics, re-estimated where a smaller model's activations differ from the original's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor, fx

from surgeon.calibration.parameter_slots import Finder, Slot
from surgeon.ir.operators import operator_name
from surgeon.rules import arguments


@dataclass(frozen=True)
class BatchNorm:
    """A batch norm `node` that normalizes `source` with the statistics in `mean` and `variance`."""

    node: fx.Node
    source: fx.Node
    mean: Slot
    variance: Slot
    eps: float
    weight: Slot | None
    bias: Slot | None


def find(node: fx.Node, find_slot: Finder) -> BatchNorm | None:
    """The batch norm that a node is; None for anything else, and where it has no running statistics of its own."""
    if operator_name(node) != "batch_norm":
        return None
    given = arguments(node)
    mean, variance = find_slot(given["running_mean"], node), find_slot(given["running_var"], node)
    if mean is None or variance is None or given["training"]:
        return None
    weight, bias = find_slot(given["weight"], node), find_slot(given["bias"], node)
    return BatchNorm(node, given["input"], mean, variance, float(given["eps"]), weight, bias)


def statistics(values: Iterable[Tensor], shown: Iterable[Tensor | None] = ()) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, (C,) at double precision, over all batches (B, C, …).

    What is not `shown` of a batch does not count; there all is, by default.
    """
    total = square = None
    count = 0
    for value, own in zip_longest(values, shown):
        flat = value.transpose(0, 1).flatten(1)
        if own is not None:
            flat = flat[:, own.expand(value.shape).transpose(0, 1).flatten(1)[0]]
        if not flat.shape[1]:
            continue
        # Around the batch's own mean, at the values' precision; the means are combined at double precision.
        mean = flat.double().mean(1) if flat.dtype == torch.float64 else flat.mean(1).double()
        spread = ((flat - mean.to(flat)[:, None]) ** 2).sum(1).double()
        n = flat.shape[1]
        if total is None or square is None:
            total, square, count = mean, spread, n
            continue
        apart = mean - total
        total = total + apart * (n / (count + n))
        square = square + spread + apart**2 * (count * n / (count + n))
        count += n
    assert total is not None and square is not None
    return total, square / count


def match(
    original: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], eps: float
) -> tuple[Tensor, Tensor]:
    """Running mean and variance with which the smaller model's channels are normalized as the original's are.

    Args:
        original: the original's running mean and variance, (C,).
        wanted: mean and variance of what the original's batch norm reads on some inputs.
        found: the same of what the smaller model's reads on the same inputs.

    Since both are of the same inputs, it matters less that these are few, and unchanged activations change nothing.

    >>> one, two = torch.ones(1), torch.full((1,), 2.0)
    >>> match((one, one), (one, one), (one, one), eps=0.0)
    (tensor([1.]), tensor([1.]))
    >>> match((one, one), (one, one), (two, two * two), eps=0.0)
    (tensor([2.]), tensor([4.]))
    """
    (mean, variance), (wanted_mean, wanted_variance), (found_mean, found_variance) = original, wanted, found
    scale = variance + eps
    usable = (wanted_variance > 1e-6 * scale) & (found_variance > 1e-6 * scale)
    ratio = torch.where(usable, found_variance / torch.where(usable, wanted_variance, 1.0), 1.0)
    new = (scale * ratio - eps).clamp(min=0.0)
    return found_mean + (mean - wanted_mean) * ((new + eps) / scale).sqrt(), new
