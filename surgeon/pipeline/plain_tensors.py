"""Tensors that a model computes with but leaves out of its state_dict: plain attributes, buffers that don't persist.

A smaller model's are cut like its parameters, so that they are stored with them.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

#: What stands before their names in a file.
PREFIX: Final = "attribute:"

_OF_MODULES = frozenset(vars(nn.Module()))


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The dense tensors in attributes, also in lists, tuples and dicts, and in buffers; those of a state_dict aside.

    What a call has left there, with the history of its gradients, is none.

    >>> net = nn.Linear(2, 2)
    >>> net.scales = [torch.ones(2), 3]
    >>> list(plain_tensors(net))
    ['scales[0]']
    """
    known = {id(value) for value in model.state_dict(keep_vars=True).values()}
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        held = {key: value for key, value in vars(module).items() if key not in _OF_MODULES}
        held |= {key: module._buffers.get(key) for key in sorted(module._non_persistent_buffers_set)}
        for key, value in held.items():
            for place, leaf in _leaves(value):
                if _is_plain(leaf) and id(leaf) not in known:
                    found[f"{path}.{key}".lstrip(".") + place] = leaf
                    known.add(id(leaf))
    return found


def _leaves(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Tensor):
        return [("", value)]
    if not isinstance(value, list | tuple | dict):
        return []
    return [(pytree.keystr(path), leaf) for path, leaf in pytree.tree_flatten_with_path(value)[0]]


def _is_plain(value: Any) -> bool:
    if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
        return False
    return value.is_leaf and value.layout is torch.strided and not (value.is_meta or value.is_quantized)
