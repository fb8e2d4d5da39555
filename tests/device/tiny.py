"""Tiny ONNX graphs to be measured and probed."""

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper


def pointwise_conv(in_channels: int, out_channels: int, *, copies: int = 1, size: int | str = 4) -> bytes:
    """`copies` 1x1 convolutions of one input, with weights that onnxruntime fills in itself."""
    nodes: list[NodeProto] = []
    for index in range(copies):
        fill = helper.make_tensor("v", TensorProto.FLOAT, [1], [0.01 * (index + 1)])
        nodes.append(helper.make_node("ConstantOfShape", ["shape"], [f"w{index}"], value=fill))
        nodes.append(helper.make_node("Conv", ["x", f"w{index}"], [f"y{index}"], kernel_shape=[1, 1]))
    shape = numpy_helper.from_array(np.array([out_channels, in_channels, 1, 1], np.int64), "shape")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, in_channels, size, size])
    outputs = [
        helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, [1, out_channels, size, size])
        for index in range(copies)
    ]
    graph = helper.make_graph(nodes, "g", [x], outputs, [shape])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def impossible() -> bytes:
    """A model that onnxruntime reads and can't run."""
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], domain="nowhere")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nowhere", 1)]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
