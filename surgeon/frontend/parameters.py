"""The parameters of public functions by name, and what each may be; `public` holds a function against them.

A parameter of the same name means the same everywhere; where one function takes something else, it says so to
`public`. Values that only a model, or other arguments, can tell to be wrong are refused where they are read.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from surgeon.errors import InvalidArgument, InvalidInputs
from surgeon.frontend.copies import duplicate
from surgeon.frontend.data_files import from_disk
from surgeon.frontend.pictures import Pictures
from surgeon.frontend.trace import MODULE, normalize_inputs
from surgeon.frontend.wrappers import bare
from surgeon.support.arguments import (
    AT_LEAST_ZERO,
    COMMON,
    SHARE,
    Check,
    checked,
    choice,
    flag,
    function,
    instance,
    is_integer,
    listed,
    mapping,
    refusal,
    shown,
    text,
)

_T = TypeVar("_T", bound=Callable[..., Any])

#: What `data` may be instead of data: inputs that are synthesized from the model, and plain noise.
SYNTHETIC: Final = "synthetic"
NOISE: Final = "noise"
MADE: Final = (SYNTHETIC, NOISE)

TENSORS: Final = mapping("tensors by name, as state_dict() gives them", text, instance(Tensor, "a tensor"))


def ignore(name: str, value: Any) -> Any:
    """A tuple of what is left alone: names, globs, modules and parameters. An iterator is read here, once."""
    found = (value,) if isinstance(value, str | nn.Module | Tensor) else listed(value)
    for entry in (value,) if found is None else found:
        if not isinstance(entry, str | nn.Module | Tensor):
            kind = type(entry).__name__
            raise InvalidArgument(f"{name} holds a {kind}; give module names, globs, modules or parameters")
    return found


def module(name: str, value: Any) -> Any:
    """A module. Of one that was made under `torch.inference_mode` a copy, whose tensors can have gradients."""
    if not _inference(MODULE(name, value)):
        return value
    with torch.inference_mode(False):
        return duplicate(value)


def bare_module(name: str, value: Any) -> Any:
    """As `module`, without torch's wrappers around it."""
    return module(name, bare(MODULE(name, value)))


def module_in_place(name: str, value: Any) -> Any:
    """A module that is changed in place."""
    if _inference(MODULE(name, value)):
        raise InvalidArgument(
            f"{name} was made under torch.inference_mode, so that its tensors can't be changed; make it outside, or "
            "give a copy that is made outside"
        )
    return value


def bare_module_in_place(name: str, value: Any) -> Any:
    """As `module_in_place`, without torch's wrappers around it, which share its tensors."""
    return module_in_place(name, bare(MODULE(name, value)))


def _inference(model: nn.Module) -> bool:
    return any(not is_lazy(tensor) and tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))


def units(name: str, value: Any) -> dict[int, tuple[int, ...]]:
    """Units to keep, ascending, by the leaf of their group."""
    wanted = "a mapping from the leaves of groups to the units to keep, such as {group.leaf.id: [0, 2]}"
    if not isinstance(value, Mapping):
        raise refusal(name, value, wanted)
    found = {}
    for leaf, kept in value.items():
        each = listed(kept)
        if not is_integer(leaf) or each is None or not all(map(is_integer, each)):
            raise InvalidArgument(f"{name}: {shown(leaf)} stands for {shown(kept)}; give {wanted}")
        found[int(leaf)] = tuple(sorted(int(unit) for unit in each))
    return found


def data(name: str, value: Any) -> Any:
    """What yields batches of inputs, those of files too, or "synthetic" or "noise"."""
    match value:
        case type() | bytes() | bytearray() | memoryview() | io.IOBase() | None:
            fits = False
        case str() | os.PathLike():
            return value if value in MADE else from_disk(name, value)
        case Pictures():
            return value
        case Tensor() | np.ndarray():
            fits = tensor_of(value, name) is not None and value.ndim > 0
        case Iterable():
            fits = True
        case _:
            fits = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    if not fits:
        raise InvalidArgument(
            f"{name} is a {type(value).__name__}; give a tensor of samples, an iterable of batches such as a "
            f'DataLoader, the name of a file or folder of arrays, "{SYNTHETIC}" or "{NOISE}"'
        )
    return value


def tensor_of(value: Any, place: str) -> Tensor:
    """A tensor, or the tensor of a numpy array, without a copy where that can be.

    Raises:
        InvalidInputs: it is neither, or of a kind that the models surgeon takes don't read.
    """
    if isinstance(value, np.ndarray | np.generic):
        try:
            return torch.from_numpy(np.ascontiguousarray(value))
        except (TypeError, ValueError) as error:
            order = " of another byte order" if value.dtype.kind in "biufc" and not value.dtype.isnative else ""
            raise InvalidInputs(
                f"{place} is an array of {value.dtype}{order}, which torch does not have; give numbers of a type that "
                "it has, as array.astype(numpy.float32) does"
            ) from error
    if not isinstance(value, Tensor):
        raise InvalidInputs(f"{place} is a {type(value).__name__}; give a tensor or a numpy array")
    kind = "nested" if value.is_nested else "quantized" if value.is_quantized else str(value.layout)
    if kind != "torch.strided":
        raise InvalidInputs(f"{place} is a {kind.removeprefix('torch.')} tensor; pad or fill it up to a dense one")
    if value.is_meta:
        raise InvalidInputs(f"{place} is on the meta device and holds no values; give a tensor that does")
    return value


def loader(name: str, value: Any) -> Any:
    """What yields batches, anew for each epoch."""
    wrong = isinstance(value, type | str | bytes | io.IOBase | nn.Module)
    if wrong or not isinstance(value, Iterable):
        raise refusal(name, value, "an iterable of batches, such as a DataLoader or a list")
    return value


def functions(wanted: str, arguments: int) -> Check:
    """A tuple of functions, of one or several; an iterator is read here, once."""
    single = function(wanted, arguments)

    def check(name: str, value: Any) -> Any:
        found = (value,) if callable(value) else listed(value)
        for each in (value,) if found is None else found:
            if not callable(each):
                raise InvalidArgument(f"{name}: a {type(each).__name__} is none; give {wanted}")
            single(name, each)
        return found

    return check


def importance(name: str, value: Any) -> Any:
    """The name of a criterion, or a function of the groups, one group and a random generator."""
    if isinstance(value, str):
        return value  # which names there are depends on what else is given
    if not callable(value):
        raise InvalidArgument(f"{name} is a {type(value).__name__}; give a criterion's name or a function")
    return _CRITERION(name, value)


_CRITERION = function(
    "a function of the groups, a group and a random generator that gives a number for each unit", 3, (type, nn.Module)
)


def example_inputs(name: str, value: Any) -> Any:
    """A tensor, a tuple of positional inputs, or a dict of keyword inputs."""
    normalize_inputs(value)
    with torch.inference_mode(False):
        return pytree.tree_map_only(Tensor, lambda leaf: leaf.clone() if leaf.is_inference() else leaf, value)


#: What each parameter may be, by its name. One that is its own default is not looked at.
PARAMETERS: Final[Mapping[str, Check]] = {
    **COMMON,
    **dict.fromkeys(("model", "slim", "fresh_model"), bare_module),
    "teacher": module,
    "example_inputs": example_inputs,
    "target": SHARE,
    "ignore": ignore,
    "importance": importance,
    **dict.fromkeys(("data", "metric_data"), data),
    "form": choice("auto", "module", "graph"),
    "strength": AT_LEAST_ZERO,
    "threshold": AT_LEAST_ZERO,
    "ridge": AT_LEAST_ZERO,
    **dict.fromkeys(("compensate", "distill", "batch_norm", "return_report"), flag),
}


def public(**own: Check) -> Callable[[_T], _T]:
    """For a function that users call, or a class: arguments are checked, and what is made can be trained.

    Tensors that are made under `torch.inference_mode` never get gradients, so that it is switched off inside.
    """
    return checked({**PARAMETERS, **own}, _trainable)


def _trainable() -> AbstractContextManager[Any]:
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
