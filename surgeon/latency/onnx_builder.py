"""Writes tiny ONNX graphs whose weights take no space: they are constants that the graph itself makes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from surgeon.device.onnx_protobuf import OPSET


class Builder:
    """Builds one graph; names are numbered consecutively."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self.inputs: dict[str, tuple[int, ...]] = {}
        self._count = 0

    def input(self, shape: Iterable[int]) -> str:
        name = self._name("x")
        self.inputs[name] = tuple(int(size) for size in shape)
        return name

    def weight(self, shape: Iterable[int]) -> str:
        """A weight with a value of its own: equal weights would be merged."""
        value = np.array([0.01 + 1e-5 * self._count], dtype=np.float32)
        filled = numpy_helper.from_array(value)
        return self.node("ConstantOfShape", [self.integers(shape)], value=filled)

    def constant(self, value: float) -> str:
        return self._initializer(np.array(value, dtype=np.float32))

    def integers(self, values: Iterable[int]) -> str:
        """A list of integers, such as axes or a shape."""
        return self._initializer(np.array([int(value) for value in values], dtype=np.int64))

    def node(self, operator: str, inputs: Sequence[str], prefix: str = "y", **attributes: Any) -> str:
        """Add an operator; the name of its output, which begins with `prefix`."""
        name = self._name(prefix)
        self._nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def finish(self, *outputs: str) -> bytes:
        given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in self.inputs.items()]
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self._nodes, "operator", given, made, self._initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        oldest = helper.find_min_ir_version_for(opsets)  # so that a device's onnxruntime may be older than this one
        model = helper.make_model(graph, opset_imports=opsets, ir_version=oldest)
        return bytes(model.SerializeToString())

    def _initializer(self, value: np.ndarray) -> str:
        name = self._name("c")
        self._initializers.append(numpy_helper.from_array(value, name))
        return name

    def _name(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"
