"""Which tensors a user asks to leave alone."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import Tensor, nn

from surgeon.errors import InvalidArgument

Ignored = str | nn.Module | Tensor


def ignoring(model: nn.Module, ignore: Ignored | Iterable[Ignored]) -> Callable[[str], bool]:
    """Says of a tensor's name whether it is to be left alone.

    `ignore` holds modules of the model, parameters of it, or names of either, in which `*` stands for anything.

    Raises:
        InvalidArgument: something named is not in the model.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    >>> left_alone = ignoring(model, ["1", model[0].bias])
    >>> [name for name, _ in model.named_parameters() if left_alone(name)]
    ['0.bias', '1.weight', '1.bias']
    """
    single = isinstance(ignore, str | nn.Module | Tensor) or not isinstance(ignore, Iterable)
    entries: list[Ignored] = [ignore] if single else list(ignore)  # type: ignore[list-item, arg-type]
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    left: set[str] = set()
    for entry in entries:
        left |= _named(entry, modules, tensors)
    return left.__contains__


def _named(entry: Ignored, modules: dict[str, nn.Module], tensors: dict[str, Tensor]) -> set[str]:
    match entry:
        case str():
            prefixes = {name for name in modules if name == entry or fnmatchcase(name, entry)}
            exact = {name for name in tensors if name == entry or fnmatchcase(name, entry)}
        case nn.Module():
            prefixes, exact = {name for name, module in modules.items() if module is entry}, set()
        case Tensor():
            prefixes, exact = set(), {name for name, tensor in tensors.items() if tensor is entry}
        case _:
            kind = type(entry).__name__
            raise InvalidArgument(f"ignore holds a {kind}; give module names, globs, modules or parameters")
    found = exact | {name for name in tensors if any(name.startswith(f"{prefix}.") for prefix in prefixes)}
    if not found and not prefixes:
        close = difflib.get_close_matches(str(entry), [*modules, *tensors]) if isinstance(entry, str) else []
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        name = repr(entry) if isinstance(entry, str) else f"a {type(entry).__name__} that"
        raise InvalidArgument(f"ignore: {name} is not a part of the model{hint}")
    return found
