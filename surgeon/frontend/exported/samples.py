"""The example inputs of an exported program: a pickle, which is interpreted here, not unpickled.

A pickle is a list of instructions. Only those that put tensors, numbers and strings into tuples, lists and dicts are
followed: names of functions are looked up in a fixed table, and nothing is imported.
"""

from __future__ import annotations

import itertools
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import torch
from torch import Tensor

from surgeon.frontend.exported.members import Members, members
from surgeon.frontend.exported.tensors import extent, flat
from surgeon.support import strict_json
from surgeon.support.opening import Unfit

_LIMIT: Final = 1_000_000
_INSTRUCTIONS: Final = 100_000
_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch ByteStorage": torch.uint8,
    "torch CharStorage": torch.int8,
    "torch ShortStorage": torch.int16,
    "torch IntStorage": torch.int32,
    "torch LongStorage": torch.int64,
    "torch BoolStorage": torch.bool,
    "torch ComplexFloatStorage": torch.complex64,
    "torch ComplexDoubleStorage": torch.complex128,
}
_CONSTANTS: Final[Mapping[str, Any]] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: Final[Mapping[str, type]] = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_LITERALS: Final = frozenset(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"))
_HOLDERS: Final = (tuple, list, dict)
_MEMO: Final = frozenset(("BINPUT", "LONG_BINPUT"))
_RECALL: Final = frozenset(("BINGET", "LONG_BINGET"))


@dataclass(frozen=True)
class _Name:
    """A function or class that the pickle names."""

    text: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    count: int


class _Mark:
    """The start of a tuple, list or dict on the stack."""


def read_samples(content: bytes) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The example inputs, as `(args, kwargs)`, from the bytes that `torch.save` wrote; None if there are none.

    Raises:
        Unfit: they are not tensors, numbers and strings in tuples, lists and dicts.
    """
    if not content:
        return None
    with members(BytesIO(content), len(content)) as inner:
        if "byteorder" in inner.entries and inner.read("byteorder", 10) != b"little":
            raise Unfit("its numbers are not little-endian")
        found = _Machine(inner).run(inner.read("data.pkl", _LIMIT))
    _check_size(found)
    match found:
        case (tuple(args), dict(kwargs)) if type(found) is tuple and all(isinstance(name, str) for name in kwargs):
            return args, kwargs
    raise Unfit("they are not a pair of a tuple and a dict")


def _check_size(found: Any) -> None:
    """Limit the number of values: lists that hold one another repeatedly can be exponentially large."""
    level, count = [found], 0
    for depth in itertools.count():
        count += len(level)
        if not level:
            return
        if count > _INSTRUCTIONS or depth > strict_json.DEPTH:
            raise Unfit(f"they hold more than {_INSTRUCTIONS:,} values, or one that holds itself")
        holders = (each.values() if isinstance(each, dict) else each for each in level if type(each) in _HOLDERS)
        level = list(itertools.islice(itertools.chain.from_iterable(holders), _INSTRUCTIONS + 1))


class _Machine:
    """Follows the few instructions of a pickle that are allowed, and refuses the others."""

    def __init__(self, inner: Members) -> None:
        self._inner = inner
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._storages: dict[_Storage, Tensor] = {}
        self._calls: Mapping[str, Callable[..., Any]] = {
            "torch._utils _rebuild_tensor_v2": self._tensor,
            "torch._tensor _rebuild_from_type_v2": self._typed,
            "collections OrderedDict": self._ordered,
        }

    def run(self, code: bytes) -> Any:
        try:
            for count, (instruction, argument, _) in enumerate(pickletools.genops(code)):
                if count > _INSTRUCTIONS:
                    raise Unfit(f"they take more than {_INSTRUCTIONS:,} instructions")
                if instruction.name == "STOP":
                    (found,) = self._stack
                    return found
                self._step(instruction.name, argument)
        # such as a stack that is too short, an unhashable key, or a truncated argument
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            if isinstance(error, Unfit):
                raise
            raise Unfit(f"the instructions are broken: {error}") from error
        raise Unfit("the instructions are cut short")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO":
                pass
            case "MARK":
                stack.append(_Mark)
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case _ if name in _LITERALS:
                stack.append(argument)
            case _ if name in _MEMO:
                self._memo[argument] = stack[-1]
            case _ if name in _RECALL:
                stack.append(self._memo[argument])
            case _ if name in _EMPTY:
                stack.append(_EMPTY[name]())
            case "TUPLE":
                stack.append(tuple(self._marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._take(int(name[-1]))))
            case "APPEND" | "APPENDS":
                items = self._take(1) if name == "APPEND" else self._marked()
                self._target(list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._take(2) if name == "SETITEM" else self._marked()
                self._target(dict).update(zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                stack.append(_Name(argument))
            case "BINPERSID":
                stack.append(self._storage(*self._take(1)))
            case "REDUCE":
                function, arguments = self._take(2)
                stack.append(self._call(function, arguments))
            case _:
                raise Unfit(f"they use the instruction {name}, which tensors don't need")

    def _take(self, count: int) -> list[Any]:
        taken = self._stack[-count:]
        if len(taken) != count or any(each is _Mark for each in taken):
            raise Unfit("the instructions are broken")
        del self._stack[-count:]
        return taken

    def _marked(self) -> list[Any]:
        place = max(index for index, each in enumerate(self._stack) if each is _Mark)
        taken = self._stack[place + 1 :]
        del self._stack[place:]
        return taken

    def _target(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise Unfit("the instructions are broken")
        return self._stack[-1]

    def _call(self, function: Any, arguments: Any) -> Any:
        name = function.text if isinstance(function, _Name) else type(function).__name__
        if name not in self._calls or type(arguments) is not tuple:
            raise Unfit(f"they hold a {name.replace(' ', '.')[:120]!a}; only tensors, numbers and strings are accepted")
        return self._calls[name](*arguments)

    def _storage(self, value: Any) -> _Storage:
        match value:
            case ("storage", _Name(text=kind), str(key), str(), int(count)) if kind in _DTYPES and key.isdigit():
                return _Storage(key, _DTYPES[kind], count)
        raise Unfit(f"they hold a tensor of an unsupported kind: {str(value)[:120]!a}")

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, *_rest: Any
    ) -> Tensor:
        if not isinstance(storage, _Storage):
            raise Unfit("a tensor has no values")
        if storage not in self._storages:
            values = flat(self._inner.read(f"data/{storage.key}"), storage.dtype)
            if values.numel() != storage.count:
                raise Unfit(f"a tensor claims {storage.count} values, and {values.numel()} are there")
            self._storages[storage] = values
        values = self._storages[storage]
        extent(shape, stride, offset, values.numel())
        return values.as_strided(shape, stride, offset)

    def _typed(self, function: Any, kind: Any, arguments: Any, _state: Any) -> Any:
        if kind not in (_Name("torch Tensor"), _Name("torch.nn.parameter Parameter")):
            raise Unfit("they hold a tensor of a subclass; only plain tensors are accepted")
        return self._call(function, arguments)

    def _ordered(self, *arguments: Any) -> dict[Any, Any]:
        if arguments:
            raise Unfit("the instructions are broken")
        return {}
