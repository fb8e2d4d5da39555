"""Gradients of the user's loss on labelled batches, observed unit by unit, without touching the user's model."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call

from surgeon.coupling import Groups
from surgeon.errors import InvalidArgument
from surgeon.importance.gradients import Gradients
from surgeon.progress import counter
from surgeon.recovery.data import Calibration
from surgeon.recovery.labels import Loss, evaluate
from surgeon.trace import skeleton


def observe(model: nn.Module, groups: Groups, data: Calibration, loss: Loss) -> Gradients:
    """One observation for each batch of labelled `data`, of a model in eval mode.

    Args:
        model: the model that `groups` are of; neither it nor the gradients that its parameters hold change.
        groups: the coupled units.
        data: inputs, and in `rest` what else each batch holds.
        loss: a scalar of `loss(output, *rest)`.

    Raises:
        InvalidArgument, InvalidInputs: the loss does not fit the data, is no scalar, or is not finite.
    """
    free = skeleton(model).eval()
    tensors = {
        name: value.detach().requires_grad_(value.is_floating_point()) for name, value in free.named_parameters()
    }
    learnt = {name: value for name, value in tensors.items() if value.requires_grad}
    device = next((value.device for value in tensors.values()), torch.device("cpu"))
    found = Gradients(groups)
    with torch.enable_grad(), counter("gradients") as progress:
        for done, ((args, kwargs), rest) in enumerate(zip(data.batches, data.rest, strict=True)):
            progress(done, len(data.batches))
            value = evaluate(loss, functional_call(free, tensors, args, kwargs), rest, device)
            gradients = torch.autograd.grad(value, list(learnt.values()), materialize_grads=True)
            found.add(dict(zip(learnt, gradients, strict=True)))
    if not found.count:
        raise InvalidArgument("gradients of the loss are not finite on any batch; check the labels and the loss")
    return found
