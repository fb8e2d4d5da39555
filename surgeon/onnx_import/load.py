"""The way from a file to a module."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from surgeon.errors import InvalidArgument, InvalidModel
from surgeon.frontend.notes import FILE, note
from surgeon.onnx_import import operators, reading
from surgeon.onnx_import.build import Builder
from surgeon.onnx_import.fallback import refuse_unknown
from surgeon.onnx_import.in_order import read_in_order
from surgeon.onnx_import.module import OnnxModel, Port, class_for, shape_of
from surgeon.onnx_import.nodes import Reader
from surgeon.onnx_import.running import Body, Operator
from surgeon.onnx_import.source import Source
from surgeon.onnx_import.table import row
from surgeon.onnx_import.values import Numbers
from surgeon.support import arguments

assert operators.__name__  # importing it fills the table


@arguments.checked({
    "path": arguments.path,
    "fixed": arguments.mapping("a dict of values by the names of inputs", arguments.text),
    "sizes": arguments.mapping("a dict of sizes by the names of axes", arguments.text, arguments.POSITIVE),
})
def load_onnx(
    path: str | os.PathLike[str],
    *,
    fixed: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> OnnxModel:
    """A module in eval mode that computes what an ONNX file does, of torch operators with gradients.

    It takes the file's inputs, in their order or by name, and returns its output, or a tuple of them. Its parameters
    have the names of the file's initializers; what torch allows in no name is an underscore. Every axis that the file
    leaves free is free in it. All that surgeon does with modules it does with this one. Constants are parameters where
    the file has no initializers of more than one value, else buffers, as are the statistics of batch norms.

    Operators without a counterpart in torch are run by onnxruntime, and what they touch is not pruned: `fallbacks`
    of the module lists them. Weights in other files are read from below the file's own folder only.

    Args:
        path: the file, of opset 7 or newer.
        fixed: values of inputs that are the same in every run, by name, such as a sampling rate: what the file decides
            by them is decided here.
        sizes: sizes of free axes in the inputs that are made up where none are given, by the axes' names or as
            "input:axis"; a usual size by default.

    Raises:
        InvalidArgument: there is no such file, or it has no such input or axis.
        InvalidModel: it is damaged, or holds what torch has no tensors of.

    >>> import tempfile, onnx, torch
    >>> from onnx import helper
    >>> x, y = (helper.make_tensor_value_info(name, 1, ["n", size]) for name, size in (("x", 3), ("y", 2)))
    >>> weight = onnx.numpy_helper.from_array(torch.ones(3, 2).numpy(), "fc.weight")
    >>> graph = helper.make_graph([helper.make_node("MatMul", ["x", "fc.weight"], ["y"])], "g", [x], [y], [weight])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     onnx.save(helper.make_model(graph), f"{folder}/net.onnx")
    ...     net = load_onnx(f"{folder}/net.onnx")
    >>> net(torch.ones(4, 3)).shape, [name for name, _ in net.named_parameters()]
    (torch.Size([4, 2]), ['fc.weight'])
    """
    place = Path(path)
    proto = reading.read(place)
    folder = place.resolve().parent
    try:
        with torch.no_grad():
            model = _made(proto, place, folder, _fixed(reading.ports(proto.graph)[0], fixed or {}))
    except RecursionError as error:
        raise InvalidModel(f"{place}: graphs stand too deep in one another; the file is damaged") from error
    except InvalidModel as error:
        raise InvalidModel(f"{place}: {error}") from error
    model.sizes = _sizes(model, sizes or {})
    return model.eval()


def module_again(source: Source, fixed: Mapping[str, Numbers]) -> OnnxModel:
    """The module of a file that was read before, with the same values of inputs fixed."""
    with torch.no_grad():
        return _made(source.model, source.path, source.path.resolve().parent, fixed).eval()


def _made(proto: Any, place: Path, folder: Path, values: Mapping[str, Numbers]) -> OnnxModel:
    inputs, outputs = reading.ports(proto.graph)
    graph = Reader(reading.functions(proto, folder)).graph(proto.graph, reading.opsets(proto))
    graph = read_in_order(graph)
    if graph.free:
        raise InvalidModel(f"the value {graph.free[0]!r} is read, and nothing makes it; the file is damaged")
    body = Body([], graph.outputs)
    source = Source(place, proto)
    model = class_for(inputs, values)(body, inputs, outputs, values, source)
    builder = Builder(model, graph)
    builder.fill(body, graph, {}, values, "operators")
    model.source = replace(source, nodes=builder.nodes, tensors=builder.tensors)
    for name, module in model.named_modules():
        if isinstance(module, Operator) and row(module.domain, module.kind) is None:
            refuse_unknown(module)
            model.fallbacks[name] = f"{module.kind}: not in the table of operators"
    note(model, FILE, model.source)
    return model


def _fixed(inputs: list[Port], fixed: Mapping[str, Any]) -> dict[str, Numbers]:
    found: dict[str, Numbers] = {}
    ports = {name: port for port in inputs for name in (port.name, port.parameter)}
    for name, value in fixed.items():
        if name not in ports:
            known = ", ".join(port.name for port in inputs)
            raise InvalidArgument(f"fixed: the file has no input {name!r}; its inputs are {known}")
        port = ports[name]
        try:
            tensor = torch.as_tensor(value).to(port.dtype)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidArgument(f"fixed: {name!r} is a {type(value).__name__}; give a number or a tensor") from error
        if port.sizes is not None and not port.sizes and tensor.dim():
            tensor = tensor.reshape(()) if tensor.numel() == 1 else tensor
        if port.sizes is not None and (
            len(port.sizes) != tensor.dim()
            or any(isinstance(a, int) and a != b for a, b in zip(port.sizes, tensor.shape, strict=True))
        ):
            raise InvalidArgument(
                f"fixed: {name!r} is of shape {tuple(tensor.shape)}, the file takes {shape_of(port)}"
            )
        if tensor.numel() > 1024:
            raise InvalidArgument(f"fixed: {name!r} has {tensor.numel():,} values; up to 1,024 can be fixed")
        found[port.name] = Numbers.of(tensor.reshape(-1).tolist(), tensor.dtype, tensor.shape)
    return found


def _sizes(model: OnnxModel, sizes: Mapping[str, int]) -> dict[str, int]:
    known = {str(size) for port in model.inputs for size in port.sizes or () if isinstance(size, str)}
    known |= {f"{port.name}:{axis}" for port in model.inputs for axis in range(len(port.sizes or ()))}
    for name in sizes:
        if name not in known:
            free = ", ".join(f"{port.name} {shape_of(port)}" for port in model.inputs)
            raise InvalidArgument(f"sizes: there is no free axis {name!r}; the file takes {free}")
    return dict(sizes)
