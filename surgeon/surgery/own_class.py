"""A copy of the user's module, in its own class, with smaller tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.frontend.held import exchange, held_tensors
from surgeon.frontend.trace import skeleton
from surgeon.groups.coupling import Groups
from surgeon.rules import Kept
from surgeon.surgery.attributes import Meanings, Renumbered, renumber
from surgeon.surgery.tensors import like, take


def own_class(
    model: nn.Module,
    groups: Groups,
    kept: Kept,
    tensors: Mapping[str, Tensor],
    meanings: Meanings | None = None,
) -> tuple[nn.Module, Renumbered]:
    """A copy of the user's module with smaller tensors and rewritten integers; not yet known to be right."""
    slim = skeleton(model)
    new: dict[int, Tensor] = {id(value): tensors[name] for name, value in held_tensors(slim) if name in tensors}
    for path, module in slim.named_modules(remove_duplicate=False):
        for table in _tables(module):
            for key, value in table.items():
                name = f"{path}.{key}" if path else key
                if isinstance(value, Tensor) and name in tensors:
                    new[id(value)] = tensors[name]

    def smaller(value: Tensor) -> Tensor:
        if id(value) not in new:
            new[id(value)] = like(value, take(value, {}))
        return new[id(value)]

    for module in slim.modules():
        for table in _tables(module):
            for key, value in list(table.items()):
                if isinstance(value, Tensor):
                    table[key] = smaller(value)
        exchange(module, smaller)
    _compute_weights(slim)
    return slim, renumber(slim, groups, kept, meanings)


def _compute_weights(slim: nn.Module) -> None:
    """Compute the weights that hooks of torch's own tools keep as plain attributes, as the next call of a module does.

    These are the masks of `torch.nn.utils.prune`, and weight norm and spectral norm of `torch.nn.utils`.
    """
    for module in slim.modules():
        training = module.training
        module.training = False  # spectral norm goes on with its power iteration in train mode
        for hook in module._forward_pre_hooks.values():
            if type(hook).__module__.startswith("torch.nn.utils."):
                with torch.no_grad():
                    hook(module, ())
        module.training = training


def _tables(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Where a module keeps its tensors: parameters, buffers and plain attributes."""
    return module._parameters, module._buffers, vars(module)
