"""Deep copies of modules that hold what can't be copied."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from surgeon.errors import InvalidModel

_M = TypeVar("_M", bound=nn.Module)
#: What `copy` hands on as it is.
_ATOMS = (type(None), int, float, complex, bool, str, bytes, type, range, types.FunctionType, types.BuiltinFunctionType)


def duplicate(module: _M, memo: Mapping[int, Any] | None = None) -> _M:
    """A deep copy of a module. What can't be copied, such as a lock or an open file, both have together.

    Only that itself is shared, not what it stands in: a cache that is guarded by a lock is copied, with the same lock.
    Gradients are left out, and a tensor that was computed with gradients is copied without its history. `memo` holds
    what the copy has instead of objects, by their ids, as for `copy.deepcopy`.

    Raises:
        InvalidModel: an attribute can't be copied, and what in it is at fault can't be told; it is named.

    >>> import threading
    >>> net = nn.Linear(2, 2)
    >>> net.cache = {"lock": threading.Lock(), "seen": [1]}
    >>> other = duplicate(net)
    >>> other.cache["lock"] is net.cache["lock"], other.cache["seen"] is net.cache["seen"]
    (True, False)
    """
    known: dict[int, Any] = {id(tensor.grad): None for tensor in module.parameters() if tensor.grad is not None}
    known |= {**_tensors(module), **(memo or {})}
    try:
        return copy.deepcopy(module, dict(known))
    except Exception:  # noqa: BLE001  (a user's attribute may raise anything when it is copied)
        known |= {id(found): instead for found, instead in _uncopyable(module, known)}
    try:
        return copy.deepcopy(module, known)
    except Exception as error:
        raise InvalidModel(
            f"{_place(module)} can't be copied: {error}\nRemedy: give its class a __deepcopy__, or set the attribute "
            "to None while the model is pruned."
        ) from error


def _tensors(module: nn.Module) -> dict[int, Tensor]:
    """What stands in a copy for tensors in attributes that `copy` refuses, by their ids."""
    found: dict[int, Tensor] = {}
    for each in module.modules():
        for value in vars(each).values():
            for leaf in pytree.tree_leaves(value) if isinstance(value, dict | list | tuple) else [value]:
                if isinstance(leaf, FakeTensor):
                    found[id(leaf)] = leaf  # what a hook remembers of a trace has no values
                elif isinstance(leaf, Tensor) and not leaf.is_leaf:
                    found[id(leaf)] = leaf.detach().clone()
    return found


def _uncopyable(module: nn.Module, known: Mapping[int, Any]) -> Iterator[tuple[Any, Any]]:
    """The objects in a module that can't be copied, and what stands for each of them."""
    seen: set[int] = set(known)
    waiting: list[Any] = [module]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, _ATOMS):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if not value.is_leaf:
                yield value, value.detach().clone()
        elif isinstance(value, nn.Module):
            waiting += vars(value).values()
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
        elif isinstance(value, types.MethodType):
            waiting.append(value.__self__)
        elif hasattr(type(value), "__deepcopy__"):
            if not _copies(value):
                yield value, value
        else:
            try:
                parts = value.__reduce_ex__(4)
            except Exception:  # noqa: BLE001  (as it does not say how it is copied, it can't be)
                yield value, value
            else:
                waiting += [part for part in parts[1:] if part is not None] if isinstance(parts, tuple) else []


def _copies(value: Any) -> bool:
    try:
        copy.deepcopy(value)
    except Exception:  # noqa: BLE001
        return False
    return True


def _place(module: nn.Module) -> str:
    """The first attribute of a module, or of one in it, that can't be copied, and what it is."""
    for path, each in module.named_modules():
        for name, value in vars(each).items():
            if name not in ("_modules", "_parameters", "_buffers") and not _copies(value):
                kind = type(value)
                return f"{f'{path}.{name}'.lstrip('.')} (a {kind.__module__}.{kind.__qualname__})"
    return type(module).__name__
