"""Tensors that a module holds in lists, tuples and dicts, where torch registers none and gives them no names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

#: How deep containers may lie in one another.
DEPTH = 4
_OF_MODULES = frozenset(vars(nn.Module()))


def held_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each tensor in a container, by a name that no attribute of its module has.

    >>> import torch
    >>> net = nn.Linear(2, 2)
    >>> net.scales = {"up": [torch.ones(2), 3]}
    >>> [name for name, _ in held_tensors(net)]
    ['scales_up_0']
    """
    for path, module in model.named_modules(remove_duplicate=False):
        for key, value in list(vars(module).items()):
            if key in _OF_MODULES or isinstance(value, Tensor):
                continue
            for parts, tensor in _inside(value):
                name = "_".join((key, *(re.sub(r"\W", "_", part) for part in parts)))
                while hasattr(module, name):
                    name += "_"
                yield f"{path}.{name}".lstrip("."), tensor


def exchange(module: nn.Module, new: Callable[[Tensor], Tensor]) -> None:
    """Put others in the place of the tensors in the containers of a module, which are changed in place."""
    for key, value in list(vars(module).items()):
        if key not in _OF_MODULES and not isinstance(value, Tensor):
            vars(module)[key] = _exchanged(value, new)


def _inside(value: Any, depth: int = DEPTH) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    if isinstance(value, Tensor):
        yield (), value
        return
    if depth and isinstance(value, list | tuple | dict):
        fields = getattr(value, "_fields", range(len(value)))
        for key, part in value.items() if isinstance(value, dict) else zip(fields, value, strict=True):
            for parts, tensor in _inside(part, depth - 1):
                yield (str(key), *parts), tensor


def _exchanged(value: Any, new: Callable[[Tensor], Tensor], depth: int = DEPTH) -> Any:
    if isinstance(value, Tensor):
        return new(value)
    if not depth or not isinstance(value, list | tuple | dict) or next(_inside(value, depth), None) is None:
        return value
    if isinstance(value, tuple):
        parts = [_exchanged(part, new, depth - 1) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
        value[key] = _exchanged(part, new, depth - 1)
    return value
