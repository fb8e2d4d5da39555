"""Knowledge distillation from the unpruned model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.errors import InvalidArgument
from surgeon.frontend.copies import duplicate
from surgeon.frontend.parameters import public
from surgeon.support.arguments import ABOVE_ZERO, UNIT, function

Loss = Callable[[nn.Module, Any], Tensor]
LOSS = function("a function of a model and a batch, that gives the mean loss", 2)


@public(
    loss=LOSS, temperature=ABOVE_ZERO, weight=UNIT, logits=function("a function from a model's output to its logits", 1)
)
def distillation(
    loss: Loss,
    teacher: nn.Module,
    *,
    temperature: float = 4.0,
    weight: float = 0.5,
    logits: Callable[[Any], Tensor] | None = None,
) -> Loss:
    """A loss that also pulls a model's logits toward those of the unpruned model on the same inputs.

    (1 - weight) · loss + weight · T² · KL(softmax(teacher / T) ‖ softmax(model / T)), the mean over all positions.
    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.

    Args:
        loss: a function of a model and a batch that calls the model and returns the mean loss, as for
            `surgeon.training.fit`.
        teacher: the unpruned model. Its present state is copied, in eval mode.
        temperature: the temperature T of both softmaxes, above 0: the higher, the more small logits count.
        weight: the share of the distillation term, from 0 to 1.
        logits: a function from a model's output to its logits, classes last; by default the output itself if it is a
            tensor, else its "logits" entry.

    Raises:
        InvalidModel: the teacher can't be copied.
        InvalidArgument: a number is out of range; or, when the result is called, the loss does not call the model, or
            the model's logits do not have the teacher's shape.

    >>> dense, slim = nn.Linear(2, 3), nn.Linear(2, 3)
    >>> both = distillation(lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]), dense, weight=1.0)
    >>> batch = torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    >>> bool(both(slim, batch) > 0), bool(both(dense, batch).abs() < 1e-6)
    (True, True)
    """
    read = logits if logits is not None else _logits
    known = duplicate(teacher).eval().requires_grad_(False)

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
        kind = type(output).__name__
        raise InvalidArgument(f"distillation: a {kind} is not a tensor and has no logits; pass logits=")
    return found


def _divergence(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    if logits.shape != wanted.shape:
        raise InvalidArgument(
            f"distillation: the model's logits are {tuple(logits.shape)}, the teacher's {tuple(wanted.shape)}"
        )
    own, given = ((each.float() if each.dtype.itemsize < 4 else each) / temperature for each in (logits, wanted))
    pointwise = F.kl_div(F.log_softmax(own, -1), F.log_softmax(given, -1), reduction="none", log_target=True)
    return pointwise.sum(-1).mean()
