"""Which tensors a user asks to leave alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import Tensor, nn

from surgeon.errors import InvalidArgument
from surgeon.frontend import parameters
from surgeon.support.arguments import meant, shown

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
    entries: tuple[Ignored, ...] = parameters.ignore("ignore", ignore)
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    left: set[str] = set()
    for entry in entries:
        left |= _named(entry, modules, tensors)
    return left.__contains__


def named(model: nn.Module, ignore: Ignored | Iterable[Ignored]) -> list[str]:
    """What `ignore` holds, each by its name in the model.

    Raises:
        InvalidArgument: something named is not in the model.
    """
    ignoring(model, ignore)
    parts = (*model.named_modules(), *model.named_parameters(), *model.named_buffers())
    names = {id(part): name for name, part in parts}
    entries = parameters.ignore("ignore", ignore)
    return [each if isinstance(each, str) else names[id(each)] for each in entries]


def _named(entry: Ignored, modules: dict[str, nn.Module], tensors: dict[str, Tensor]) -> set[str]:
    match entry:
        case str():
            prefixes = {name for name in modules if name == entry or fnmatchcase(name, entry)}
            exact = {name for name in tensors if name == entry or fnmatchcase(name, entry)}
        case nn.Module():
            prefixes, exact = {name for name, module in modules.items() if module is entry}, set()
        case Tensor():
            prefixes, exact = set(), {name for name, tensor in tensors.items() if tensor is entry}
    found = exact | {name for name in tensors if any(name.startswith(f"{prefix}.") for prefix in prefixes)}
    if not found and not prefixes:
        name = shown(entry) if isinstance(entry, str) else f"a {type(entry).__name__} that"
        raise InvalidArgument(f"ignore: {name} is not a part of the model{meant(entry, [*modules, *tensors])}")
    return found
