"""Which weights of an ONNX file are which tensors of the model that it was exported from."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np
from onnxscript import ir
from torch import Tensor

#: A tensor of more axes isn't looked for with its axes in another order.
_MOST_AXES = 4

Positions = Mapping[int, Sequence[int] | np.ndarray]


def known_cuts(
    base: str | os.PathLike[str], tensors: Mapping[str, Tensor], cuts: Mapping[str, Positions]
) -> dict[str, Positions]:
    """The kept positions in `cuts`, which are those of the model's tensors, by the names of the weights in a file.

    An exporter keeps the name of a tensor or, where it reorders the axes, as for a linear layer, the values: a weight
    is a tensor of its name and shape, or the one tensor that holds the same values in some order of its axes.
    """
    found: dict[str, Positions] = {}
    by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name in cuts:
        if tensors[name].dim() > 1:
            by_shape[tuple(sorted(tensors[name].shape))].append(name)
    for name, value in ir.load(base).graph.initializers.items():
        weight = value.const_value
        if weight is None:
            continue
        shape = weight.numpy().shape
        if name in tensors:
            if name in cuts and shape == tuple(tensors[name].shape):
                found[name] = cuts[name]
        elif 1 < len(shape) <= _MOST_AXES and (near := by_shape.get(tuple(sorted(shape)))):
            array = weight.numpy()
            same = [moved for each in near if (moved := _moved(array, tensors[each], cuts[each])) is not None]
            if same and all(_equal(same[0], other) for other in same):
                found[name] = same[0]
    return found


def _moved(array: np.ndarray, tensor: Tensor, cuts: Positions) -> Positions | None:
    """The kept positions of `array`, if it is the tensor with its axes in another order."""
    values = tensor.detach().cpu().numpy()
    for order in permutations(range(values.ndim)):
        moved = values.transpose(order)
        if moved.shape == array.shape and moved.flat[0] == array.flat[0] and np.array_equal(moved, array):
            return {order.index(axis): positions for axis, positions in cuts.items()}
    return None


def _equal(some: Positions, others: Positions) -> bool:
    return some.keys() == others.keys() and all(np.array_equal(some[axis], others[axis]) for axis in some)
