"""A strided first convolution as one without stride on more channels: the same function, friendlier to int8 kernels.

Space to depth, as TPUs' ResNets do it: pixels s × s apart become channels, the kernel's taps with them. An int8
convolution copies the pixels under its kernel row by row; of an image with three channels these rows are very short.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


def fold_stride(model: onnx.ModelProto) -> bool:
    """Rewrite, in `model`, the convolution that reads its image, and say whether there was one to rewrite.

    It must be the only reader of a graph input (N, C, H, W), whose H and W are known and divisible by its stride, with
    a stride above 1 that is the same both ways, ungrouped and undilated, and with a constant weight of its own.
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
        folded = _folded(numpy_helper.to_array(weight), _attributes(conv), sizes[2:])
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
        # what shape inference found for the weight is true no longer
        kept = [value for value in graph.value_info if value.name != weight.name]
        del graph.value_info[:]
        graph.value_info.extend(kept)
        return True
    return False


def _attributes(node: Any) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _folded(weight: np.ndarray, given: dict[str, Any], sizes: list[int]) -> tuple[np.ndarray, list[int], int] | None:
    """The kernel, the padding and the old stride; None where the convolution can't be rewritten.

    Output o reads pixel s·o + t - p through tap t: that is offset ⌊(t - p) / s⌋, channel (t - p) mod s of the blocks.
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
