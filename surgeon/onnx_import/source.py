"""The file that a module comes from, which copies of the module share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import onnx


@dataclass(frozen=True, eq=False)
class Source:
    """An ONNX file: `model` is what is in it, weights in files beside it left where they are.

    By the names of the module, `nodes` are those that its operators stand for, and `tensors` what its tensors come
    from. All of them are parts of `model`; a node of a function stands for one in each call of it.
    """

    path: Path
    model: onnx.ModelProto = field(repr=False)
    nodes: Mapping[str, onnx.NodeProto] = field(repr=False, default_factory=dict)
    tensors: Mapping[str, onnx.TensorProto] = field(repr=False, default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __copy__(self) -> Self:
        return self
