"""Gradients of the user's loss on labeled batches, without changing the user's model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.calibration.data import Calibration
from surgeon.calibration.fisher import Likelihoods
from surgeon.calibration.labels import Loss, evaluate
from surgeon.errors import InvalidArgument
from surgeon.frontend.copies import duplicate
from surgeon.frontend.isolation import untouched
from surgeon.frontend.trace import batch_size
from surgeon.groups.coupling import Groups
from surgeon.scoring.gradient_criteria import Gradients
from surgeon.support.progress import counter


def observe(model: nn.Module, groups: Groups, data: Calibration, loss: Loss) -> Gradients:
    """One observation for each batch of labeled `data`, of a model in eval mode.

    Args:
        model: the model that `groups` are of; neither it nor the gradients that its parameters hold change.
        data: inputs, with the rest of each batch in `rest`.
        loss: a scalar of `loss(output, *rest)`.

    Raises:
        InvalidArgument, InvalidInputs: the loss does not fit the data, is no scalar, or is not finite.
    """
    free = duplicate(model).eval()
    learnt = {name: value for name, value in free.named_parameters() if value.is_floating_point()}
    for parameter in learnt.values():
        parameter.requires_grad_(True)
    device = next((value.device for value in free.parameters()), torch.device("cpu"))
    found = Gradients(groups)
    with torch.enable_grad(), untouched(model), counter("gradients") as progress:
        for done, ((args, kwargs), rest) in enumerate(zip(data.batches, data.rest, strict=True)):
            progress(done, len(data.batches))
            value = evaluate(loss, free(*args, **kwargs), rest, device)
            gradients = torch.autograd.grad(value, list(learnt.values()), materialize_grads=True)
            found.add(dict(zip(learnt, gradients, strict=True)))
    if not found.count:
        raise InvalidArgument("gradients of the loss are not finite on any batch; check the labels and the loss")
    return found


def likelihoods(model: nn.Module, data: Calibration, loss: Loss) -> Likelihoods:
    """What `fisher.measure` differentiates on the batches of `data`: minus the loss, times the samples of a batch.

    The loss gets the output in the structure that `model` returns, with the traced graph's tensors in it.
    """
    free = duplicate(model).eval()

    def given(outputs: list[Tensor], number: int, generator: torch.Generator) -> Iterator[Tensor]:
        if not any(output.requires_grad for output in outputs):
            return
        args, kwargs = data.batches[number]
        with torch.no_grad(), untouched(model):
            leaves, form = pytree.tree_flatten(free(*args, **kwargs))
        traced = iter(outputs)
        filled = [next(traced) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf for leaf in leaves]
        value = evaluate(loss, pytree.tree_unflatten(filled, form), data.rest[number], outputs[0].device)
        yield -value * batch_size((args, kwargs))

    return given
