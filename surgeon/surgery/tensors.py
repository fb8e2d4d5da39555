"""Cuts tensors down to their kept positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.groups.coupling import Groups
from surgeon.groups.gains import rescaled
from surgeon.rules import Kept


def kept_positions(groups: Groups, kept: Kept) -> dict[str, dict[int, np.ndarray]]:
    """For every tensor that loses positions: the kept positions of each axis that does."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for name, axes in groups.tensors.items():
        cut = {i: kept.positions(axis) for i, axis in enumerate(axes) if kept.changed(axis)}
        if cut:
            found[name] = cut
    return found


def take(tensor: Tensor, cut: Mapping[int, np.ndarray]) -> Tensor:
    """The kept positions of `tensor`, in memory of its own and detached."""
    out = tensor.detach()
    for axis, positions in cut.items():
        out = out.index_select(axis, torch.as_tensor(positions, device=out.device))
    return out if cut else out.clone()


def slim_tensors(groups: Groups, kept: Kept) -> dict[str, Tensor]:
    """Every tensor of the graph at its new size; names of one tensor share one result.

    What makes up for norms of weights is rescaled, so that the weights that are left are the same numbers.
    """
    cuts, new = kept_positions(groups, kept), rescaled(groups, kept)
    by_canonical: dict[str, Tensor] = {}
    out: dict[str, Tensor] = {}
    for name, value in groups.graph.values.items():
        canonical = groups.graph.canonical[name]
        if canonical not in by_canonical:
            by_canonical[canonical] = like(value, take(new.get(canonical, value).to(value.dtype), cuts.get(name, {})))
        out[name] = by_canonical[canonical]
    return out


def like(old: Tensor, new: Tensor) -> Tensor:
    """`new` as a parameter where `old` is one, trainable if it was, with a gradient of no other tensor."""
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def place(root: nn.Module, name: str, value: Tensor, persistent: bool = True) -> None:
    """Put a tensor under a dotted name, making empty modules on the way."""
    *path, last = name.split(".")
    module = root
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    own: Any = vars(module)
    if isinstance(value, nn.Parameter):
        module.register_parameter(last, value)
    elif last in own and not isinstance(own[last], nn.Module):
        setattr(module, last, value)
    else:
        module.register_buffer(last, value, persistent=persistent)
