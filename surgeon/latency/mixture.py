"""The mean latency over several shapes of the inputs, as a function of the widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from surgeon.latency.model import Latency
from surgeon.solver.factors import Factor, scaled


@dataclass(frozen=True)
class Mixture:
    """Milliseconds of a run on average, where runs have the shapes of the `parts`, each with the share `weights`.

    It is a `LatencyModel`. Which widths are fast does not depend on the sizes of images or on lengths: the first part
    tells.
    """

    parts: tuple[Latency, ...]
    weights: tuple[float, ...] = (1.0,)

    @property
    def run(self) -> float:
        """What of it is onnxruntime's own."""
        return self.mean([part.run for part in self.parts])

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        parts = zip(self.parts, self.weights, strict=True)
        return tuple(factor for part, weight in parts for factor in scaled(part.factors, weight))

    def mean(self, values: Sequence[float]) -> float:
        """The mean of one number a part."""
        return sum(weight * value for weight, value in zip(self.weights, values, strict=True))

    def ms(self, widths: Mapping[int, int]) -> float:
        """The mean latency at these widths; leaves without a width keep their size."""
        return self.mean(self.each(widths))

    def each(self, widths: Mapping[int, int]) -> tuple[float, ...]:
        """The latency of each part."""
        return tuple(part.ms(widths) for part in self.parts)

    def by_operator(self, widths: Mapping[int, int]) -> dict[str, float]:
        """The mean milliseconds of each operator and change of layout at these widths, by label."""
        found: dict[str, float] = {}
        for part, weight in zip(self.parts, self.weights, strict=True):
            for label, ms in part.shares(widths):
                found[label] = found.get(label, 0.0) + weight * ms
        return found

    def steps(self, leaf: int) -> tuple[int, ...]:
        return self.parts[0].steps(leaf)

    def finest(self, leaf: int) -> tuple[int, ...]:
        return self.parts[0].finest(leaf)

    def fitted(self, measured: Sequence[tuple[Mapping[int, int], Sequence[float]]]) -> Mixture:
        """Each part as near as can be to what was measured of it at these widths, in milliseconds."""
        parts = enumerate(self.parts)
        return replace(
            self, parts=tuple(part.fitted([(widths, ms[index]) for widths, ms in measured]) for index, part in parts)
        )
