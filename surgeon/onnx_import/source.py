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

    `initializers` maps the name of a tensor of the module to the name of its initializer, or of the output of its
    Constant; `operators` the name of an operator's module to the node's place in the file's main graph.
    """

    path: Path
    model: onnx.ModelProto = field(repr=False)
    initializers: Mapping[str, str] = field(repr=False, default_factory=dict)
    operators: Mapping[str, int] = field(repr=False, default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __copy__(self) -> Self:
        return self
