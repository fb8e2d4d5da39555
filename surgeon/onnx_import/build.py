"""Puts a module together from the graph of a file: what is constant is worked out, what is a weight becomes one."""

from __future__ import annotations

import keyword
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch

from surgeon.errors import InvalidModel
from surgeon.onnx_import.module import OnnxModel, path_of
from surgeon.onnx_import.nodes import Graph, Node
from surgeon.onnx_import.quantization import dequantized, paired
from surgeon.onnx_import.running import Body, Operator, Step
from surgeon.onnx_import.table import NUMERIC, Row, row
from surgeon.onnx_import.tensors import Constant
from surgeon.onnx_import.values import Numbers, as_numbers

_HERE = Path()
#: What the name of a value that has become a reader's own ends in, and a number; no name of a file holds it.
_OWN = "\0"
#: Constants of up to so many integers may be sizes, and stay numbers.
SMALL = 64
#: The most elements of an integer tensor that is worked out while a file is read.
WORKED_OUT = 1024
#: The most elements of a tensor of one value that each of its readers gets as its own.
APART = 1 << 16


class Builder:
    """Fills a module's graph. The weights that its operators read are added to the module under their names."""

    def __init__(self, model: OnnxModel, main: Graph) -> None:
        self._model = model
        self._put: dict[str, str] = {}
        self._of_one_value: dict[str, bool] = {}
        self._trained = any(each.floating and each.count > 1 for each in main.constants.values())
        self.nodes: dict[str, onnx.NodeProto] = {}
        self.tensors: dict[str, onnx.TensorProto] = {}

    def fill(
        self, body: Body, graph: Graph, outer: Mapping[str, Constant], fixed: Mapping[str, Numbers], path: str
    ) -> None:
        """Fill a body with the operators of a graph; `outer` are constants that it sees from outside.

        Raises:
            InvalidModel: an operator reads what nothing makes.
        """
        known: dict[str, Constant] = {**outer, **graph.constants}
        known.update({name: Constant(name, value, next(iter(known.values())).folder if known else _HERE)
                      for name, value in fixed.items() if name in graph.inputs})
        names: set[str] = {*graph.inputs, *graph.free}
        rounded, numbers = paired(graph), _read_as_numbers(graph)
        for node in graph.nodes:
            if node.kind == "Constant" and not node.domain and len(node.outputs) == 1:
                known[node.outputs[0]] = _constant(node)
                continue
            missing = [name for name in node.inputs if name and name not in names and name not in known]
            if missing:
                raise InvalidModel(f"{node.place} reads {missing[0]!r}, which nothing makes; the file is damaged")
            if (found := _worked_out(node, known, numbers)) is not None:
                known.update(zip(node.outputs, found, strict=False))
                continue
            if (weight := dequantized(node, known)) is not None:
                known[weight.name] = weight
                continue
            self._add(body, node, known, path, rounded)
            names.update(node.outputs)
        for name in graph.outputs:
            if name in known:
                self._keep(body, known[name])
            elif name not in names:
                raise InvalidModel(f"the output {name!r} is made by nothing; the file is damaged")
        _drop_what_is_done(body, {*graph.outputs})
        _note_readers(body)

    def _add(self, body: Body, node: Node, known: Mapping[str, Constant], path: str, rounded: Container[str]) -> None:
        _check_attributes(node)
        operator = Operator(
            node.kind, node.domain, node.opset, node.attributes, len(node.outputs), node.place,
            bool(node.outputs) and node.outputs[0] in rounded,
        )
        listed = row(node.domain, node.kind)
        if node.kind == "QuantizeLinear" and any(name in known and known[name].halves for name in node.inputs):
            raise InvalidModel(f"{node.place} makes integers of 4 bits, which torch has no tensors of")
        inputs: list[str | None] = []
        for place, name in enumerate(node.inputs):
            if not name or name not in known:
                inputs.append(name or None)
            elif _is_number(known[name], listed, place):
                operator.keep(place, known[name].numbers())
                inputs.append(None)
            else:
                inputs.append(self._weight(known[name], listed, place))
        child = _name(body, node)
        body.add_module(child, operator)
        if node.proto is not None:
            self.nodes[f"{path}.{child}"] = node.proto
        bodies = node.bodies
        if node.kind == "If" and (condition := operator.kept(0)) is not None and condition.array.size == 1:
            taken = "then_branch" if condition.items[0] else "else_branch"
            bodies = {name: each for name, each in bodies.items() if name == taken}
        for name, graph in bodies.items():
            inner = Body(graph.inputs, graph.outputs)
            operator.add_module(path_of(name)[0], inner)
            self.fill(inner, graph, known, {}, f"{path}.{child}.{name}")
        body.steps.append(Step(child, tuple(inputs), tuple(node.outputs)))

    def _weight(self, constant: Constant, listed: Row | None, place: int) -> str:
        """The name of the value that a weight is; the module gets it where it is new, or its reader's own."""
        suffix = ""
        if constant.name in self._put and self._is_apart(constant):
            first = self._put[constant.name]
            self._model.apart.setdefault(first, constant.name)
            count = sum(1 for name in self._model.apart.values() if name.partition(_OWN)[0] == constant.name)
            constant = replace(constant, name=f"{constant.name}{_OWN}{count}", of=constant.of or constant.name)
            suffix = f"_{count + 1}"
        if constant.name not in self._put:
            trained = constant.floating and (constant.initializer or not self._trained)
            trained = trained and not (listed is not None and place in listed.buffers)
            name = self._put[constant.name] = self._model.put(
                constant.name, constant.tensor(), buffer=not trained, called=constant.of, suffix=suffix
            )
            if _OWN in constant.name:
                self._model.apart[name] = constant.name
            if isinstance(constant.held, onnx.TensorProto):
                self.tensors[name] = constant.held
        return constant.name

    def _is_apart(self, constant: Constant) -> bool:
        """Whether a tensor that is read again is all of one value: exporters write equal tensors once, and those are.

        Such as the gains and shifts of norms that were not trained, or masks that are open. They mean nothing to one
        another.
        """
        name = constant.name
        if name not in self._of_one_value:
            values = constant.tensor().reshape(-1, 1).view(torch.uint8) if 1 < constant.count <= APART else None
            self._of_one_value[name] = values is not None and bool((values == values[:1]).all())
        return self._of_one_value[name]

    def _keep(self, body: Body, constant: Constant) -> None:
        """Make a constant an output."""
        if constant.floating and constant.count > 1:
            if constant.name not in self._put:
                self._weight(constant, None, 0)
        else:
            body.known[constant.name] = constant.numbers()


def _check_attributes(node: Node) -> None:
    """Refuse attributes that ONNX does not know at the node's opset, as onnxruntime does: nothing says what they mean.

    Raises:
        InvalidModel: there are some.
    """
    if node.domain or not onnx.defs.has(node.kind, node.opset, ""):
        return
    schema = onnx.defs.get_schema(node.kind, node.opset, "")
    if unknown := sorted({*node.attributes, *node.bodies} - schema.attributes.keys()):
        raise InvalidModel(
            f"{node.place}: {node.kind} of opset {node.opset} has no attribute {unknown[0]!r}; remove it from the "
            "file, or convert the file with onnx.version_converter"
        )


def _constant(node: Node) -> Constant:
    """What a Constant gives."""
    (name, value), *_ = node.attributes.items() or [("nothing", None)]
    out = node.outputs[0]
    match name, value:
        case "value", Constant():
            return Constant(out, value.held, value.folder)
        case "value_float" | "value_floats", _:
            return Constant(out, Numbers.of(value, torch.float32), _HERE)
        case "value_int" | "value_ints", _:
            return Constant(out, Numbers.of(value, torch.int64), _HERE)
    raise InvalidModel(f"{node.place} gives {name}, which is not read: text and sparse tensors have no tensor in torch")


def _is_number(constant: Constant, listed: Row | None, place: int) -> bool:
    """Whether an operator takes a constant as numbers, not as a tensor."""
    if listed is None:
        return constant.count <= SMALL and not constant.floating
    if place in listed.numbers:
        return True
    if not listed.mixed:
        return False
    if constant.floating:
        return constant.count == 1 and (not constant.initializer or not constant.shape)
    return constant.count <= SMALL and not constant.dtype.is_complex


def _read_as_numbers(graph: Graph) -> set[str]:
    """The values that nothing reads but as numbers: such as the scales of a Resize, which some files cast."""
    as_tensors = set(graph.outputs)
    read: set[str] = set()
    for node in reversed(graph.nodes):
        listed = row(node.domain, node.kind)
        passes = _is_numeric(node) and not as_tensors.intersection(node.outputs)
        numbers = listed.numbers if listed is not None else ()
        read |= {name for place, name in enumerate(node.inputs) if passes or place in numbers}
        as_tensors |= {name for place, name in enumerate(node.inputs) if not passes and place not in numbers}
        as_tensors |= {name for body in node.bodies.values() for name in body.free}
    return read - as_tensors


def _is_numeric(node: Node) -> bool:
    return not node.domain and not node.bodies and node.kind in NUMERIC and bool(node.inputs)


def _worked_out(node: Node, known: Mapping[str, Constant], numbers: Container[str]) -> list[Constant] | None:
    """The outputs of an operator that only reads small constants; None for others.

    Floating-point ones are numbers if each is one alone, or where what is made of them is read as `numbers`.
    """
    if not _is_numeric(node):
        return None
    given = [known.get(name) if name else None for name in node.inputs]
    if any(name and each is None for name, each in zip(node.inputs, given, strict=True)):
        return None
    floats = WORKED_OUT if all(name in numbers for name in node.outputs) else 1
    if not all(each is None or _plain(each, floats) for each in given):
        return None
    operator = Operator(node.kind, "", node.opset, node.attributes, len(node.outputs), node.place)
    try:
        made: Any = NUMERIC[node.kind](operator, *(None if each is None else each.numbers() for each in given))
    except (ValueError, TypeError, IndexError, ArithmeticError, AttributeError, KeyError, MemoryError, RuntimeError):
        return None  # it fails when it runs, and tells why
    if made is NotImplemented:
        return None
    folder = next(each.folder for each in given if each is not None)
    return [Constant(name, as_numbers(value), folder)
            for name, value in zip(node.outputs, made if isinstance(made, list) else [made], strict=False)]


def _plain(constant: Constant, floats: int) -> bool:
    if constant.dtype.is_complex:
        return False
    return constant.count <= (floats if constant.floating else WORKED_OUT)


def _name(body: Body, node: Node) -> str:
    """A child's name: the node's, or its kind and a number."""
    name = node.place.split("'")[1].replace(".", "_") if "'" in node.place else ""
    name = "".join(c if c.isalnum() or c == "_" else "_" for c in name).strip("_")[-80:]
    if not name or name.isdecimal():
        name = f"{path_of(node.kind)[0]}_{name or len(body.steps)}"
    while hasattr(body, name) or keyword.iskeyword(name):
        name += "_"
    return name


def _drop_what_is_done(body: Body, outputs: set[str]) -> None:
    """Note for each operator which values no later one reads."""
    seen: set[str] = set(outputs)
    made = {name for step in body.steps for name in step.outputs}
    for place in range(len(body.steps) - 1, -1, -1):
        step = body.steps[place]
        operator = body._modules[step.child]
        assert isinstance(operator, Operator)
        reads = {name for name in step.inputs if name} | set(_free_names(operator))
        done = tuple(name for name in sorted({*reads, *step.outputs}) if name in made and name not in seen)
        seen |= reads
        body.steps[place] = Step(step.child, step.inputs, step.outputs, done)


def _note_readers(body: Body) -> None:
    """Note for each operator that hands numbers on which ones take them as sizes."""
    reads: dict[str, set[str]] = {}
    for step in reversed(body.steps):
        operator = body._modules[step.child]
        assert isinstance(operator, Operator)
        listed = row(operator.domain, operator.kind)
        on: set[str] = set()
        if not operator.domain and operator.kind in NUMERIC:
            on = set().union(*(reads.get(name, ()) for name in step.outputs))
            operator.read_by[:] = sorted(on)
        for place, name in enumerate(step.inputs):
            if name is not None:
                sizes = listed is not None and place in listed.numbers
                reads.setdefault(name, set()).update(on, {step.child} if sizes else ())


def _free_names(operator: Operator) -> list[str]:
    """What the graphs inside of an operator read."""
    found: list[str] = []
    for body in operator._modules.values():
        assert isinstance(body, Body)
        for step in body.steps:
            found += [name for name in step.inputs if name]
            inner = body._modules[step.child]
            assert isinstance(inner, Operator)
            found += _free_names(inner)
        found += body.results
    return found
