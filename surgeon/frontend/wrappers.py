"""torch's own wrappers around a model, which are taken off while it is pruned, and put on again around the result."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from surgeon.frontend.copies import duplicate

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")
#: The attribute that holds the model, by the kind of wrapper.
_INSIDE: Mapping[type[nn.Module], str] = {
    nn.DataParallel: "module", DistributedDataParallel: "module", AveragedModel: "module",
}
_COMPILED = "_orig_mod"


def bare(model: nn.Module) -> nn.Module:
    """The model that is wrapped for several devices, for averaging or by `torch.compile`; or the model itself.

    >>> net = nn.Linear(2, 2)
    >>> bare(AveragedModel(nn.DataParallel(net))), bare(net) is net
    (Linear(in_features=2, out_features=2, bias=True), True)
    """
    while (name := _inside(model)) is not None:
        model = model.get_submodule(name)
    return model


def again(wrapper: nn.Module, inner: nn.Module) -> nn.Module:
    """Another model in wrappers like those of `wrapper`, in the state in which these are.

    `DistributedDataParallel` stays off: putting it on is a step that all processes take together.
    """
    name = _inside(wrapper)
    if name is None:
        return inner
    old = wrapper.get_submodule(name)
    inner = again(old, inner)
    if isinstance(wrapper, DistributedDataParallel):
        return inner
    if name == _COMPILED:
        compiled: Any = wrapper
        made: nn.Module = type(compiled)(inner, compiled.dynamo_ctx)
        return made
    return duplicate(wrapper, {id(old): inner})


def unprefixed(wrapper: nn.Module, state: Mapping[str, _T]) -> dict[str, _T]:
    """Values by the names of a wrapped model's tensors, by those of the bare model's."""
    found = dict(state)
    while (name := _inside(wrapper)) is not None:
        wrapper, prefix = wrapper.get_submodule(name), f"{name}."
        if any(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    return found


def _inside(model: nn.Module) -> str | None:
    for kind, name in _INSIDE.items():
        if isinstance(model, kind):
            return name
    if _COMPILED in model._modules and isinstance(model, torch._dynamo.OptimizedModule):
        return _COMPILED
    return None


def within_its_wrapper(parameter: str = "model") -> Callable[[_F], _F]:
    """For a function that makes a model of the one that it is given: wrappers are taken off it, and put on the result.

    The function may return a tuple that starts with the model.

    >>> @within_its_wrapper()
    ... def wider(model):
    ...     return nn.Linear(model.in_features, model.out_features + 1)
    >>> wider(nn.DataParallel(nn.Linear(2, 2)))
    DataParallel(
      (module): Linear(in_features=2, out_features=3, bias=True)
    )
    """

    def decorate(function: _F) -> _F:
        place = list(inspect.signature(function).parameters).index(parameter)

        @functools.wraps(function)
        def unwrapped(*args: Any, **kwargs: Any) -> Any:
            given = args[place] if place < len(args) else kwargs.get(parameter)
            if not isinstance(given, nn.Module) or bare(given) is given:
                return function(*args, **kwargs)
            if place < len(args):
                args = (*args[:place], bare(given), *args[place + 1 :])
            else:
                kwargs[parameter] = bare(given)
            made = function(*args, **kwargs)
            return (again(given, made[0]), *made[1:]) if isinstance(made, tuple) else again(given, made)

        return unwrapped  # type: ignore[return-value]

    return decorate
