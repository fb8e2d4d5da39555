"""Weights that a file holds as integers with their scales, and values that are rounded on the way: Q/DQ pairs."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from surgeon.onnx_import.nodes import Graph, Node
from surgeon.onnx_import.operators.quantized import dequantize
from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.tensors import Constant

#: The types of a scale that numbers are computed in.
_SCALES = (torch.float16, torch.float32, torch.float64)
#: Operators whose outputs hold values of their first input.
_MOVES = frozenset(
    "DepthToSpace Expand Flatten Gather Identity MaxPool Reshape Slice SpaceToDepth Split Squeeze Transpose "
    "Unsqueeze".split()
)


def dequantized(node: Node, known: Mapping[str, Constant]) -> Constant | None:
    """The weight that a DequantizeLinear makes of the file's integers alone; None for any other operator.

    It is the very numbers that the file computes with, under the integers' name: a weight that is scored, trained and
    cut as any other.
    """
    if node.kind != "DequantizeLinear" or not all(name in known for name in node.inputs if name):
        return None
    if not 2 <= len(node.inputs) <= 3 or len(node.outputs) != 1:
        return None  # it fails when it runs, and tells why
    integers, scale, *zero = (known[name] if name else None for name in node.inputs)
    if integers is None or scale is None or integers.count <= 1 or integers.dtype.is_floating_point:
        return None
    if scale.dtype not in _SCALES:
        return None
    operator = Operator(node.kind, node.domain, node.opset, node.attributes, 1, node.place)
    given = [None if each is None else each.tensor() for each in (scale, *zero)]
    try:
        made = dequantize(operator, integers.tensor(), *given)  # type: ignore[arg-type]
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None  # it fails when it runs, and tells why
    return Constant(node.outputs[0], made.numpy(), integers.folder, True, integers.name)


def paired(graph: Graph) -> set[str]:
    """The integers that QuantizeLinear makes for DequantizeLinear alone, whatever moves them in between.

    Only their rounding is left in the module: they are held as whole floating-point numbers, so that a gradient passes.
    """
    otherwise = set(graph.outputs)
    made: set[str] = set()
    for node in reversed(graph.nodes):
        if node.kind == "QuantizeLinear":
            made.update(node.outputs)
        moves = node.kind in _MOVES and not node.domain and not otherwise.intersection(node.outputs)
        first = 1 if moves or node.kind == "DequantizeLinear" else 0
        otherwise.update(node.inputs[first:], *(body.free for body in node.bodies.values()))
    return made - otherwise
