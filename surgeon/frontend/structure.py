"""What of a model is not in its tensors: its classes, and the plain values on its modules, as a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn


def structure(model: nn.Module) -> str:
    """A digest of the classes, plain attributes and numbers of hooks of all modules, and of the code of a graph.

    Modes and what surgeon notes do not count.

    >>> structure(nn.Dropout(0.1)) == structure(nn.Dropout(0.1).eval()) != structure(nn.Dropout(0.2))
    True
    """
    return hashlib.sha256(json.dumps(list(_described(model))).encode()).hexdigest()


def _described(model: nn.Module) -> Iterator[list[Any]]:
    for path, module in model.named_modules(remove_duplicate=False):
        graph = isinstance(module, fx.GraphModule)
        kind = "a graph" if graph else f"{type(module).__module__}.{type(module).__qualname__}"
        own = sorted(
            (name, found) for name, value in vars(module).items()
            if name not in ("training", "meta") and not name.startswith(("_", "surgeon_"))
            and (found := _plain(value)) is not None
        )
        hooks = [len(module._forward_hooks), len(module._forward_pre_hooks)]
        yield [path, kind, own, hooks, module.code if isinstance(module, fx.GraphModule) else ""]


def _plain(value: Any) -> str | None:
    """A plain value, or the name of a function, as text; None for any other."""
    if isinstance(value, FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, tuple | list) and all(_plain(each) is not None for each in value):
        return repr([_plain(each) for each in value])
    fits = isinstance(value, bool | int | float | str | torch.dtype | None)
    return repr(value) if fits and not isinstance(value, torch.SymInt) else None
