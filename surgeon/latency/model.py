"""The latency of a model at any widths of its groups, from a profile of its operators on a device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from surgeon.cost.cost import Cost
from surgeon.device.profile import Profile
from surgeon.groups.coupling import Groups
from surgeon.ir.polynomial import Terms, evaluate
from surgeon.latency.onnx_micrographs import weight_bytes
from surgeon.latency.operators import Operator
from surgeon.latency.ort_layout import DECIDED, Paths
from surgeon.latency.propagation import Network
from surgeon.latency.sample_points import sizes_at
from surgeon.latency.symbolic_sizes import leaves_of
from surgeon.latency.timings import OperatorTime, Time, Timings
from surgeon.latency.width_grid import fast_widths
from surgeon.solver.factors import Factor

_RUN = "onnxruntime itself"
# How many times less than predicted may grow with the widths, by what smaller models were measured to take.
_LESS = 4


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one run, on so many samples, as a function of the widths.

    It is a sum over the operators, each at its sizes for these widths and in the layout that it runs in there (NCHWc or
    NCHW), the reorders between them, the time to read weights that the rest of the model has evicted from the caches,
    and onnxruntime's overhead for a run (`run`). The times of operators and reorders are multiplied by `scale`, plus
    `each`: see `of`.
    """

    sizes: Mapping[int, int]
    network: Network
    timings: Timings
    times: Mapping[Operator, OperatorTime]
    run: float
    scale: float = 1.0
    each: float = 0.0

    @classmethod
    def of(
        cls, groups: Groups, profile: Profile, cost: Cost | None = None, model: str = "", batch: int = 1
    ) -> Latency:
        """The latency of a model by a profile, of a run on `batch` samples if the graph leaves that free.

        If the profile holds the measured latency of the model at full width (`Profile.models`, by its mark `model`),
        the residual overhead is attributed half uniformly to its operators, and half in proportion to their times: in
        a whole model, the caches are colder than for an operator alone.

        Raises `ProfileError` if the profile lacks a measurement that an operator needs.
        """
        cost = cost or Cost(groups)
        network, timings = Network.of(groups, cost, batch), Timings(profile, dict(cost.sizes))
        times = {operator: timings.of(operator) for operator in network.operators if operator.kind != "view"}
        found = cls(timings.sizes, network, timings, times, timings.run)
        measured, alone = profile.models.get(model, {}).get("ms"), found.ms({}) - found.run
        if not measured or not alone:
            return found
        run = min(found.run, measured / 2)
        residual = max(0.0, measured - run - alone) / 2
        each = residual / (len(found.shares({})) - 1)
        return replace(found, run=run, scale=(measured - run - residual) / alone, each=each)

    def fitted(self, measured: Sequence[tuple[Mapping[int, int], float]]) -> Latency:
        """The same at full width, and as near as can be to what was measured in milliseconds at these widths.

        How much of what the operators don't take alone grows with what they take, and how much with their number, is
        a guess until smaller models were measured.
        """
        alone = replace(self, scale=1.0, each=0.0)
        whole, share = self.ms({}) - self.run, len(self.shares({})) - 1
        at_full = alone.ms({}) - self.run
        if not measured or not at_full:
            return self
        rows = []
        for widths, ms in measured:
            count = (len(self.shares(widths)) - 1) / share
            own = alone.ms(widths) - self.run
            rows.append(((own - at_full * count) / ms, (self.run + whole * count) / ms - 1))
        slopes, rests = np.array(rows).T
        if not slopes.any():
            return self
        found = -(slopes @ rests) / (slopes @ slopes)
        # A smaller model that was as slow as the whole one was so by chance.
        scale = float(np.clip(found, min(self.scale, whole / at_full) / _LESS, whole / at_full))
        return replace(self, scale=scale, each=(whole - scale * at_full) / share)

    def ms(self, widths: Mapping[int, int]) -> float:
        """The latency at these widths, fast or not; leaves without a width keep their size."""
        return sum(ms for _, ms in self.shares(widths))

    def shares(self, widths: Mapping[int, int]) -> list[tuple[str, float]]:
        """The operators' parts of the latency at these widths, reorders among them."""
        full = {**self.sizes, **widths}
        total = self._bytes(full)
        parts = self._parts(full, lambda operator, fast: self._on(operator, fast, total))
        found = [(label, float(time([evaluate(terms, full) for terms in dims]))) for label, dims, time in parts]
        return [(_RUN, self.run), *found]

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The same sum as factors: each operator in the layout that its own sizes allow, with the reorders and the
        effect of cold weights as at full width."""
        total = self._bytes(self.sizes)
        parts = self._parts(self.sizes, lambda operator, fast: self._by_sizes(operator, fast, total))
        alone = [Factor(_RUN, (), lambda: np.asarray(self.run))] if self.run else []
        return (*alone, *(_factor(*part) for part in parts))

    def steps(self, leaf: int) -> tuple[int, ...]:
        """The fast widths of a leaf, ascending: those that make whole blocks wherever it is read, and the full one."""
        return fast_widths(leaf, self.sizes[leaf], self.network.operators, self._paths)

    def finest(self, leaf: int) -> tuple[int, ...]:
        """All fast widths of a leaf, without the coarser steps for wide ones."""
        return fast_widths(leaf, self.sizes[leaf], self.network.operators, self._paths, most=self.sizes[leaf])

    @cached_property
    def _paths(self) -> Paths:
        return Paths(self.timings.profile)

    @cached_property
    def _ends(self) -> dict[Operator, bool]:
        return {operator: time.ends for operator, time in self.times.items() if time.blocked}

    def _parts(
        self, widths: Mapping[int, int], time: Callable[[Operator, bool], Time]
    ) -> Iterator[tuple[str, Sequence[Terms], Time]]:
        """The operators at these widths and their reorders: label, sizes, and a function from sizes to milliseconds."""
        for step in self.network.steps(widths, self._paths, self._ends):
            for reorder in step.reorders:
                yield reorder.label, reorder.shape, self._reorder
            if step.operator is not None and step.operator in self.times:
                yield step.operator.label, step.operator.dims, time(step.operator, step.fast)

    def _by_sizes(self, operator: Operator, fast: bool, total: float) -> Time:
        """An operator's milliseconds in the layout that its sizes allow."""
        if operator.kind not in DECIDED or self.times[operator].slow is None:
            return self._on(operator, fast, total)
        either = [self._on(operator, which, total) for which in (True, False)]
        return lambda dims: np.where(self._paths.fits(operator, dims), *(time(dims) for time in either))

    def _on(self, operator: Operator, fast: bool, total: float) -> Time:
        """An operator's milliseconds in one of the layouts, in a model with `total` bytes of weights."""
        time = self.times[operator].on(fast)
        return lambda dims: self.scale * (time(dims) + self.timings.cold(operator, dims, total)) + self.each

    def _reorder(self, dims: Sequence[Any]) -> np.ndarray:
        return self.scale * self.timings.reorder(math.prod(dims)) + self.each

    def _bytes(self, widths: Mapping[int, int]) -> float:
        return float(sum(weight_bytes(o.kind, sizes_at(o, widths), o.static) for o in self.network.operators))


def _factor(label: str, dims: Sequence[Terms], time: Time) -> Factor:
    leaves = leaves_of(dims)

    def function(*widths: np.ndarray) -> np.ndarray:
        known = dict(zip(leaves, widths, strict=True))
        return time([evaluate(terms, known) for terms in dims])

    return Factor(label, leaves, function)
