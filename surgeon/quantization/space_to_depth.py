"""Rewrites a strided first convolution as one without stride on more channels, which suits int8 kernels better.

This is the space-to-depth transform of ResNets on TPUs: each s × s block of pixels becomes channels, and the kernel is
rearranged accordingly. An int8 convolution copies the pixels under its kernel row by row, and in an image with three
channels these rows are very short.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


def fold_stride(model: onnx.ModelProto) -> bool:
    """Rewrite the convolution of `model` that reads the image, in place; False if there is none to rewrite.

    It must be the only reader of a graph input (N, C, H, W) whose H and W are known and divisible by its stride. The
    stride must be above 1 and the same along H and W, and the convolution ungrouped, undilated and with a constant
    weight that nothing else uses.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for image in graph.input:
        sizes = [axis.dim_value for axis in image.type.tensor_type.shape.dim]
        readers = [node for node in graph.node if image.name in node.input]
        if len(sizes) != 4 or len(readers) != 1 or readers[0].op_type != "Conv":
            continue
        conv = readers[0]
        weight = constants.get(conv.input[1])
        users = sum(name == conv.input[1] for node in graph.node for name in node.input)
        if weight is None or users != 1 or conv.input[0] != image.name:
            continue
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in conv.attribute}
        folded = _folded(numpy_helper.to_array(weight), given, sizes[2:])
        if folded is None:
            continue
        kernel, pads, stride = folded
        weight.CopyFrom(numpy_helper.from_array(kernel, weight.name))
        inside = f"{image.name}_space_to_depth"
        first = helper.make_node("SpaceToDepth", [image.name], [inside], name=inside, blocksize=stride)
        graph.node.insert(0, first)
        conv.input[0] = inside
        left = [a for a in conv.attribute if a.name not in ("strides", "kernel_shape", "pads", "auto_pad")]
        del conv.attribute[:]
        conv.attribute.extend(left)
        conv.attribute.append(helper.make_attribute("kernel_shape", kernel.shape[2:]))
        conv.attribute.append(helper.make_attribute("pads", pads))
        # the inferred shape of the weight is no longer valid
        kept = [value for value in graph.value_info if value.name != weight.name]
        del graph.value_info[:]
        graph.value_info.extend(kept)
        return True
    return False



def _folded(weight: np.ndarray, given: dict[str, Any], sizes: list[int]) -> tuple[np.ndarray, list[int], int] | None:
    """The new kernel and padding, and the old stride; None if the convolution can't be rewritten.

    Through tap t, output o reads pixel s·o + t - p: the block at offset ⌊(t - p) / s⌋ from o, channel (t - p) mod s.
    """
    strides, pads = given.get("strides", [1, 1]), given.get("pads", [0] * 4)
    stride = strides[0]
    plain = given.get("group", 1) == 1 and set(given.get("dilations", [1, 1])) == {1}
    if not plain or weight.ndim != 4 or len(set(strides)) != 1 or stride < 2:
        return None
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET") or any(not n or n % stride for n in sizes):
        return None
    begins, ends, spans = [], [], []
    for axis, size in enumerate(sizes):
        taps, begin, end = weight.shape[2 + axis], pads[axis], pads[2 + axis]
        low, high = -begin // stride, (taps - 1 - begin) // stride
        outputs = (size + begin + end - taps) // stride + 1
        begins.append(-low)
        spans.append(high - low + 1)
        ends.append(outputs - 1 + spans[-1] - size // stride + low)
    if min(*begins, *ends) < 0:
        return None
    out, channels, rows, columns = weight.shape
    kernel = np.zeros((out, stride, stride, channels, *spans), weight.dtype)
    for row in range(rows):
        y, inner_y = divmod(row - pads[0], stride)
        for column in range(columns):
            x, inner_x = divmod(column - pads[1], stride)
            kernel[:, inner_y, inner_x, :, y + begins[0], x + begins[1]] = weight[:, :, row, column]
    return kernel.reshape(out, stride * stride * channels, *spans), [*begins, *ends], stride
