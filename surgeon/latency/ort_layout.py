"""The layout in which onnxruntime runs an operator: NCHW, or NCHWc (channels in blocks of the CPU's vector width).

It follows from rules that were probed on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from surgeon.device.profile import Profile
from surgeon.latency.onnx_micrographs import BLOCKS
from surgeon.latency.operator_kinds import IMAGE
from surgeon.latency.operators import Operator

#: Separate elementwise operators: whether they run in the NCHWc layout is probed for each.
STANDING = ("pointwise", "batch_norm")
#: Kinds whose sizes alone decide whether they run in the NCHWc layout.
DECIDED = (*BLOCKS, "pool")
# The vectorized sizes of matrix products: the contracted one, and the columns of the result.
_VECTORS = {"linear": (1, 2), "matmul": (2, 3), "attention": (3, 4)}


@dataclass(frozen=True)
class Path:
    """Whether an operator runs in the NCHWc layout, reads each tensor in it, and writes its result in it."""

    fast: bool
    reads: tuple[bool, ...]
    writes: bool


class Paths:
    """The rules of a device."""

    def __init__(self, profile: Profile) -> None:
        self.block = profile.block
        self.rules = profile.rules

    def of(self, operator: Operator, dims: Sequence[int], layouts: Sequence[bool]) -> Path:
        """The operator's path at these sizes, given which of the tensors that it reads are in the NCHWc layout."""
        count = len(operator.reads)
        if operator.kind in DECIDED:
            fast = bool(self.fits(operator, dims))
            direct = operator.kind == "conv" and dims[0] <= self.rules.get("direct", 0)
            return Path(fast, (fast and not direct, *(fast for _ in range(count - 1))), fast)
        fast = False
        if operator.kind in STANDING:
            fast = bool(self.rules.get(passes(operator))) and all(layouts)
        elif operator.kind == "concat":
            fast = all(layouts) and all(self._multiple("concat", size) for size in dims[1:])
        return Path(fast, (fast,) * count, fast)

    def fits(self, operator: Operator, dims: Sequence[Any]) -> Any:
        """Whether an operator of a kind in `DECIDED` runs in the NCHWc layout at these sizes, which may be arrays."""
        if not self.block or len(operator.static["kernel"]) != IMAGE - 2:
            return np.zeros(np.broadcast_shapes(*map(np.shape, dims)), dtype=bool)
        match operator.kind:
            case "depthwise" | "pool":
                return self._multiple(operator.kind, dims[0])
            case "grouped":
                groups = np.maximum(1, np.rint(np.asarray(dims[0]) / dims[2]))
                return self._multiple("grouped", dims[2]) & self._multiple("grouped", dims[1] / groups)
        direct = np.asarray(dims[0]) <= self.rules.get("direct", 0)
        return (direct | self._multiple("conv_in", dims[0])) & self._multiple("conv_out", dims[1])

    def grain(self, operator: Operator, place: int, size: int) -> int:
        """The number of which the operator's size at `place`, `size` at full width, should be a multiple.

        It is a whole block, or, for few channels, the multiple that the NCHWc layout requires.
        """
        match operator.kind:
            case "conv":
                least = self.rules.get("conv_in", 1)
            case "depthwise" | "pool" | "grouped":
                least = self.rules.get(operator.kind, 1)
            case "concat" if place:
                least = self.rules.get("concat", 1)
            case "linear" | "matmul" | "attention" if place in _VECTORS[operator.kind]:
                least = self.rules.get("conv_in", 1)
            case _:
                return 1
        if not self.block:
            return 1
        if size < 2 * self.block and least > size // 2:  # otherwise there would be no choice
            least = self.rules.get("conv_in", 1)
        return self.block if size >= 2 * self.block else max(1, min(least, size))

    def _multiple(self, rule: str, size: Any) -> Any:
        wanted = self.rules.get(rule, 0)
        return np.rint(size) % wanted == 0 if wanted else np.zeros(np.shape(size), dtype=bool)


def passes(operator: Operator) -> str:
    """The name of the rule that says whether an elementwise operator runs in the NCHWc layout."""
    return f"passes {operator.key}"
