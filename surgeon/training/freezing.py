"""Training one part of a network while the other is frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from surgeon.errors import InvalidArgument
from surgeon.frontend.parameters import module_in_place, public
from surgeon.support.arguments import choice

#: What `frozen` can freeze: convolutions with the norms of their channels, or fully connected layers.
KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "convolutions": (_ConvNd, _NormBase, nn.GroupNorm),
    "linear": (nn.Linear, nn.Bilinear),
}


@public(model=module_in_place, kind=choice(*KINDS))
@contextmanager
def frozen(model: nn.Module, kind: str) -> Iterator[nn.Module]:
    """A context in which the convolutions of `model`, or its fully connected layers, are not trained.

    After pruning, the two are retrained in turn, because vanishing gradients make it hard to retrain a deep network
    all at once: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015,
    arXiv:1506.02626. Convolutions are frozen together with the norms of their channels, whose running statistics do
    not change either; an optimizer skips parameters without gradients.

    Args:
        model: changed in place; on exit its parameters require gradients again.
        kind: "convolutions" or "linear".

    Raises:
        InvalidArgument: the kind is unknown, or the model has no such layer with trainable parameters.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    >>> with frozen(net, "convolutions"):
    ...     [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    ['2.weight', '2.bias']
    >>> all(parameter.requires_grad for parameter in net.parameters())
    True
    """
    modules = [module for module in model.modules() if isinstance(module, KINDS[kind])]
    held = {id(p): p for module in modules for p in module.parameters(recurse=False) if p.requires_grad}
    if not held:
        raise InvalidArgument(f"{type(model).__name__} has no {kind} that are trained, so there is nothing to freeze")
    norms = [(module, module.momentum) for module in modules if isinstance(module, _NormBase)]
    try:
        for parameter in held.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        for norm, _ in norms:
            norm.momentum = 0.0  # in train mode too, the running statistics then stay as they are
        yield model
    finally:
        for parameter in held.values():
            parameter.requires_grad_(True)
        for norm, momentum in norms:
            norm.momentum = momentum
