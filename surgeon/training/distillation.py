"""Learning from the unpruned model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.errors import InvalidArgument

Loss = Callable[[nn.Module, Any], Tensor]


def distillation(
    loss: Loss,
    teacher: nn.Module,
    *,
    temperature: float = 4.0,
    weight: float = 0.5,
    logits: Callable[[Any], Tensor] | None = None,
) -> Loss:
    """A loss that also pulls a model's logits to those of the unpruned one, on the same inputs.

    (1 - weight) · loss + weight · T² · KL(softmax(teacher / T) ‖ softmax(model / T)), the mean over all positions.
    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.

    Args:
        loss: from a model and a batch to the mean loss, as for `surgeon.training.fit`; it calls the model.
        teacher: the unpruned model. A copy of it as it is now is kept, in eval mode.
        temperature: T, above 0: the higher, the more small logits count.
        weight: from 0 to 1.
        logits: from a model's output to its logits, classes last; by default the output itself where it is a tensor, or
            what it has under the name "logits".

    Raises:
        InvalidArgument: a number is out of range; or, when it is used, the loss does not call the model, or its output
            has no logits of the teacher's shape.

    >>> dense, slim = nn.Linear(2, 3), nn.Linear(2, 3)
    >>> both = distillation(lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]), dense, weight=1.0)
    >>> batch = torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    >>> bool(both(slim, batch) > 0), bool(both(dense, batch).abs() < 1e-6)
    (True, True)
    """
    if isinstance(temperature, bool) or not 0 < temperature < math.inf:
        raise InvalidArgument(f"temperature={temperature!r}: give a number above 0")
    if isinstance(weight, bool) or not 0 <= weight <= 1:
        raise InvalidArgument(f"weight={weight!r}: give a number from 0 to 1")
    read = logits if logits is not None else _logits
    known = copy.deepcopy(teacher).eval().requires_grad_(False)

    def distilled(model: nn.Module, batch: Any) -> Tensor:
        calls: list[tuple[Any, Any, Any]] = []
        handle = model.register_forward_hook(
            lambda _, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True
        )
        try:
            hard = loss(model, batch)
        finally:
            handle.remove()
        if not calls:
            raise InvalidArgument("distillation: the loss does not call the model that it is given")
        soft = []
        for args, kwargs, output in calls:
            with torch.no_grad():
                wanted = read(known(*args, **kwargs))
            soft.append(_divergence(read(output), wanted, temperature))
        return (1 - weight) * hard + weight * temperature**2 * torch.stack(soft).mean()

    return distilled


def _logits(output: Any) -> Tensor:
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        raise InvalidArgument(f"distillation: a {type(output).__name__} is no tensor and has no logits; pass logits=")
    return found


def _divergence(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    if logits.shape != wanted.shape:
        raise InvalidArgument(
            f"distillation: the model's logits are {tuple(logits.shape)}, the teacher's {tuple(wanted.shape)}"
        )
    own, given = ((each.float() if each.dtype.itemsize < 4 else each) / temperature for each in (logits, wanted))
    pointwise = F.kl_div(F.log_softmax(own, -1), F.log_softmax(given, -1), reduction="none", log_target=True)
    return pointwise.sum(-1).mean()
