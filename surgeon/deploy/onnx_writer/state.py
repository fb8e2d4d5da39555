"""What is known of an ONNX graph's values while it is walked, and what has to change in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnxscript import ir

from surgeon.deploy.names import new_name
from surgeon.deploy.onnx_writer.masks import Mask, Masks, Size, count, lossy, same
from surgeon.errors import ExportError


class Unwritable(ExportError):
    """The smaller file can't be made from the larger one; the message names the operator or the weight."""


class Unlike(Unwritable):
    """A value that is computed has other masks than its reader needs."""

    def __init__(self, message: str, value: ir.Value, wanted: Mapping[int, Mask | None]) -> None:
        super().__init__(message)
        self.value, self.wanted = value, wanted


class State:
    """The masks of every value so far, and for each weight which part of it each of its readers wants.

    `weights` are the masks of the weights that the caller knows, `copies` those of axes that consist of copies, by the
    name of the value.
    """

    def __init__(self, graph: ir.Graph, weights: Mapping[str, Masks], copies: Mapping[str, Masks]) -> None:
        self.graph = graph
        self.weights, self.copies = weights, copies
        self.masks: dict[ir.Value, dict[int, Mask]] = {}
        self.wanted: dict[tuple[ir.Node, int], dict[int, Mask]] = {}
        self._names = {value.name for value in _values(graph) if value.name is not None}
        self._constants: dict[bytes, ir.Value] = {}
        self._vectors: dict[tuple[ir.Value, tuple[tuple[int, int], ...]], ir.Value] = {}

    def of(self, value: ir.Value | None) -> Masks:
        """The masks of a value; of a weight, what the caller knows."""
        if value is None:
            return {}
        if value.is_initializer():
            return self.weights.get(value.name or "", {})
        return self.masks.get(value, {})

    def reads(self, node: ir.Node) -> bool:
        """Whether any operand of a node loses positions."""
        return any(self.of(value) for value in node.inputs)

    def need(self, node: ir.Node, index: int, masks: Mapping[int, Mask | None]) -> None:
        """Operand `index` must have these masks; axes that aren't named may have any.

        Raises:
            Unwritable: it is computed, and has others.
        """
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return
        have = dict(self.of(value))
        for axis, mask in masks.items():
            if same(have.get(axis), mask):
                continue
            if not value.is_initializer():
                raise Unlike(
                    f"{place(node)}: axis {axis} of its operand {value.name!r} keeps {_kept(have.get(axis))}, where "
                    f"{_kept(mask)} are to be kept", value, masks,
                )
            if mask is not None and sizes(value, node)[axis] != mask.size:
                raise Unwritable(
                    f"{place(node)}: axis {axis} of {value.name!r}, of which it isn't known what stays, has "
                    f"{sizes(value, node)[axis]} positions, not {mask.size}"
                )
            if mask is None:
                have.pop(axis, None)
            else:
                have[axis] = mask
        if value.is_initializer():
            self.wanted[node, index] = have

    def give(self, node: ir.Node, masks: Masks, output: int = 0) -> None:
        """Let an output of a node have these masks."""
        if not all(mask.any() for mask in masks.values()):
            raise Unwritable(f"{place(node)}: nothing would stay of what it computes")
        if output < len(node.outputs) and masks:
            self.masks[node.outputs[output]] = lossy(masks)

    def replace(self, node: ir.Node, index: int, array: np.ndarray) -> None:
        """Let an operand be this constant, for this node alone."""
        node.replace_input_with(index, self.constant(array))

    def renumber(self, node: ir.Node, index: int, new: Mapping[int, int]) -> None:
        """Let entries of an operand, a vector of integers, have other values, for this node alone.

        Negative entries stay, and so do computed ones: they follow from the sizes that they are computed from.
        """
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and new:
            node.replace_input_with(index, self._renumbered(value, new, node))

    def constant(self, array: np.ndarray) -> ir.Value:
        """A constant of the graph."""
        key = repr((array.dtype.str, array.shape)).encode() + array.tobytes()
        if key not in self._constants:
            name = self.name("number" if array.dtype.kind in "iu" else "constant")
            tensor = ir.tensor(np.ascontiguousarray(array), name=name)
            kind = ir.TensorType(tensor.dtype)
            value = ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=tensor)
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def name(self, wish: str) -> str:
        """A name that no value has, near `wish`."""
        found = new_name(wish, self._names)
        self._names.add(found)
        return found

    def _renumbered(self, value: ir.Value, new: Mapping[int, int], node: ir.Node) -> ir.Value:
        key = value, tuple(sorted(new.items()))
        if key not in self._vectors:
            self._vectors[key] = self._made(value, new, node)
        return self._vectors[key]

    def _made(self, value: ir.Value, new: Mapping[int, int], node: ir.Node) -> ir.Value:
        known = array_of(value)
        if known is not None:
            changed = known.copy()
            for entry, number in new.items():
                if changed[entry] >= 0:
                    changed[entry] = number
            return value if np.array_equal(changed, known) else self.constant(changed)
        source = value.producer()
        if source is None or source.op_type != "Concat":
            return value
        parts, start = [], 0
        for part in source.inputs:
            assert part is not None  # because it is an operand of Concat
            (length,) = sizes(part, source)
            if isinstance(length, str):
                raise Unwritable(f"{place(node)}: how many sizes {part.name!r} holds is not known")
            inside = {entry - start: number for entry, number in new.items() if start <= entry < start + length}
            parts.append(self._renumbered(part, inside, node) if inside else part)
            start += length
        if all(part is old for part, old in zip(parts, source.inputs, strict=True)):
            return value
        copy = ir.Node("", "Concat", parts, source.attributes.values(), name=self.name(f"{value.name}_slim"))
        made = copy.outputs[0]
        made.name, made.shape, made.type = self.name(f"{value.name}_slim"), value.shape, value.type
        self.graph.insert_after(source, copy)
        return made


def place(node: ir.Node) -> str:
    """A node, for messages."""
    return f"{node.op_type} {node.outputs[0].name!r}" if node.outputs else node.op_type


def sizes(value: ir.Value, node: ir.Node) -> list[Size]:
    """The sizes of a value's axes.

    Raises:
        Unwritable: the file tells none.
    """
    if value.shape is None:
        raise Unwritable(f"{place(node)}: the file doesn't tell the shape of {value.name!r}")
    return [
        size if isinstance(size, int) else str(size.value or f"?{value.name}.{axis}")
        for axis, size in enumerate(value.shape)
    ]


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a constant; None for what is computed."""
    if value is None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())


def integer(node: ir.Node, name: str, default: int) -> int:
    """An attribute that is an integer."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def integers(node: ir.Node, name: str, operand: int | None = None) -> list[int] | None:
    """Integers that stand in an attribute or, in later opsets, in an operand; None where they are not given.

    Raises:
        Unwritable: the operand is computed.
    """
    attribute = node.attributes.get(name)
    if attribute is not None:
        return list(attribute.as_ints())
    if operand is None or operand >= len(node.inputs) or node.inputs[operand] is None:
        return None
    found = array_of(node.inputs[operand])
    if found is None:
        raise Unwritable(f"{place(node)}: its {name} are computed")
    return [int(each) for each in found.reshape(-1)]


def _kept(mask: Mask | None) -> str:
    return "all" if mask is None else f"{count(mask)} of {mask.size}"


def _values(graph: ir.Graph) -> Sequence[ir.Value]:
    made = [output for node in graph.all_nodes() for output in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *made]
