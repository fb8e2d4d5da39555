"""The smaller model as a graph: a GraphModule from which what else the original's class offers can be reached."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from surgeon.errors import SurgeryError

_REMEDY = 'ask for the user\'s own class with form="module", or take it from the original model'
_OF_MODULES = frozenset(vars(nn.Module()))
_GONE = object()
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, Enum)


class Part(nn.Module):
    """What holds the modules of a part of the model; its own code is gone, as its operators stand in the graph."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise SurgeryError(
            "this part of the model has no forward of its own in a graph, where its operators stand in the graph's "
            f"code: call the whole model; or {_REMEDY}"
        )

    __iter__ = None  # modules that are gone would be passed over

    def __getitem__(self, index: int) -> Any:
        return _child(self, index)


class SlimGraph(fx.GraphModule):
    """A graph with the methods, properties and plain attributes of the class that it was traced from.

    They run on the graph and its modules. An attribute that is a width which has changed is left out, as are modules
    without tensors whose operators stand in the graph's code.
    """

    _original: type = nn.Module
    _gone: frozenset[str] = frozenset()
    _carried: tuple[str, ...] = ()
    __iter__ = None  # modules that are gone would be passed over

    def take_from(self, model: nn.Module, changed: Iterable[int]) -> None:
        """Take over what `model` offers; `changed` are the sizes that units were removed from."""
        before = model if isinstance(model, SlimGraph) else None
        names = before._carried if before is not None else [name for name in vars(model) if name not in _OF_MODULES]
        widths = frozenset(changed)
        plain = {
            name: copied for name in names
            if not hasattr(type(self), name) and _is_plain(value := vars(model).get(name), widths)
            and (copied := _copied(value)) is not _GONE
        }
        kind: Any = type(self)  # each instance of a GraphModule has a class of its own
        kind._original = before._original if before is not None else type(model)
        kind._gone = frozenset([*names, *model._modules, *model._parameters, *model._buffers])
        kind._gone |= before._gone if before is not None else frozenset()
        self._carry(plain)

    def _carry(self, plain: Mapping[str, Any]) -> None:
        kind: Any = type(self)
        kind._carried = tuple(plain)
        vars(self).update(plain)
        for module in self.modules():
            if type(module) is nn.Module:
                module.__class__ = Part

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            for kind in self._original.__mro__:
                if kind is nn.Module or name.startswith("__"):
                    break
                if name in vars(kind):
                    found = vars(kind)[name]
                    return found.__get__(self, type(self)) if hasattr(found, "__get__") else found
            if name not in self._gone:
                raise
            raise AttributeError(
                f"{name} of {self._original.__name__} is gone in a graph, which keeps what forward computes: {_REMEDY}"
            ) from error

    def __getitem__(self, index: int) -> Any:
        return _child(self, index)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        found: Any = super().__deepcopy__(memo)
        kind: Any = type(found)
        kind._original, kind._gone = self._original, self._gone
        found._carry({name: copy.deepcopy(vars(self)[name], memo) for name in self._carried if name in vars(self)})
        return found


def _child(module: nn.Module, index: int) -> Any:
    child = module._modules.get(str(index))
    if child is None:
        raise IndexError(f"module {index} is gone in a graph, where its operators stand in the graph's code: {_REMEDY}")
    return child


def _copied(value: Any) -> Any:
    """A copy; `_GONE` where there is none, as of an open file."""
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001  (a user's value may raise anything when it is copied)
        return _GONE


def _is_plain(value: Any, changed: frozenset[int], depth: int = 4) -> bool:
    """Whether a value consists of numbers, texts and the like alone, none of them a width that has changed."""
    if isinstance(value, _PLAIN):
        return type(value) is not int or value not in changed
    if isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    elif callable(value) or isinstance(value, Tensor | nn.Module) or not hasattr(value, "__dict__"):
        return False
    else:
        parts = list(vars(value).values())
    return depth > 0 and all(_is_plain(part, changed, depth - 1) for part in parts)
