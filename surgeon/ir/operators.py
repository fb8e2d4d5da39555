"""Families of ATen operators, for properties that several stages ask for.

>>> [is_a("permute", "reorder"), is_a("permute", "reorder", "part"), is_a("add", "reorder")]
[True, True, False]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import fx

Family = Literal[
    "identity", "view", "reorder", "split", "part", "repeat", "join", "dropout", "cast", "shape",
    "uninitialized",
]

# Each operator is in one family, with all of its overloads.
_FAMILIES: dict[Family, str] = {
    # returns its input
    "identity": "alias clone contiguous detach lift_fresh lift_fresh_copy",
    # the same elements in the same order, in another shape
    "view": "view _unsafe_view reshape _reshape_alias view_copy flatten unflatten unsqueeze squeeze",
    # the same elements in another order
    "reorder": "t transpose permute numpy_T mT movedim moveaxis swapaxes swapdims adjoint",
    # the elements in several tensors
    "split": "split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk tensor_split unbind",
    # some of the elements
    "part": "select slice narrow",
    # elements several times
    "repeat": "expand expand_as broadcast_to repeat tile repeat_interleave",
    # the elements of several tensors in one
    "join": "cat concat concatenate stack",
    # returns its input in eval mode
    "dropout": "dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout",
    # returns its input as another type
    "cast": "to type_as _to_copy float",
    # reads only the shape of a tensor
    "shape": "sym_size new_zeros new_ones new_full zeros_like ones_like full_like",
    # memory of some shape, with arbitrary values
    "uninitialized": "empty empty_like empty_strided new_empty new_empty_strided",
}
_FAMILY = {name: family for family, names in _FAMILIES.items() for name in names.split()}


def operator_name(operator: Any) -> str:
    """The name of an ATen operator or of a node that calls one, without its overload; empty for anything else.

    >>> operator_name(torch.ops.aten.max.dim)
    'max'
    """
    target = operator.target if isinstance(operator, fx.Node) else operator
    return str(target._schema.name.removeprefix("aten::")) if isinstance(target, torch._ops.OpOverload) else ""


def is_a(operator: Any, *families: Family) -> bool:
    """Whether an operator, a node that calls one, or an operator's name is in one of these families."""
    name = operator if isinstance(operator, str) else operator_name(operator)
    return _FAMILY.get(name) in families


def by_name(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of an ATen operator, by their names in its schema, with defaults filled in.

    >>> by_name(torch.ops.aten.softmax.int, (3,), {"dim": -1})
    {'self': 3, 'dim': -1, 'dtype': None}
    """
    return {
        argument.name: args[index] if index < len(args) else kwargs.get(argument.name, argument.default_value)
        for index, argument in enumerate(operator._schema.arguments)
    }
