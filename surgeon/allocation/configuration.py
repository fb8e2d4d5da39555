"""Widths that the configuration of a model can tell, where the user asks for the same share of each group."""

from __future__ import annotations

import re
from collections.abc import Mapping
from glob import escape
from typing import Any

import numpy as np
from torch import nn

from surgeon.allocation.allocate import allocate
from surgeon.allocation.limits import floors
from surgeon.cost.cost import Cost
from surgeon.errors import Infeasible
from surgeon.frontend.configuration import Configured, Shapes, held
from surgeon.frontend.isolation import quietly, undisturbed, untouched
from surgeon.groups.coupling import Group, Groups
from surgeon.groups.parts import becoming

#: Multiples that widths are tried at where a configuration does not take those that are nearest to the budget.
ALIGNED = (4, 8, 16)
#: What is kept of each group, at least, for each share that is to be left of the budget, where others stay whole.
LEAST_LEFT = 0.4
#: How much of what may be left of the budget is used at least.
LEAST_USED = 0.9


def allocate_told(
    model: nn.Module, groups: Groups, scores: Mapping[int, np.ndarray], cost: Cost, **options: Any
) -> tuple[dict[int, int], tuple[str, ...]]:
    """As `allocate`, and the names of the groups that are left whole so that a configuration can tell all widths.

    These are, in a model that is built from a configuration, the groups whose width no field of it tells. Only with the
    scope "local", which gives equal layers equal widths, can it make the smaller model. If the budget can't be met that
    way, or other groups would lose far more than their share, they are cut as well.
    """
    own = _configured(model) if options.get("scope") == "local" else None
    if own is not None:
        untold = _untold(own, model, groups)
        least = floors(groups, options.get("min_width")) | {group.leaf.id: group.size for group in untold}
        named = {escape(group.name): least[group.leaf.id] for group in groups if group.leaf.id in least}
        for align in (None, *ALIGNED) if options.get("align") is None else (options["align"],):
            try:
                widths = allocate(
                    groups, scores, cost, **{**options, "min_width": named or None, "align": align}, even=True
                )
            except Infeasible:
                continue
            if _near(groups, cost, widths, options) and _is_told(own, model, groups, widths):
                return widths, tuple(group.name for group in untold)
    return allocate(groups, scores, cost, **options), ()


def _near(groups: Groups, cost: Cost, widths: Mapping[int, int], options: Mapping[str, Any]) -> bool:
    """Whether a budget is used up but for a small part, and no group loses far more than its share."""
    left = 1 - float(options["ratio"])
    total = cost.of(options["budget"])
    full = {group.leaf.id: group.size for group in groups}
    used = total(widths) >= LEAST_USED * left * total(full)
    return used and all(widths[leaf] >= LEAST_LEFT * left * size for leaf, size in full.items())


def _configured(model: nn.Module) -> Configured | None:
    """The model with the configuration that it is built from; None where it has none."""
    with quietly(), undisturbed(), untouched(model):
        tried = (Configured(model, vars(model)[name]) for path, name in held(model) if not path)
        return next((each for each in tried if each.known), None)


def _untold(own: Configured, model: nn.Module, groups: Groups) -> list[Group]:
    """The groups whose width no field of the configuration tells, found by giving half of it to those of a kind."""
    kinds: dict[tuple[str, int], list[Group]] = {}
    for group in groups:
        kinds.setdefault((re.sub(r"\d+", "N", group.name), group.size), []).append(group)
    left: dict[int, list[Group]] = {}
    for alike in kinds.values():
        if not _halves(own, model, groups, alike):
            left.setdefault(alike[0].size, []).extend(alike)
    # One field may tell the width of several kinds, such as that of an encoder and of a decoder.
    return [group for alike in left.values() if not _halves(own, model, groups, alike) for group in alike]


def _halves(own: Configured, model: nn.Module, groups: Groups, alike: list[Group]) -> bool:
    return _is_told(own, model, groups, {group.leaf.id: max(1, group.size // 2) for group in alike})


def _is_told(own: Configured, model: nn.Module, groups: Groups, widths: Mapping[int, int]) -> bool:
    """Whether there are values of fields that give these widths to some groups, and leave all others as they are."""
    kept = groups.kept({leaf: range(width) for leaf, width in widths.items()})
    names = {id(groups.graph.values[name]): name for name in groups.tensors}
    target: Shapes = {}
    for name, value in model.state_dict(keep_vars=True).items():
        known = names.get(id(value))
        axes = groups.tensors[known] if known is not None else ()
        target[name] = tuple(kept.width(axis) for axis in axes) if known is not None else tuple(value.shape)
    with quietly(), undisturbed(), untouched(model):
        return next(own.fitting(target, becoming(groups, kept)), None) is not None
