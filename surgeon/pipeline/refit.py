"""A fresh model whose tensors get the sizes that they had when the saved model was made, where no plan cuts them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from surgeon.frontend.copies import duplicate
from surgeon.plans.carried import left
from surgeon.plans.plan import Plan, together
from surgeon.surgery.attributes import describe_tensors
from surgeon.surgery.tensors import like

Shape = tuple[int, ...]


def refit(model: nn.Module, plan: Plan, stored: Mapping[str, Shape]) -> nn.Module:
    """A copy of the model for tensors as they are stored; the model itself if its own have these sizes.

    A tensor that can't have been what is stored under its name is left as it is. `stored` has the shapes by all names.
    """
    wanted = dict(_wanted(model, plan, stored))
    if not wanted:
        return model
    model = duplicate(model)
    new: dict[int, Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        touched = False
        for table in (module._parameters, module._buffers):
            for key, value in table.items():
                name = f"{path}.{key}" if path else key
                if value is None or name not in wanted:
                    continue
                if id(value) not in new:
                    new[id(value)] = like(value, _filled(value.detach(), wanted[name]))
                table[key], touched = new[id(value)], True
        if touched:
            describe_tensors(module)
    return model


def _wanted(model: nn.Module, plan: Plan, stored: Mapping[str, Shape]) -> Iterator[tuple[str, Shape]]:
    """The tensors that must have another shape before the plan is carried out."""
    cuts = together(left(plan, model)).cuts
    sizes = {(cut.tensor, cut.axis): (cut.size, len(cut.keep)) for cut in cuts}
    for name, value in model.state_dict(keep_vars=True).items():
        found = stored.get(name)
        if not isinstance(value, Tensor) or found is None or len(found) != value.dim() or 0 in value.shape:
            continue
        whole = []
        for axis, size in enumerate(found):
            before, after = sizes.get((name, axis), (size, size))
            if size != after or ((name, axis) in sizes and before != value.shape[axis]):
                break  # the weights are not of this plan, or the plan is not of this model
            whole.append(before)
        else:
            if tuple(whole) != tuple(value.shape):
                yield name, tuple(whole)


def _filled(value: Tensor, shape: Shape) -> Tensor:
    """The values of a tensor, repeated or left out, in another shape."""
    for axis, size in enumerate(shape):
        places = torch.arange(size, device=value.device) % value.shape[axis]
        value = value.index_select(axis, places)
    return value
