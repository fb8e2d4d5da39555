"""Which path onnxruntime takes through an operator: on channels in blocks or not, by the rules probed on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgeon.cost import Terms
from surgeon.device.profile import Profile
from surgeon.latency.operators import Operator
from surgeon.latency.tiny import convolved

#: Kinds that work elementwise and stand alone: whether they work on blocks is asked for each of them.
STANDING = ("pointwise", "batch_norm")
#: Axes of a batch of images, the only tensors that are stored in blocks.
IMAGE = 4


@dataclass(frozen=True)
class Path:
    """Whether an operator runs on blocks, in which layout it reads each tensor, and in which it writes its result."""

    fast: bool
    reads: tuple[bool, ...]
    writes: bool


class Paths:
    """The rules of a device."""

    def __init__(self, profile: Profile) -> None:
        self.block = profile.block
        self.rules = profile.rules

    def of(self, operator: Operator, dims: Sequence[int], layouts: Sequence[bool]) -> Path:
        """The path at these sizes, given which of the tensors that it reads come in blocks."""
        count = len(operator.reads)
        match operator.kind:
            case "conv" | "depthwise" | "grouped":
                if not self._fits(operator, dims):
                    return _plain(count)
                direct = operator.kind == "conv" and dims[0] <= self.rules.get("direct", 0)
                return Path(True, (not direct, *(True for _ in range(count - 1))), True)
            case "pool":
                fast = self._multiple("pool", dims[0])
                return Path(fast, (fast,) * count, fast)
            case "pointwise" | "batch_norm":
                fast = bool(self.rules.get(passes(operator))) and all(layouts)
                return Path(fast, (fast,) * count, fast)
            case "concat":
                fast = all(layouts) and all(self._multiple("concat", size) for size in dims[1:])
                return Path(fast, (fast,) * count, fast)
        return _plain(count)

    def grain(self, size: int) -> int:
        """Of which number a size of up to this much should be a multiple, so that nothing is computed in vain."""
        least = self.rules.get("conv_in", 1) or 1
        if not self.block:
            return 1
        return self.block if size >= 2 * self.block else min(least, max(1, size))

    def _fits(self, operator: Operator, dims: Sequence[int]) -> bool:
        match operator.kind:
            case "depthwise":
                return self._multiple("depthwise", dims[0])
            case "grouped":
                groups = max(1, dims[0] // dims[2])
                return self._multiple("grouped", dims[2]) and self._multiple("grouped", dims[1] // groups)
        inner, outer = dims[0], dims[1]
        direct = inner <= self.rules.get("direct", 0)
        return (direct or self._multiple("conv_in", inner)) and self._multiple("conv_out", outer)

    def _multiple(self, rule: str, size: int) -> bool:
        wanted = self.rules.get(rule, 0)
        return bool(wanted) and size % wanted == 0


def passes(operator: Operator) -> str:
    """The name of the rule that says whether an operator works elementwise on blocks."""
    return f"passes {operator.key}"


def result_sizes(operator: Operator) -> tuple[Terms, ...]:
    """The polynomials whose product is the number of elements that an operator writes."""
    match operator.kind:
        case "conv" | "grouped" | "conv_transpose":
            spatial = 1
            for size in convolved(operator.static):
                spatial *= size
            return (operator.dims[1], {(): float(spatial)})
        case "depthwise":
            spatial = int(operator.static["multiplier"])
            for size in convolved(operator.static):
                spatial *= size
            return (operator.dims[0], {(): float(spatial)})
        case "pool":
            spatial = 1
            for size in operator.static["out"]:
                spatial *= size
            return (operator.dims[0], {(): float(spatial)})
        case "linear":
            return (operator.dims[0], operator.dims[2])
        case "matmul":
            return (operator.dims[0], operator.dims[1], operator.dims[3])
        case "reduce":
            axes = [axis % len(operator.dims) for axis in operator.static["axes"]]
            return tuple(terms for axis, terms in enumerate(operator.dims) if axis not in axes)
    return operator.dims


def _plain(count: int) -> Path:
    return Path(False, (False,) * count, False)
