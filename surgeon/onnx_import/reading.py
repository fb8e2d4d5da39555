"""A file that is not trusted, as a checked model of the onnx package."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from surgeon.errors import InvalidArgument, InvalidModel, first_line
from surgeon.onnx_import.module import Port
from surgeon.onnx_import.nodes import Functions, require_text
from surgeon.onnx_import.tensors import torch_type
from surgeon.support.opening import Unfit, read_bytes

#: The most bytes of a protobuf message; the weights of larger models are in files beside it.
LARGEST = (2 << 30) - 1
#: The oldest opset that is read.
OLDEST = 7


def read(path: Path) -> ModelProto:
    """What is in a file; tensors in other files are left there.

    Raises:
        InvalidArgument: there is no such file.
        InvalidModel: it is no ONNX model, or one of an opset that is too old or too new.
    """
    if not os.path.lexists(path):
        raise InvalidArgument(f"{path}: there is no such file")
    try:
        content = read_bytes(path, LARGEST)
        model = ModelProto.FromString(content)
    except Unfit as error:
        raise InvalidModel(f"{path} can't be read: {error}") from error
    except (DecodeError, ValueError) as error:
        raise InvalidModel(f"{path} is not an ONNX file, or is damaged: {first_line(error)}") from error
    if not model.HasField("graph") or not (model.graph.node or model.graph.output) or not model.opset_import:
        raise InvalidModel(f"{path} is not an ONNX file, or is damaged: it holds no graph")
    newest = onnx.defs.onnx_opset_version()
    opset = opsets(model).get("", newest)
    if not OLDEST <= opset <= newest:
        raise InvalidModel(
            f"{path} is of opset {opset}; opsets {OLDEST} to {newest} are read: convert it with onnx.version_converter"
        )
    if model.graph.sparse_initializer:
        raise InvalidModel(f"{path} holds sparse initializers, which are not read; write them as dense ones")
    return model


def opsets(model: ModelProto) -> dict[str, int]:
    return {"" if each.domain == "ai.onnx" else each.domain: each.version for each in model.opset_import}


def functions(model: ModelProto, folder: Path) -> Functions:
    named = {("" if f.domain == "ai.onnx" else f.domain, f.name, f.overload): f for f in model.functions}
    return Functions(named, folder)


def ports(graph: GraphProto) -> tuple[list[Port], list[Port]]:
    """The inputs that are no initializers, and the outputs.

    Raises:
        InvalidModel: one is no tensor, or of a type that torch has none of, or has no name.
    """
    require_text(*(each.name for each in (*graph.input, *graph.output, *graph.initializer)))
    own = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in own]
    for value in (*inputs, *graph.output):
        if not value.name:
            raise InvalidModel("an input or output of the graph has no name; the file is damaged")
    if len({value.name for value in inputs}) < len(inputs):
        raise InvalidModel("two inputs of the graph have one name; the file is damaged")
    if not graph.output:
        raise InvalidModel("the graph has no output; the file is damaged")
    names = parameters([value.name for value in inputs])
    makers = {name: node for node in graph.node for name in node.output}
    return (
        [_port(value, names[value.name], "input") for value in inputs],
        [_port(value, value.name, "output", makers.get(value.name)) for value in graph.output],
    )


def _port(value: ValueInfoProto, parameter: str, what: str, maker: NodeProto | None = None) -> Port:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type" and not (what == "output" and kind is None):
        told = "of no type" if kind is None else f"a {kind.removesuffix('_type')}"
        of = "" if maker is None else f" of the node {maker.name!r} ({maker.op_type})"
        raise InvalidModel(f"the {what} {value.name!r}{of} is {told}, not a tensor, which is all that is read")
    tensor = value.type.tensor_type
    if what == "output" and not tensor.elem_type:
        return Port(value.name, parameter, torch.float32, None)
    sizes = None
    if tensor.HasField("shape"):
        sizes = tuple(_size(dim) for dim in tensor.shape.dim)
    return Port(value.name, parameter, torch_type(tensor.elem_type, f"the {what} {value.name!r}"), sizes)


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """A size; -1, 0 and "?" are used for open ones too."""
    if dim.WhichOneof("value") == "dim_value":
        return int(dim.dim_value) if dim.dim_value > 0 else None
    name: object = dim.dim_param  # protobuf leaves what is no text as bytes
    return name if isinstance(name, str) and name not in ("", "?") else None


def parameters(names: list[str]) -> Mapping[str, str]:
    """Names of Python parameters for inputs, by their names in the file.

    >>> parameters(["x", "serving_default:0", "lambda"])
    {'x': 'x', 'serving_default:0': 'serving_default_0', 'lambda': 'lambda_'}
    """
    found: dict[str, str] = {}
    for name in names:
        made = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
        made = made if made[:1].isalpha() or made[:1] == "_" else f"_{made}"
        while made in found.values() or made in _TAKEN or not made.isidentifier():
            made += "_"
        found[name] = made
    return found


def _taken() -> Iterator[str]:
    import keyword

    yield from (*keyword.kwlist, *keyword.softkwlist, "self", "args", "kwargs")


_TAKEN = frozenset(_taken())
