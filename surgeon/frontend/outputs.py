"""What a trace sees of a model's outputs: the tensors in objects of any class, and no caches of keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

#: Kinds of values in which no output is looked for.
_PLAIN = (
    bool, int, float, complex, str, bytes, type(None), type, Enum, FunctionType, MethodType, ModuleType, nn.Module,
    torch.SymInt, torch.SymFloat, torch.SymBool,
)


@contextmanager
def with_open_outputs(model: nn.Module) -> Iterator[None]:
    """With what `model`, a copy of the user's, returns made of tensors that torch.export and pytrees find.

    Caches are switched off, by the `use_cache` of the configurations that Hugging Face's models hold: how generation
    remembers keys and values is none of the model's results, and as outputs they would have to keep their sizes.
    """
    switched = _caching(model)
    for config in switched:
        config["use_cache"] = False
    handle = model.register_forward_hook(_note)
    validating = Distribution._validate_args
    Distribution.set_default_validate_args(False)  # looks at values, of which a trace has none
    try:
        yield
    finally:
        handle.remove()
        Distribution.set_default_validate_args(validating)
        for config in switched:
            config["use_cache"] = True


def _caching(model: nn.Module) -> list[dict[str, Any]]:
    """The attributes of each configuration in the model that switches a cache on."""
    found: dict[int, dict[str, Any]] = {}
    for module in model.modules():
        config = vars(module).get("config")
        held = config if isinstance(config, dict) else getattr(config, "__dict__", None)
        if isinstance(held, dict) and held.get("use_cache") is True:
            found[id(held)] = held
    return list(found.values())


def _note(module: nn.Module, inputs: Any, outputs: Any) -> None:
    open_up(outputs)


def open_up(value: Any) -> None:
    """Let torch's pytrees see the tensors in a value: classes of objects that hold some are registered with torch.

    This is what `torch.export.register_dataclass` does for dataclasses.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Scores:
    ...     logits: Tensor
    ...     kind: str
    >>> scores = Scores(torch.zeros(2), "raw")
    >>> open_up([scores])
    >>> pytree.tree_leaves([scores]), pytree.tree_map(torch.neg, scores).kind
    ([tensor([0., 0.])], 'raw')
    """
    todo = [value]
    while todo:
        for leaf in pytree.tree_leaves(todo.pop()):
            if type(leaf) not in pytree.SUPPORTED_NODES and _holds(leaf, Tensor) and not isinstance(leaf, Tensor):
                pytree.register_pytree_node(type(leaf), _flatten, _unflatten, flatten_with_keys_fn=_flatten_with_keys)
                fx_pytree.register_pytree_flatten_spec(type(leaf), lambda value, spec: _flatten(value)[0])
                todo.append(leaf)


def _holds(value: Any, kinds: Any, above: tuple[int, ...] = ()) -> bool:
    """Whether there is a value of these kinds in another; not in one that holds itself, which is no tree."""
    if isinstance(value, kinds):
        return not isinstance(value, bool)
    if isinstance(value, _PLAIN) or id(value) in above:
        return False
    return any(_holds(part, kinds, (*above, id(value))) for part in _parts(value).values())


def _parts(value: Any) -> dict[Any, Any]:
    """What an object holds: as a container, by `(key,)`, and in attributes, by their names."""
    parts: dict[Any, Any] = {}
    if isinstance(value, dict):
        parts |= {(key,): each for key, each in value.items()}
    elif isinstance(value, list | tuple):
        parts |= {(index,): each for index, each in enumerate(value)}
    slots = [getattr(base, "__slots__", ()) for base in type(value).__mro__]
    names = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
    parts |= {name: getattr(value, name) for name in names if not name.startswith("__") and hasattr(value, name)}
    return parts | getattr(value, "__dict__", {})


def _flatten(value: Any) -> tuple[list[Any], Any]:
    """The parts that hold tensors or sizes, and how to make the object of them."""
    parts = _parts(value)
    inside = [name for name, part in parts.items() if _holds(part, Tensor) or _is_size(part)]
    rest = {name: part for name, part in parts.items() if name not in inside}
    made = [tuple(parts[name]) if isinstance(parts[name], torch.Size) else parts[name] for name in inside]
    sizes = [name for name in inside if isinstance(parts[name], torch.Size)]
    return made, (type(value), list(parts), inside, rest, sizes)


def _flatten_with_keys(value: Any) -> tuple[list[Any], Any]:
    made, context = _flatten(value)
    names = (name if isinstance(name, str) else name[0] for name in context[2])
    return [(pytree.MappingKey(name), part) for name, part in zip(names, made, strict=True)], context


def _is_size(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_size, value))
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)


def _unflatten(made: Iterable[Any], context: Any) -> Any:
    kind, order, inside, rest, sizes = context
    found = {**dict(zip(inside, made, strict=True)), **rest}
    for name in sizes:
        found[name] = torch.Size(found[name])
    items = {name[0]: found[name] for name in order if isinstance(name, tuple)}
    value = kind.__new__(kind, tuple(items.values())) if issubclass(kind, tuple) else kind.__new__(kind)
    if isinstance(value, dict):
        dict.update(value, items)
    elif isinstance(value, list):
        list.extend(value, items.values())
    for name in order:
        if not isinstance(name, tuple):
            object.__setattr__(value, name, found[name])
    return value
