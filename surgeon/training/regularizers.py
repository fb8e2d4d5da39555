"""Penalties that shrink weights while a model trains, so that little is lost when they are removed.

A regularizer is a function of the groups that adds the gradient of its penalty to the `.grad` of the parameters, after
`backward`. Parameters without a gradient, such as frozen ones, are skipped.

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

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.errors import InvalidArgument
from surgeon.frontend.parameters import public
from surgeon.groups.coupling import GROUPS, Groups
from surgeon.scoring.norms import Reductions

Regularizer = Callable[[Groups], None]


@public()
def l1(strength: float) -> Regularizer:
    """`strength` · Σ |w| over the weights: the parameters with two or more axes that the model reads.

    It drives single connections to zero. Han et al., "Learning both Weights and Connections for Efficient Neural
    Networks", 2015, arXiv:1506.02626.

    >>> net, groups = _example()
    >>> l1(0.5)(groups)
    >>> net[0].weight.grad.abs().unique()
    tensor([0.5000])

    Raises:
        InvalidArgument: `strength` is not a number of at least 0.
    """
    return _over_weights(torch.sign, strength)


@public()
def l2(strength: float) -> Regularizer:
    """`strength` / 2 · Σ w² over the weights: the parameters with two or more axes that the model reads.

    The counterpart of `l1` in Han et al., 2015, arXiv:1506.02626; with SGD, the same as weight decay.

    >>> net, groups = _example()
    >>> l2(0.5)(groups)
    >>> torch.allclose(net[2].weight.grad, 0.5 * net[2].weight)
    True

    Raises:
        InvalidArgument: `strength` is not a number of at least 0.
    """
    return _over_weights(lambda weight: weight, strength)


@public()
def batch_norm_l1(strength: float) -> Regularizer:
    """`strength` · Σ |γ| over the scales of batch norms: it drives whole channels that a batch norm scales to zero.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", 2017, arXiv:1708.06519.

    >>> net, groups = _example()
    >>> batch_norm_l1(0.5)(groups)
    >>> net[1].weight.grad
    tensor([0.5000, 0.5000, 0.5000])

    Raises:
        InvalidArgument: `strength` is not a number of at least 0; or, when the result is called, the model has no batch
            norm with a scale.
    """
    @public(groups=GROUPS)
    @torch.no_grad()
    def add(groups: Groups) -> None:
        names = Reductions(groups).batch_norm_scales()
        if not names:
            raise InvalidArgument("batch_norm_l1: the model has no batch norm with a scale; take group_lasso")
        for name in names:
            scale = groups.graph.tensor(name)
            if scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=strength)

    return add


@public()
def group_lasso(strength: float) -> Regularizer:
    """`strength` · Σ over units of the L2 norm of all that belongs to the unit: it drives whole units to zero.

    Wen et al., "Learning Structured Sparsity in Deep Neural Networks", 2016, arXiv:1608.03665, on coupled units.

    >>> net, groups = _example()
    >>> group_lasso(0.5)(groups)
    >>> bool(net[0].weight.grad.abs().sum() > 0)
    True

    Raises:
        InvalidArgument: `strength` is not a number of at least 0.
    """
    @public(groups=GROUPS)
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
                value.grad.addcmul_(value, torch.from_numpy(scale).to(value).view(shape), value=strength)

    return add


def _over_weights(derivative: Callable[[Tensor], Tensor], strength: float) -> Regularizer:
    """A penalty that is a sum over weights, tied ones counted once, by its derivative."""
    @public(groups=GROUPS)
    @torch.no_grad()
    def add(groups: Groups) -> None:
        graph = groups.graph
        for value in {graph.canonical[name]: value for name, value in graph.values.items()}.values():
            if isinstance(value, nn.Parameter) and value.dim() > 1 and value.grad is not None:
                value.grad.add_(derivative(value), alpha=strength)

    return add


def _example() -> tuple[nn.Sequential, Groups]:
    """A network with a batch norm, whose gradients are zero, and its groups."""
    from surgeon.frontend.trace import trace
    from surgeon.groups.coupling import couple

    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    groups = couple(trace(net, torch.zeros(2, 2)))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return net, groups
