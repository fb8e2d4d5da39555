"""Puts changes into a copy of a file's model: in place where a tensor or number has one reader, else beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from google.protobuf.message import Message
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper
from torch import Tensor

from surgeon.deploy.names import new_name
from surgeon.deploy.user_file.changes import Changes, Unpatchable
from surgeon.deploy.user_file.walk import Owner, dead, graphs_of, names, owners, parts
from surgeon.onnx_import.module import OnnxModel
from surgeon.onnx_import.running import Body, Operator
from surgeon.onnx_import.source import Source
from surgeon.onnx_import.tensors import HALVES, onnx_type
from surgeon.onnx_import.values import Numbers

_DATA = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data")


def patched(file: OnnxModel, changes: Changes) -> ModelProto:
    """The model of the file with the changes; all else in it is as it was.

    Raises:
        Unpatchable: it can't be made so.
    """
    return _Patch(file, changes).model


class _Patch:
    """One copy of a file's model, and what its parts are called in the module."""

    def __init__(self, file: OnnxModel, changes: Changes) -> None:
        source: Source = file.source
        self.model = ModelProto()
        self.model.CopyFrom(source.model)
        self._file, self._source, self._changes = file, source, changes
        self._twins: dict[int, tuple[Message, Owner]] = {
            id(old): new for (old, _), new in zip(parts(source.model), parts(self.model), strict=True)
        }
        self._names = names(self.model)
        self._was_dead = [{tuple(owner.node[place].output) for place in dead(owner)} for owner in owners(self.model)]
        self._put_tensors()
        self._put_attributes()
        self._put_numbers()
        self._refuse_branches_not_taken()
        self._remove_dead()
        if changes.tensors:
            self._forget_inner_sizes()

    def _node(self, name: str) -> tuple[NodeProto, Owner]:
        """The node that an operator of the module stands for, in the copy."""
        found = self._twins.get(id(self._source.nodes.get(name)))
        if found is None:
            raise Unpatchable(f"{name!r} stands for no node of the file, so that the file can't be given its numbers")
        node, owner = found
        assert isinstance(node, NodeProto)
        return node, owner

    def _put_tensors(self) -> None:
        wanted: dict[int, Tensor] = {}
        loose = self._apart()
        own = set(loose)
        for name, tensor in self._changes.tensors.items():
            old = self._source.tensors.get(name)
            twin = self._twins.get(id(old))
            if self._file.apart.get(name) in own:
                continue
            if old is None or twin is None:
                loose[self._file.initializers[name]] = tensor
                continue
            known = wanted.setdefault(id(old), tensor)
            if known.shape != tensor.shape or not torch.equal(known, tensor):
                raise Unpatchable(f"{old.name!r} would be another tensor in each call of the function that holds it")
            proto, owner = twin
            assert isinstance(proto, TensorProto)
            _fill(proto, tensor)
            if isinstance(owner, GraphProto):
                _resize(owner, proto)
        given = set()
        for path, operator, step in _operators(self._file.operators, "operators"):
            for place, value in enumerate(step):
                if value in loose:
                    node, owner = self._node(path)
                    if isinstance(owner, FunctionProto):
                        raise Unpatchable(f"{node.name!r} would read another tensor in each call of its function")
                    self._give(node, owner, place, loose[value], operator)
                    given.add(value)
        if left := loose.keys() - given:
            raise Unpatchable(f"{min(left)!r} is worked out of other tensors, such as integers and scales")

    def _apart(self) -> dict[str, Tensor]:
        """New tensors of readers that shared one in the file and no longer want the same, by the names of values."""
        sharing: dict[int, list[str]] = defaultdict(list)
        for name in self._file.apart:
            sharing[id(self._source.tensors.get(name))].append(name)
        found: dict[str, Tensor] = {}
        for readers in sharing.values():
            new = [self._changes.tensors.get(name) for name in readers]
            first = new[0]
            if first is None or any(each is None or not torch.equal(each, first) for each in new):
                found.update(
                    (self._file.apart[name], each) for name, each in zip(readers, new, strict=True) if each is not None
                )
        return found

    def _put_attributes(self) -> None:
        for (path, key), value in self._changes.attributes.items():
            node, _ = self._node(path)
            attribute = next(each for each in node.attribute if each.name == key)
            if attribute.ref_attr_name:
                raise Unpatchable(f"the attribute {key!r} of {path!r} is that of a call of a function")
            made = helper.make_attribute(key, list(value) if isinstance(value, tuple) else value)
            if made.type != attribute.type:
                raise Unpatchable(f"the attribute {key!r} of {path!r} would be of another type")
            attribute.CopyFrom(made)

    def _put_numbers(self) -> None:
        """Give operators their numbers: in place where all that reads a constant wants the same, else one of its own.

        An operator whose constant was cut for the sake of others gets what it had.
        """
        wanted: dict[tuple[int, int], tuple[str, NodeProto, Owner, int, Numbers]] = {}
        gone = self._spoiled()
        for path, operator, _ in _operators(self._file.operators, "operators"):
            for place in operator.kept_places:
                value = self._changes.numbers.get((path, place))
                if value is None and not gone:
                    continue
                found = self._twins.get(id(self._source.nodes.get(path)))
                if value is None and (found is None or _input(found[0], place) not in gone):
                    continue
                node, owner = self._node(path)
                value = value if value is not None else operator.kept(place)
                assert value is not None
                known = wanted.setdefault((id(node), place), (path, node, owner, place, value))[-1]
                if known.items != value.items:
                    raise Unpatchable(f"{path!r} would take other numbers in each call of the function that holds it")
        self._share(list(wanted.values()))

    def _share(self, wanted: list[tuple[str, NodeProto, Owner, int, Numbers]]) -> None:
        readers: dict[str, list[tuple[str, NodeProto, Owner, int, Numbers]]] = defaultdict(list)
        for each in wanted:
            readers[_input(each[1], each[3])].append(each)
        counts: dict[str, int] = defaultdict(int)
        constants: dict[str, list[tuple[TensorProto, Owner]]] = defaultdict(list)
        for part, owner in parts(self.model):
            if isinstance(part, NodeProto):
                for name in part.input:
                    counts[name] += 1
                for graph in graphs_of(part):
                    for output in graph.output:
                        counts[output.name] += 1
                if part.op_type == "Constant" and part.attribute and part.attribute[0].name == "value":
                    constants[part.output[0]].append((part.attribute[0].t, owner))
            elif isinstance(owner, GraphProto) and any(part is each for each in owner.initializer):
                assert isinstance(part, TensorProto)
                constants[part.name].append((part, owner))
        outputs = {each.name for each in self.model.graph.output}
        for name, uses in readers.items():
            value = uses[0][-1]
            alone = len(uses) == counts[name] and name not in outputs and len(constants[name]) == 1
            if alone and all(each[-1].items == value.items for each in uses):
                proto, owner = constants[name][0]
                _fill(proto, value.tensor().reshape(value.array.shape))
                if isinstance(owner, GraphProto):
                    _resize(owner, proto)
                continue
            for path, node, owner, place, own in uses:
                self._give(node, owner, place, own.tensor(), path)

    def _spoiled(self) -> set[str]:
        """Values of the file that are worked out of tensors which are others now."""
        gone = {self._file.initializers[name] for name in self._changes.tensors}
        if not gone:
            return gone
        stand = {id(node) for node in self._source.nodes.values()}
        for node in self._source.model.graph.node:
            if id(node) not in stand and not gone.isdisjoint(node.input):
                gone.update(node.output)
        return gone

    def _give(self, node: NodeProto, owner: Owner, place: int, value: Tensor, of: Any) -> None:
        """Let a node take a constant of its own, which stands right before it."""
        old = _input(node, place)
        name = new_name(f"{old}_slim", self._names)
        self._names.add(name)
        made = helper.make_node("Constant", [], [name])
        proto = TensorProto(data_type=onnx_type(value.dtype))
        _fill(proto, value)
        made.attribute.append(helper.make_attribute("value", proto))
        at = next((index for index, each in enumerate(owner.node) if each is node), None)
        if at is None:
            raise Unpatchable(f"{of!r} is not where it was")
        node.input[place] = made.output[0]
        owner.node.insert(at, made)

    def _refuse_branches_not_taken(self) -> None:
        """A branch that was decided against when the file was read must not read what is another now."""
        gone = self._spoiled()
        for path, operator, _ in _operators(self._file.operators, "operators"):
            proto = self._source.nodes.get(path)
            if proto is None or proto.op_type != "If" or len(operator._modules) == len(list(graphs_of(proto))):
                continue
            taken = set(operator._modules)
            for attribute in proto.attribute:
                if attribute.name not in taken and not gone.isdisjoint(_all_reads(attribute.g)):
                    raise Unpatchable(f"the branch of {path!r} that is not taken here reads what was cut")

    def _remove_dead(self) -> None:
        for owner, before in zip(list(owners(self.model)), self._was_dead, strict=True):
            for place in reversed(dead(owner)):
                if tuple(owner.node[place].output) not in before:
                    del owner.node[place]


    def _forget_inner_sizes(self) -> None:
        """Take away what graphs inside of operators, and functions, tell of sizes, which they need not."""
        for owner in owners(self.model):
            if owner is not self.model.graph:
                del owner.value_info[:]


def _operators(body: Body, path: str) -> Iterator[tuple[str, Operator, tuple[str | None, ...]]]:
    """All operators of a graph and those inside of it, by their paths, with the values that they read."""
    for step in body.steps:
        operator = body.get_submodule(step.child)
        assert isinstance(operator, Operator)
        yield f"{path}.{step.child}", operator, step.inputs
        for name, inner in operator._modules.items():
            assert isinstance(inner, Body)
            yield from _operators(inner, f"{path}.{step.child}.{name}")


def _all_reads(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for inner in graphs_of(node):
            yield from _all_reads(inner)
    yield from (output.name for output in graph.output)


def _input(node: Message, place: int) -> str:
    assert isinstance(node, NodeProto)
    return node.input[place] if place < len(node.input) else ""


def _fill(proto: TensorProto, value: Tensor) -> None:
    """Let a tensor of the file hold other values, of the type that it has; one in another file is still to go there."""
    if proto.data_type in HALVES:
        raise Unpatchable(f"the tensor {proto.name!r} is of 4 bits, of which two share a byte")
    for field in _DATA:
        proto.ClearField(field)
    del proto.dims[:]
    proto.dims.extend(value.shape)
    raw = value.detach().cpu().contiguous().reshape(-1)
    proto.raw_data = raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b""


def _resize(graph: GraphProto, proto: TensorProto) -> None:
    """Correct what the graph says of the sizes of an initializer, which may be listed as an input too."""
    for each in (*graph.input, *graph.value_info):
        if each.name == proto.name and each.type.tensor_type.HasField("shape"):
            for dim, size in zip(each.type.tensor_type.shape.dim, proto.dims, strict=False):
                dim.dim_value = size
