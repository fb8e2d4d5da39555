"""Checks of the weights, before anything is decided by them."""

from __future__ import annotations

import torch
from torch import nn

from surgeon.errors import InvalidModel
from surgeon.frontend.trace import Graph


def check_finite(graph: Graph) -> None:
    """Refuse weights that can't be scored.

    A buffer may hold infinity, as the masks of attention do, but not NaN.

    >>> from surgeon.frontend.trace import trace
    >>> net = nn.Linear(2, 2)
    >>> check_finite(trace(net, torch.zeros(2, 2)))

    Raises:
        InvalidModel: a parameter holds NaN or infinity, or a buffer or constant NaN; the message names the tensor.
    """
    for name, value in graph.values.items():
        tensor = value.detach()
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        if torch.isfinite(tensor.sum()):  # one pass without a copy; a sum hides neither NaN nor infinity
            continue
        learnt = isinstance(value, nn.Parameter)
        wrong = ~torch.isfinite(tensor) if learnt else torch.isnan(tensor)
        count = int(wrong.sum())
        if count:
            raise InvalidModel(
                f"{name} {tuple(tensor.shape)} holds NaN{' or infinity' if learnt else ''} in {count} of "
                f"{tensor.numel()} places; load the weights again, or train with a lower learning rate, before pruning"
            )


def check_real(graph: Graph) -> None:
    """Refuse complex weights: only real ones can be scored, or fitted, by data.

    Raises:
        InvalidModel: a parameter or buffer is complex; the message names it.
    """
    for name, value in graph.values.items():
        if value.is_complex():
            raise InvalidModel(
                f"{name} is {value.dtype}, and no layer can be fitted to data with complex weights; leave data= out"
            )
