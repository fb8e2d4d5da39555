"""Configurations that a model was made from, such as Hugging Face's: which of their fields tell which shapes.

A configuration is an object that a module holds, from which its class can be built. What its fields mean is found by
building: on the meta device, where it costs little.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Seconds after which no more values of fields are tried.
MOST_SECONDS = 10.0
#: Values that are tried for a field that is None: sizes of tensors, the largest first.
MOST_OPEN = 8

# The way to a field: attributes and keys.
Path = tuple[Any, ...]
Shapes = dict[str, tuple[int, ...]]


def held(model: nn.Module) -> list[tuple[str, str]]:
    """The outermost modules that hold an object which may be a configuration, and the names that they have for it.

    It has the name of the first argument of the module's class.
    """
    found: list[tuple[str, str]] = []
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_") or not _may_configure(value) or id(value) in seen:
                continue
            if name != _first_argument(type(module)):
                continue
            seen.update(id(each) for each in objects(value))
            if not any(path.startswith(f"{outer}.") or not outer for outer, _ in found if outer != path):
                found.append((path, name))
    return found


def _first_argument(kind: type) -> str:
    try:
        return next(iter(inspect.signature(kind).parameters), "")
    except (TypeError, ValueError):  # it has no signature
        return ""


def _may_configure(value: Any) -> bool:
    plain = not isinstance(value, nn.Module | Tensor | type) and not callable(value)
    return plain and isinstance(getattr(value, "__dict__", None), dict) and any(
        isinstance(each, int) and not isinstance(each, bool) for each in vars(value).values()
    )


def objects(value: Any, depth: int = 0) -> Iterator[Any]:
    """A configuration, and those inside of it."""
    yield value
    for each in vars(value).values() if depth < 3 else ():
        if isinstance(getattr(each, "__dict__", None), dict) and not isinstance(each, type | nn.Module):
            yield from objects(each, depth + 1)


def shapes_of(module: nn.Module) -> Shapes:
    """The shapes of all that a module saves, by name."""
    return {name: tuple(value.shape) for name, value in module.state_dict(keep_vars=True).items()
            if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Field:
    """A number in a configuration, and what it may become."""

    path: Path
    value: Any
    candidates: tuple[Any, ...]


class Configured:
    """A module and the configuration that it was built from."""

    def __init__(self, module: nn.Module, config: Any) -> None:
        self._module, self._config = module, config
        self._start = time.thread_time()
        self._built: dict[tuple[Any, ...], Shapes | None] = {}
        self.base = self.shapes({}) or {}
        self.known = bool(self.base) and self.base == shapes_of(module)

    def fitting(self, target: Shapes, pairs: Mapping[int, set[int]]) -> Iterator[tuple[dict[Path, Any], list[Field]]]:
        """Values of fields from which a module of the `target` shapes is built, and fields that tell no shape.

        `pairs` gives for sizes what they may become. It ends early when the time is up, see `spent`.
        """
        fields = [Field(path, value, _candidates(value, pairs)) for path, value in _fields(self._config)]
        fields = [field for field in fields if field.candidates]
        telling, silent = [], []
        changed = _unlike(self.base, target)
        for field in fields:
            if field.value is None:
                moves = set().union(*(self._moved(field.path, value) or () for value in field.candidates))
                telling += [field] if moves else []
                changed |= moves  # it can keep a size that follows from another one
        for field in fields:
            if self.spent:
                return
            moved = self._moved(field.path, field.candidates[0])
            if field.value is None:
                continue
            if moved is None or (moved and moved <= changed):  # what it makes smaller is to get smaller
                telling.append(field)
            elif not moved:
                silent.append(field)
        choices = [(*f.candidates, f.value) if f.value is not None else (None, *f.candidates) for f in telling]
        for chosen in itertools.product(*choices):
            values = {f.path: value for f, value in zip(telling, chosen, strict=True) if value is not f.value}
            if self.spent:
                return
            if self.shapes(values) == target:
                yield values, silent

    def _moved(self, path: Path, value: Any) -> set[tuple[str, int]] | None:
        """The tensors and axes that a value of a field makes another size; None where it builds no module."""
        alone = self.shapes({path: value})
        return _unlike(self.base, alone) if alone is not None else None

    @property
    def lists(self) -> bool:
        """Whether numbers of the configuration stand in lists, as those of each layer may."""
        return any(isinstance(path[-1], int) for path, _ in _fields(self._config))

    @property
    def spent(self) -> bool:
        return time.thread_time() - self._start > MOST_SECONDS

    def shapes(self, values: Mapping[Path, Any]) -> Shapes | None:
        """The shapes of a module that is built from the configuration with other values; None where none can be."""
        key = tuple(sorted(values.items(), key=str))
        if key not in self._built:
            try:
                with torch.device("meta"):
                    self._built[key] = shapes_of(self.build(values))
            except Exception:  # noqa: BLE001  (the user's class may raise anything)
                self._built[key] = None
        return self._built[key]

    def build(self, values: Mapping[Path, Any]) -> nn.Module:
        """A module from the configuration with other values; raises what its class raises."""
        config = copy.deepcopy(self._config)
        for path, value in values.items():
            write(config, path, value)
        made = type(self._module)(_again(config))
        if not isinstance(made, nn.Module):
            raise TypeError("not a module")
        return made


def _unlike(a: Shapes, b: Shapes) -> set[tuple[str, int]]:
    """The tensors and axes in which shapes differ; a tensor that one of them lacks as axis -1."""
    found = {(name, -1) for name in a.keys() ^ b.keys()}
    for name in a.keys() & b.keys():
        if len(a[name]) != len(b[name]):
            found.add((name, -1))
        else:
            found |= {(name, axis) for axis, (x, y) in enumerate(zip(a[name], b[name], strict=True)) if x != y}
    return found


def _candidates(value: Any, pairs: Mapping[int, set[int]]) -> tuple[Any, ...]:
    if value is None:  # a size that follows from others as long as it is not given
        return tuple(sorted({new for news in pairs.values() for new in news}, reverse=True)[:MOST_OPEN])
    if isinstance(value, float):  # the share of a size that another one is
        return tuple(sorted({
            after / width for old, news in pairs.items() for after in news
            for size, widths in pairs.items() for width in widths
            if int(size * value) == old and width and after / width != value
        })[:4])
    return tuple(sorted(pairs.get(value, set()) - {value}))


def _fields(config: Any, depth: int = 0) -> Iterator[tuple[Path, Any]]:
    """The numbers in a configuration, and in those inside of it, and what it leaves open."""
    items: Iterable[tuple[Any, Any]]
    items = enumerate(config) if isinstance(config, list | tuple) else _own(config).items()
    for key, value in items:
        if (isinstance(key, str) and key.startswith("_")) or isinstance(value, bool):
            continue
        if value is None or (isinstance(value, int | float) and value > 1):
            yield (key,), value
        elif depth < 3 and (isinstance(value, list | tuple) or _own(value)):
            yield from (((key, *path), each) for path, each in _fields(value, depth + 1))


def _own(value: Any) -> dict[str, Any]:
    held = getattr(value, "__dict__", None)
    return held if isinstance(held, dict) and not isinstance(value, type | nn.Module | Tensor) else {}


def read(config: Any, path: Path) -> Any:
    """The value of a field; None where there is none."""
    for key in path:
        config = config[key] if isinstance(key, int) else getattr(config, key, None)
    return config


def write(config: Any, path: Path, value: Any) -> None:
    """Put a value in a field."""
    *way, last = path
    holder = read(config, tuple(way))
    if isinstance(holder, tuple):
        write(config, tuple(way), (*holder[:last], value, *holder[last + 1 :]))
    elif isinstance(last, int):
        holder[last] = value
    else:
        vars(holder)[last] = value


def _again(config: Any) -> Any:
    """The configuration as it comes back from its file, where its class says how: Hugging Face's do."""
    to_dict, from_dict = getattr(config, "to_dict", None), getattr(type(config), "from_dict", None)
    return from_dict(to_dict()) if callable(to_dict) and callable(from_dict) else config
