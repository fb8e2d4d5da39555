"""What runs: a node of the file is a module, and so is a graph of nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import InvalidInputs, SurgeonError, first_line
from surgeon.onnx_import import fallback
from surgeon.onnx_import.table import NUMERIC, NotCovered, row
from surgeon.onnx_import.values import Numbers, as_numbers, as_tensor

#: How an integer that an operator is given, or an attribute that counts channels, is called on its module, where
#: surgery rewrites it.
GIVEN, COUNT = "given_", "count_"
#: Attributes that count channels, or groups of them.
COUNTS = frozenset("group num_groups num_heads q_num_heads kv_num_heads qkv_hidden_sizes split".split())
#: What operators raise for inputs that don't fit them.
_UNFIT = (
    RuntimeError, ValueError, TypeError, IndexError, KeyError, ArithmeticError, AttributeError, MemoryError,
    NotImplementedError, NotCovered,
)


@dataclass
class Scope:
    """The values that are known while a graph runs, and the device that tensors are made on."""

    values: dict[str, Any]
    device: torch.device | None = None
    outer: Scope | None = None
    #: Whether modules are run without being called: one that fails while it is called confuses a trace.
    direct: bool = False

    def __getitem__(self, name: str) -> Any:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        raise KeyError(name)

    def inner(self, values: dict[str, Any], direct: bool) -> Scope:
        return Scope(values, self.device, self, direct)


class Operator(nn.Module):
    """A node of the file: what it is called with beside tensors, and the graphs inside of it."""

    def __init__(
        self, kind: str, domain: str, opset: int, attributes: Mapping[str, Any], outputs: int, place: str,
        rounds: bool = False,
    ) -> None:
        super().__init__()
        self.kind, self.domain, self.place = kind, domain, place
        #: Whether the integers that it makes are held as floating-point numbers.
        self.rounds = rounds
        self._opset = (opset,)
        self._attributes = dict(attributes)
        for name in COUNTS & self._attributes.keys():
            setattr(self, f"{COUNT}{name}", self._attributes.pop(name))
        self._outputs = [outputs]
        self._read_by: list[str] = []
        self._constants: dict[int, Numbers | None] = {}
        self._kinds: dict[int, torch.dtype] = {}

    @property
    def opset(self) -> int:
        return self._opset[0]

    @property
    def outputs(self) -> int:
        """How many outputs the node has."""
        return self._outputs[0]

    @property
    def attributes(self) -> Mapping[str, Any]:
        counts = {name: getattr(self, f"{COUNT}{name}") for name in COUNTS if hasattr(self, f"{COUNT}{name}")}
        return {**self._attributes, **counts}

    @property
    def read_by(self) -> list[str]:
        """The operators beside this one that call torch with numbers which it only hands on."""
        return self._read_by

    def get(self, name: str, default: Any) -> Any:
        return getattr(self, f"{COUNT}{name}", default) if name in COUNTS else self._attributes.get(name, default)

    def keep(self, position: int, value: Numbers) -> None:
        """Remember an input that is known. Integers stand in an attribute of their own, so that surgery finds them."""
        if value.dtype is torch.int64 and value.array.ndim == 1 and value.plain:
            setattr(self, f"{GIVEN}{position}", tuple(int(each) for each in value.items))
            self._constants[position] = None
        else:
            self._constants[position] = value

    @property
    def kept_places(self) -> list[int]:
        """The inputs that are known."""
        return list(self._constants)

    def kept(self, position: int) -> Numbers | None:
        if position not in self._constants:
            return None
        found = self._constants[position]
        return found if found is not None else Numbers.of(getattr(self, f"{GIVEN}{position}"), torch.int64)

    def forward(self, scope: Scope, *values: Any) -> list[Any]:
        found = [self.kept(place) if value is None else value for place, value in enumerate(values)]
        try:
            made = self._computed(scope, found)
        except SurgeonError:
            raise
        except _UNFIT as error:
            if torch.compiler.is_compiling():  # export reads these errors
                raise
            shapes = ", ".join(shown(value) for value in found)
            raise InvalidInputs(f"{self.place} can't run on {shapes}: {first_line(error)}") from error
        return made if isinstance(made, list) else [made]

    def _computed(self, scope: Scope, found: list[Any]) -> Any:
        known = row(self.domain, self.kind)
        if known is None:
            return fallback.run(self, scope.device, found)
        present = [value for value in found if value is not None]
        if present and not self.domain and self.kind in NUMERIC and all(isinstance(v, Numbers) for v in present):
            made = NUMERIC[self.kind](self, *found)
            if made is not NotImplemented:
                return made
        given: list[Any] = []
        for place, value in enumerate(found):
            if value is None or isinstance(value, list):
                given.append(value)
            elif place in known.numbers:
                given.append(as_numbers(value))
            else:
                given.append(value if known.mixed else as_tensor(value, scope.device))
        try:
            if known.scoped:
                return known.function(self, scope, *given)
            return known.function(self, *given)
        except NotCovered as reason:
            return fallback.run(self, scope.device, found, str(reason))
        except NotImplementedError:
            if self._modules:
                raise
            return fallback.run(self, scope.device, found, "torch has no such operator for this type")

    def extra_repr(self) -> str:
        told = [self.kind, *(f"{name}={value}" for name, value in self.attributes.items() if shown_plainly(value))]
        return ", ".join(told)


def shown(value: Any) -> str:
    """A value of an error message."""
    match value:
        case Tensor():
            return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        case Numbers():
            return str(value.array.tolist())[:80]
        case None:
            return "nothing"
    return f"a {type(value).__name__}"


def shown_plainly(value: Any) -> bool:
    return isinstance(value, int | float | str) or (isinstance(value, tuple) and len(value) <= 8)


@dataclass(frozen=True)
class Step:
    """One operator of a graph: the child that computes it, and the names of values; None for an input it keeps."""

    child: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    done: tuple[str, ...] = ()


class Body(nn.Module):
    """The operators of a graph, in the order in which they run."""

    def __init__(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self._inputs, self._results = list(inputs), list(outputs)
        self._steps: list[Step] = []
        self._known: dict[str, Numbers] = {}

    @property
    def steps(self) -> list[Step]:
        return self._steps

    @property
    def results(self) -> list[str]:
        return self._results

    @property
    def known(self) -> dict[str, Numbers]:
        """Values that are the same in every run."""
        return self._known

    def forward(self, scope: Scope, *values: Any) -> list[Any]:
        scope.values.update(zip(self._inputs, values, strict=True))
        scope.values.update(self._known)
        for step in self._steps:
            operator = self._modules[step.child]
            assert operator is not None
            run = operator.forward if scope.direct else operator
            try:
                given = [None if name is None else scope[name] for name in step.inputs]
            except KeyError as error:
                raise InvalidInputs(f"the value {error} is read, and its operator did not make it") from error
            made = run(scope, *given)
            scope.values.update(zip(step.outputs, made, strict=False))
            for name in step.done:
                scope.values.pop(name, None)
        try:
            return [scope[name] for name in self._results]
        except KeyError as error:
            raise InvalidInputs(f"the output {error} was not made, though an operator names it") from error
