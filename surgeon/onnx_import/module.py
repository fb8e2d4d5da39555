"""The module that a file becomes: its operators are modules, its initializers parameters under their own names."""

from __future__ import annotations

import inspect
import keyword
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from surgeon.errors import InvalidInputs
from surgeon.onnx_import.running import Body, Operator, Scope
from surgeon.onnx_import.source import Source
from surgeon.onnx_import.values import Numbers, as_tensor, of_precision

if TYPE_CHECKING:
    from surgeon.onnx_import.feeds import Feeds


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
    `source` holds the file itself. Where the file has one tensor, of one value, for several readers that each have a
    tensor of their own here, `apart` holds the names of the values that these are.
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
        self.apart: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self._fixed = dict(fixed)
        self._precision: torch.dtype | None = None
        self._weights: dict[str, tuple[str, ...]] = {}
        self.operators = body
        self.source = source

    def put(self, name: str, tensor: Tensor, *, buffer: bool, called: str = "", suffix: str = "") -> str:
        """Add a parameter or buffer under a name of the file, or one like it; returns the name that it has here.

        `called` is the name of the tensor in the file that the value `name` is made of, where that is another, and
        `suffix` tells one from others that are made of it.
        """
        holder: nn.Module = self
        *parts, last = path_of(called or name)
        found: list[str] = []
        for part in parts:
            found.append(_free(holder, part, Holder))
            if found[-1] not in holder._modules:
                holder.add_module(found[-1], Holder())
            holder = holder.get_submodule(found[-1])
        found.append(_free(holder, f"{last}{suffix}", None))
        if buffer:
            holder.register_buffer(found[-1], tensor)
        else:
            holder.register_parameter(found[-1], nn.Parameter(tensor))
            self._precision = self._precision or tensor.dtype
        self._weights[name] = tuple(found)
        self.initializers[".".join(found)] = called or name
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
    def axis_names(self) -> dict[str, tuple[int | str | None, ...] | None]:
        """What the file calls the axes of its inputs, by forward's parameters; a size where it fixes one."""
        return {port.parameter: port.sizes for port in self.inputs}

    @property
    def compared(self) -> dict[str, int]:
        """Integers that inputs are compared with: values that mean something to the file."""
        found: dict[str, int] = {}
        names = {port.name for port in self.inputs}
        for step in self.operators.steps:
            operator = self.operators.get_submodule(step.child)
            assert isinstance(operator, Operator)
            if operator.kind != "Equal" or not step.inputs or step.inputs[0] not in names:
                continue
            if (value := operator.kept(1)) is not None and value.items:
                found.setdefault(step.inputs[0] or "", int(value.items[0]))
        return found

    def feeds(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        """Inputs by the file's names, such as those of a .npz file, as keyword inputs of this module."""
        return {port.parameter: torch.as_tensor(arrays[port.name]) for port in self.inputs if port.name in arrays}

    def batches(
        self, place: str | os.PathLike[str], *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
        layout: str | None = None, resize: tuple[int, int] | None = None,
    ) -> Feeds:
        """Batches of inputs from disk, for `data=` of all that takes data.

        `place` is a file of arrays by the file's names of inputs (.npz, .safetensors, .npy), a folder of them, or one
        of pictures. Those are resized to `resize`, height and width, where the file leaves these free, and normalized:
        (pixel / 255 - mean) / std. `layout`, NCHW or NHWC, is told where the shape of the input does not tell it.

        Raises:
            InvalidArgument: nothing is there, or it does not fit the file, or more has to be told.
        """
        from surgeon.onnx_import.feeds import Feeds, Pixels

        pixels = Pixels(None if mean is None else tuple(mean), None if std is None else tuple(std), layout, resize)
        return Feeds("place", place, self, pixels)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Inputs on which the module runs, by the names of forward's parameters.

        Free axes get the size that the file was exported at, where surgeon did that, else a usual one.

        Raises:
            InvalidInputs: none of the usual sizes fits.
        """
        from surgeon.onnx_import.examples import examples, exported_at

        return examples(self, {**exported_at(self), **self.sizes})


def path_of(name: str) -> list[str]:
    """The parts of a tensor's name that modules are called by: what torch allows, and nothing that code could be.

    >>> path_of("a.b/c:0"), path_of('x"]..y'), path_of("")
    (['a', 'b/c:0'], ['x__', 'y'], ['_'])
    """
    parts = ["".join(c if c.isalnum() or c in "_/:-" else "_" for c in part) for part in name.split(".")]
    return [part for part in parts if part] or ["_"]


def _free(holder: nn.Module, name: str, kind: type[nn.Module] | None) -> str:
    """A name that means nothing else to a module, or to the graph that a smaller one may be."""
    while (
        hasattr(holder, name) or hasattr(fx.GraphModule, name) or name == "meta" or keyword.iskeyword(name)
    ) and not (kind is not None and isinstance(holder._modules.get(name), kind)):
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
