"""The module that a file becomes: its operators are modules, its initializers parameters under their own names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.errors import InvalidInputs, SurgeonError, first_line
from surgeon.onnx_import import fallback
from surgeon.onnx_import.source import Source
from surgeon.onnx_import.table import NUMERIC, NotCovered, row
from surgeon.onnx_import.values import Numbers, as_numbers, as_tensor, of_precision

#: How an integer that an operator is given is called on its module, where surgery rewrites it.
GIVEN = "given_"
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
        self, kind: str, domain: str, opset: int, attributes: Mapping[str, Any], outputs: int, place: str, index: int,
    ) -> None:
        super().__init__()
        self.kind, self.domain, self.place = kind, domain, place
        self._opset = (opset,)
        self._attributes = dict(attributes)
        self._outputs = [outputs]
        #: The node's place in the file's graph; -1 for one that is not there itself.
        self._index = [index]
        self._constants: dict[int, Numbers | None] = {}
        self._kinds: dict[int, torch.dtype] = {}

    @property
    def opset(self) -> int:
        return self._opset[0]

    @property
    def index(self) -> int:
        return self._index[0]

    @property
    def outputs(self) -> int:
        """How many outputs the node has."""
        return self._outputs[0]

    @property
    def attributes(self) -> Mapping[str, Any]:
        return self._attributes

    def get(self, name: str, default: Any) -> Any:
        return self._attributes.get(name, default)

    def keep(self, position: int, value: Numbers) -> None:
        """Remember an input that is known. Integers stand in an attribute of their own, so that surgery finds them."""
        if value.dtype is torch.int64 and value.array.ndim == 1 and value.plain:
            setattr(self, f"{GIVEN}{position}", tuple(int(each) for each in value.items))
            self._constants[position] = None
        else:
            self._constants[position] = value

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
        told = [self.kind, *(f"{name}={value}" for name, value in self._attributes.items() if shown_plainly(value))]
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
            made = run(scope, *(None if name is None else scope[name] for name in step.inputs))
            scope.values.update(zip(step.outputs, made, strict=False))
            for name in step.done:
                scope.values.pop(name, None)
        return [scope[name] for name in self._results]


@dataclass(frozen=True)
class Port:
    """An input or output of a file: its name there, that of forward's parameter, its type and its sizes.

    A size is a number, a name, or None where the file tells nothing; `sizes` is None where even the rank is open.
    """

    name: str
    parameter: str
    dtype: torch.dtype
    sizes: tuple[int | str | None, ...] | None = field(default=None)


class Holder(nn.Module):
    """What holds the tensors whose names begin alike."""


class OnnxModel(nn.Module):
    """A module that computes what an ONNX file does, in eval mode unless told otherwise.

    It takes the file's inputs in their order, or by name, and returns its output, or a tuple of its outputs.
    `inputs` and `outputs` say what the file says of them; `initializers` maps the name of a parameter or buffer to that
    of the file's initializer or constant; `fallbacks` are the operators that onnxruntime runs, with the reason;
    `source` holds the file itself.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def __init__(
        self, body: Body, inputs: Sequence[Port], outputs: Sequence[Port], fixed: Mapping[str, Numbers], source: Source
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.initializers: dict[str, str] = {}
        self.fallbacks: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self._fixed = dict(fixed)
        self._precision: torch.dtype | None = None
        self._weights: dict[str, tuple[str, ...]] = {}
        self.operators = body
        self.source = source

    def put(self, name: str, tensor: Tensor, *, buffer: bool) -> str:
        """Add a parameter or buffer under a name of the file, or one like it; returns the name that it has here."""
        holder: nn.Module = self
        *parts, last = path_of(name)
        found: list[str] = []
        for part in parts:
            found.append(_free(holder, part, Holder))
            if found[-1] not in holder._modules:
                holder.add_module(found[-1], Holder())
            holder = holder.get_submodule(found[-1])
        found.append(_free(holder, last, None))
        if buffer:
            holder.register_buffer(found[-1], tensor)
        else:
            holder.register_parameter(found[-1], nn.Parameter(tensor))
            self._precision = self._precision or tensor.dtype
        self._weights[name] = tuple(found)
        self.initializers[".".join(found)] = name
        return ".".join(found)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        named = dict(zip((port.parameter for port in self.inputs), args, strict=False))
        if len(args) > len(self.inputs):
            raise InvalidInputs(f"{len(args)} inputs were given, the file takes {len(self.inputs)}")
        names = {port.name: port.parameter for port in self.inputs}
        for name, value in kwargs.items():
            parameter = names.get(name, name)
            if parameter in named or parameter not in names.values():
                raise InvalidInputs(f"the file has no input {name!r}, or it is given twice; its inputs are "
                                    f"{', '.join(map(repr, names))}")
            named[parameter] = value
        return self._run(named)

    def _run(self, named: Mapping[str, Any]) -> Any:
        values: dict[str, Any] = {}
        for port in self.inputs:
            if port.name in self._fixed:
                values[port.name] = self._fixed[port.name]
                if named.get(port.parameter) is not None:
                    _require_fixed(port, named[port.parameter], self._fixed[port.name])
                continue
            if port.parameter not in named:
                raise InvalidInputs(f"input {port.name!r} is missing; the file takes {listed_ports(self.inputs)}")
            values[port.name] = fitting(port, named[port.parameter])
        device = next((value.device for value in values.values() if isinstance(value, Tensor)), None)
        now: torch.dtype | None = None
        for name, path in self._weights.items():
            holder: Any = self
            for part in path:
                holder = getattr(holder, part)
            values[name] = holder
            now = now or (holder.dtype if holder.is_floating_point() else None)
        with of_precision(self._precision, now):
            found = [as_tensor(value, device) for value in self.operators(Scope(values, device))]
        return found[0] if len(found) == 1 else tuple(found)

    @property
    def fixed(self) -> Mapping[str, Numbers]:
        """The values of inputs that are the same in every run."""
        return self._fixed

    @property
    def compared(self) -> dict[str, int]:
        """Integers that inputs are compared with: values that mean something to the file."""
        found: dict[str, int] = {}
        names = {port.name for port in self.inputs}
        for step in self.operators.steps:
            operator = self.operators.get_submodule(step.child)
            assert isinstance(operator, Operator)
            if operator.kind == "Equal" and step.inputs[0] in names and (value := operator.kept(1)) is not None:
                found.setdefault(step.inputs[0] or "", int(value.items[0]))
        return found

    def feeds(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        """Inputs by the file's names, such as those of a .npz file, as keyword inputs of this module."""
        return {port.parameter: torch.as_tensor(arrays[port.name]) for port in self.inputs if port.name in arrays}

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Inputs on which the module runs, by the names of forward's parameters; free axes get a usual size.

        Raises:
            InvalidInputs: none of the usual sizes fits.
        """
        from surgeon.onnx_import.examples import examples

        return examples(self, self.sizes)


def path_of(name: str) -> list[str]:
    """The parts of a tensor's name that modules are called by: what torch allows, and nothing that code could be.

    >>> path_of("a.b/c:0"), path_of('x"]..y'), path_of("")
    (['a', 'b/c:0'], ['x__', 'y'], ['_'])
    """
    parts = ["".join(c if c.isalnum() or c in "_/:-" else "_" for c in part) for part in name.split(".")]
    return [part for part in parts if part] or ["_"]


def _free(holder: nn.Module, name: str, kind: type[nn.Module] | None) -> str:
    """A name that means nothing else to a module, or to the graph that a smaller one may be."""
    while (hasattr(holder, name) or hasattr(fx.GraphModule, name) or name == "meta") and not (
        kind is not None and isinstance(holder._modules.get(name), kind)
    ):
        name += "_"
    return name


def listed_ports(ports: Sequence[Port]) -> str:
    return ", ".join(f"{port.name} {shape_of(port)}" for port in ports)


def shape_of(port: Port) -> str:
    if port.sizes is None:
        return "of any shape"
    return "(" + ", ".join("?" if size is None else str(size) for size in port.sizes) + ")"


def fitting(port: Port, value: Any) -> Tensor:
    """An input, which must be what the file says; a Python number is a tensor without axes.

    Floating-point tensors of another precision are taken: a module may run in float64, say.

    Raises:
        InvalidInputs: it is something else.
    """
    if isinstance(value, int | float | bool):
        value = torch.tensor(value, dtype=port.dtype)
    if not isinstance(value, Tensor):
        raise InvalidInputs(f"input {port.name!r} is a {type(value).__name__}; give a tensor")
    if value.dtype is not port.dtype and not (value.is_floating_point() and port.dtype.is_floating_point):
        raise InvalidInputs(
            f"input {port.name!r} is of {str(value.dtype).removeprefix('torch.')}, the file takes "
            f"{str(port.dtype).removeprefix('torch.')}; convert it with .to()"
        )
    if port.sizes is not None:
        same = len(port.sizes) == value.dim() and all(
            not isinstance(size, int) or size == given for size, given in zip(port.sizes, value.shape, strict=True)
        )
        if not same:
            raise InvalidInputs(
                f"input {port.name!r} is of shape {tuple(value.shape)}, the file takes {shape_of(port)}"
            )
    return value


def _require_fixed(port: Port, value: Any, fixed: Numbers) -> None:
    if torch.compiler.is_compiling():
        return
    given = torch.as_tensor(value)
    if given.shape != fixed.array.shape or given.reshape(-1).tolist() != fixed.items:
        raise InvalidInputs(f"input {port.name!r} was fixed at {fixed.array.tolist()} when the file was loaded")


def class_for(inputs: Sequence[Port], fixed: Mapping[str, Numbers]) -> type[OnnxModel]:
    """The class of a file's module, whose forward has a parameter for each of the file's inputs."""

    def forward(self: OnnxModel, *args: Any, **kwargs: Any) -> Any:
        return OnnxModel.forward(self, *args, **kwargs)

    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    own = [inspect.Parameter("self", either)]
    own += [
        inspect.Parameter(port.parameter, either, default=None if _fixed_after(inputs[place:], fixed) else own[0].empty)
        for place, port in enumerate(inputs)
    ]
    forward.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    return type("OnnxModel", (OnnxModel,), {"forward": forward, "__doc__": OnnxModel.__doc__, "__module__": __name__})


def _fixed_after(rest: Sequence[Port], fixed: Mapping[str, Numbers]) -> bool:
    """Whether this input and all after it may be left out."""
    return all(port.name in fixed for port in rest)
