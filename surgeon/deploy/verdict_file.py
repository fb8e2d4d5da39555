"""Reads the verdict that `bench --json` wrote, here or on a device."""

from __future__ import annotations

import dataclasses
import math
import os
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from surgeon.device.benchmark import Verdict
from surgeon.errors import BenchmarkError
from surgeon.support.arguments import COMMON, checked
from surgeon.support.opening import Unfit, read_bytes
from surgeon.support.strict_json import loads

_T = TypeVar("_T")


class _Misfit(ValueError):
    """A value is not what its place takes."""


@checked(COMMON)
def load_verdict(path: str | os.PathLike[str]) -> Verdict:
    """The verdict in a file that `surgeon bench --json`, `python kit.pyz bench --json` or `Verdict.to_json` wrote.

    Args:
        path: the file, JSON.

    Raises:
        InvalidArgument: `path` is not a path.
        BenchmarkError: the file is missing, or holds no verdict.

    >>> import surgeon, tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     net = surgeon.export(torch.nn.Linear(8, 8), f"{folder}/net.onnx", example_inputs=torch.randn(1, 8)).path
    ...     verdict = surgeon.benchmark(net, net, threads=1, runs=30)
    ...     with open(f"{folder}/verdict.json", "w") as file:
    ...         _ = file.write(verdict.to_json())
    ...     load_verdict(f"{folder}/verdict.json") == verdict
    True
    """
    name = os.fspath(path)
    try:
        return _made(Verdict, loads(read_bytes(path)), "")
    except (Unfit, _Misfit) as error:
        raise BenchmarkError(f"{name} is not a verdict: {error}; write it with `bench --json`") from error


def _made(kind: type[_T], value: Any, place: str) -> _T:
    """A dataclass of the entries of an object, each of the type that its field is declared with."""
    if not isinstance(value, dict):
        where = place.rstrip(".") or "the file"
        raise _Misfit(f"{where} is {type(value).__name__}, not an object")
    hints = get_type_hints(kind)
    fields = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(value.keys() - fields.keys()):
        raise _Misfit(f"{place}{unknown[0]!r} is no entry")
    needed = [
        name for name, each in fields.items()
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    ]
    if lacking := [name for name in needed if name not in value]:
        raise _Misfit(f"{place}{lacking[0]!r} is missing")
    return kind(**{name: _fitted(hints[name], each, f"{place}{name}") for name, each in value.items()})


def _fitted(kind: Any, value: Any, place: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _made(kind, value, f"{place}.")  # type: ignore[arg-type]
    origin, inside = get_origin(kind), get_args(kind)
    if origin is tuple:
        if isinstance(value, list) and (inside[1:] == (...,) or len(value) == len(inside)):
            kinds = inside[:1] * len(value) if inside[1:] == (...,) else inside
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_fitted(one, each, f"{place}[{at}]") for at, (one, each) in pairs)
    elif origin is Literal:
        if value in inside:
            return value
    elif origin in (Union, types.UnionType):
        if value is None and type(None) in inside:
            return None
        return _fitted(next(one for one in inside if one is not type(None)), value, place)
    elif kind is float:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    elif type(value) is kind:
        return value
    raise _Misfit(f"{place} is {value!r:.40}")
