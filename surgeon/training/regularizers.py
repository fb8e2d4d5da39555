"""Penalties that make weights small while a model trains, so that little is lost when they go.

A regularizer is a function of the groups that adds the gradient of its penalty to the gradients that `backward` left.
Parameters that have no gradient, such as frozen ones, are left alone.

>>> import torch
>>> from torch import nn
>>> from surgeon.groups.coupling import couple
>>> from surgeon.frontend.trace import trace
>>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
>>> groups = couple(trace(net, torch.zeros(2, 2)))
>>> net(torch.zeros(1, 2)).sum().backward()
>>> l2(0.5)(groups)
>>> torch.allclose(net[0].weight.grad, 0.5 * net[0].weight)
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.errors import InvalidArgument
from surgeon.groups.coupling import Groups
from surgeon.scoring.norms import Reductions

Regularizer = Callable[[Groups], None]


def l1(strength: float) -> Regularizer:
    """`strength` · Σ |w| over the weights, the parameters of two axes and more, that the model reads.

    Single connections die by it. Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    2015, arXiv:1506.02626.

    Raises:
        InvalidArgument: `strength` is no number of at least 0.
    """
    factor = _checked(strength)

    @torch.no_grad()
    def add(groups: Groups) -> None:
        for weight, gradient in _weights(groups):
            gradient.add_(weight.sign(), alpha=factor)

    return add


def l2(strength: float) -> Regularizer:
    """`strength` / 2 · Σ w² over the weights, the parameters of two axes and more, that the model reads.

    As l1 in Han et al., 2015, arXiv:1506.02626; the same as weight decay in SGD.

    Raises:
        InvalidArgument: `strength` is no number of at least 0.
    """
    factor = _checked(strength)

    @torch.no_grad()
    def add(groups: Groups) -> None:
        for weight, gradient in _weights(groups):
            gradient.add_(weight, alpha=factor)

    return add


def batch_norm_l1(strength: float) -> Regularizer:
    """`strength` · Σ |γ| over the scales of batch norms: whole channels die by it, where a batch norm scales them.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", 2017, arXiv:1708.06519.

    Raises:
        InvalidArgument: `strength` is no number of at least 0; or, when it is used, the model has no such scale.
    """
    factor = _checked(strength)

    @torch.no_grad()
    def add(groups: Groups) -> None:
        names = Reductions(groups).batch_norm_scales()
        if not names:
            raise InvalidArgument("batch_norm_l1: the model has no batch norm with a scale; take group_lasso")
        for name in names:
            scale = groups.graph.tensor(name)
            if scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=factor)

    return add


def group_lasso(strength: float) -> Regularizer:
    """`strength` · Σ over units of the norm of all that belongs to the unit: whole units of any kind die by it.

    Wen et al., "Learning Structured Sparsity in Deep Neural Networks", 2016, arXiv:1608.03665, on coupled units.

    Raises:
        InvalidArgument: `strength` is no number of at least 0.
    """
    factor = _checked(strength)

    @torch.no_grad()
    def add(groups: Groups) -> None:
        reductions = Reductions(groups)
        for group in groups:
            members = reductions.members(group)
            squares = sum((reductions.sums(group, member) for member in members), np.zeros(group.size))
            inverse = np.divide(1, np.sqrt(squares), out=np.zeros(group.size), where=squares > 0)
            for member in members:
                value = groups.graph.tensor(member.tensor)
                if value.grad is None:
                    continue
                scale = np.zeros(value.shape[member.axis])
                for units in reductions.positions(group, member):
                    inside = units >= 0
                    scale[inside] += inverse[units[inside]]
                shape = [-1 if axis == member.axis else 1 for axis in range(value.dim())]
                value.grad.addcmul_(value, torch.from_numpy(scale).to(value).view(shape), value=factor)

    return add


def _weights(groups: Groups) -> Iterator[tuple[Tensor, Tensor]]:
    """Each weight with its gradient, tied ones once."""
    graph = groups.graph
    for value in {graph.canonical[name]: value for name, value in graph.values.items()}.values():
        if isinstance(value, nn.Parameter) and value.dim() > 1 and value.grad is not None:
            yield value, value.grad


def _checked(strength: float) -> float:
    if type(strength) not in (int, float) or not 0 <= strength < math.inf:
        raise InvalidArgument(f"strength={strength!r}: give a number of at least 0")
    return float(strength)
