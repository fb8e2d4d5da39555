"""Unstructured pruning: single connections are set to zero; `surgeon.sweep` removes units that become dead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import InvalidArgument, NothingToPrune
from surgeon.frontend.copies import duplicate
from surgeon.frontend.ignore import Ignored, ignoring
from surgeon.frontend.isolation import undisturbed
from surgeon.frontend.parameters import public
from surgeon.frontend.wrappers import within_its_wrapper
from surgeon.groups.analyze import analyze
from surgeon.groups.coupling import Groups
from surgeon.groups.weights import check_finite
from surgeon.sparsity.connection_weights import connection_weights, magnitudes
from surgeon.support.arguments import choice, number

_AMOUNT = number(
    "the share of the connections to cut, a number of at least 0 and less than 1", lambda value: 0 <= value < 1
)


@within_its_wrapper()
@public(amount=_AMOUNT, scope=choice("global", "local"))
@undisturbed()
def prune_connections(
    model: nn.Module,
    amount: float | None = None,
    scope: str = "global",
    threshold: float | None = None,
    ignore: Ignored | Iterable[Ignored] = (),
    *,
    example_inputs: Any = None,
) -> nn.Module:
    """A copy of `model` whose connections of least magnitude are zero.

    Connections are the entries of weights in sums of products: those of linear layers, convolutions, recurrent layers
    and matrix products, but not biases, the parameters of norms, or lookup tables. `surgeon.Masks.of_zeros` keeps them
    at zero in training. Under weight norm, the largest entry that is left of a norm stays.

    Args:
        model: any module that `torch.export` can trace; it is left as it is.
        amount: the share of the connections to set to zero, at least 0 and less than 1, including those that are zero
            already.
        scope: "global" ranks all connections of the model together, "local" those of each weight.
        threshold: instead of `amount`, the magnitude below which connections are set to zero.
        ignore: module names, globs, modules or parameters to leave alone.
        example_inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs; inferred where that is
            safe.

    Raises:
        InvalidArgument, InvalidInputs, InvalidModel: bad input, such as a weight that holds NaN.
        TraceError: `torch.export` can't trace the model.
        NothingToPrune: no weight is left to prune.

    Han, Pool, Tran, Dally: Learning both weights and connections for efficient neural networks (2015).

    >>> net = nn.Linear(4, 1, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[0.1, -3.0, 0.2, 1.0]]))
    >>> prune_connections(net, 0.5).weight.tolist()
    [[0.0, -3.0, 0.0, 1.0]]
    """
    if (amount is None) == (threshold is None):
        raise InvalidArgument("give either amount=, the share of the connections to cut, or threshold=, a magnitude")
    groups = analyze(model, example_inputs)
    check_finite(groups.graph)
    left_alone = ignoring(model, ignore)
    chosen = [name for name in connection_weights(groups) if not left_alone(name)]
    if not chosen:
        raise NothingToPrune(
            f"{type(model).__name__} has no weight to prune: no linear layer, convolution, recurrent layer or matrix "
            "product outside of ignore="
        )
    sparse = duplicate(model)
    known = magnitudes(groups)
    weights = [known[name] for name in chosen]
    if threshold is not None:
        gone = [weight < threshold for weight in weights]
    elif scope == "local":
        gone = [least([weight], float(amount or 0))[0] for weight in weights]
    else:
        gone = least(weights, float(amount or 0))
    for name, mask in zip(chosen, gone, strict=True):
        _keep_norms(groups, name, known[name], mask)
        sparse.get_parameter(name).detach().masked_fill_(mask, 0)
    return sparse


def _keep_norms(groups: Groups, name: str, magnitudes: Tensor, gone: Tensor) -> None:
    """Leave the largest entry of what weight norm divides by its norm, which must not be zero."""
    for balance in groups.gains.values():
        if not balance.normed or groups.graph.canonical[balance.normed] != name:
            continue
        over = [dim for dim, axis in enumerate(groups.tensors[name]) if axis in balance.over]
        whole = gone.amin(over, keepdim=True) if over else gone
        gone &= ~(whole & (magnitudes == magnitudes.amax(over, keepdim=True)))


def least(weights: list[Tensor], share: float) -> list[Tensor]:
    """Masks of the entries of least magnitude, a `share` of all entries; of equal ones the first.

    >>> least([torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.5])], 0.75)
    [tensor([True, True]), tensor([False, True])]
    """
    magnitudes = torch.cat([weight.abs().flatten().double().cpu() for weight in weights])
    count = round(share * len(magnitudes))
    gone = torch.zeros(len(magnitudes), dtype=torch.bool)
    if count:
        last = magnitudes.kthvalue(count).values
        gone = magnitudes < last
        equals = (magnitudes == last).nonzero().flatten()
        gone[equals[: count - int(gone.sum())]] = True
    parts = gone.split([weight.numel() for weight in weights])
    return [part.reshape(weight.shape).to(weight.device) for part, weight in zip(parts, weights, strict=True)]

