"""The latency of a model at any widths of its groups, from a profile of its operators on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import fx

from surgeon.cost.cost import Cost, Terms
from surgeon.device.profile import Profile
from surgeon.errors import ProfileError
from surgeon.groups.coupling import Groups
from surgeon.latency.interpolation import through
from surgeon.latency.onnx_micrographs import weight_bytes
from surgeon.latency.operators import Operator, operators
from surgeon.latency.ort_layout import DECIDED, STANDING, Path, Paths
from surgeon.latency.sample_points import (
    COLD,
    COLD_WEIGHT,
    CURVE_OF,
    CURVES,
    REORDERS,
    corners,
    direct,
    evaluate,
    sizes_at,
    variable,
)
from surgeon.latency.symbolic_sizes import Sizes, leaves_of, source
from surgeon.latency.width_grid import fast_widths
from surgeon.solver.factors import Factor

#: Milliseconds at an operator's sizes, which may be arrays that broadcast.
Time = Callable[[Sequence[Any]], np.ndarray]


@dataclass(frozen=True)
class _Times:
    """An operator's milliseconds on blocks, and beside them where that differs; whether it can work on blocks, and
    hands its result on in them then."""

    fast: Time
    slow: Time | None = None
    blocked: bool = True
    ends: bool = True

    def on(self, fast: bool) -> Time:
        return self.fast if fast or self.slow is None else self.slow


@dataclass(frozen=True)
class _Change:
    """A tensor that is brought into blocks, or out of them, for an operator."""

    label: str
    shape: tuple[Terms, ...]


class Latency:
    """Milliseconds of one run, batch of one, as a function of the widths.

    It is a sum over the operators, each at the sizes that the widths give it and by the path that it takes there (on
    channels in blocks, or not), of the changes of layout in between, and of what it takes to read weights that the
    rest of the model has pushed out of the caches. Where the profile holds what the model at full width was measured
    to take (`Profile.models`, by the fingerprint `model`), what is missing then is spread over them, half of it evenly
    and half by what they take: a whole model finds less in the caches than an operator alone.

    Raises `ProfileError` if the profile lacks a measurement that an operator needs.
    """

    def __init__(self, groups: Groups, profile: Profile, cost: Cost | None = None, model: str = "") -> None:
        self.cost = cost or Cost(groups)
        self.profile = profile
        self.sizes = dict(self.cost.sizes)
        self.paths = Paths(profile)
        found = operators(groups, self.cost)
        may = {operator.writes for operator in found if operator.kind in (*DECIDED, *STANDING, "concat")}
        self.operators = [o for o in found if o.kind != "view" or o.reads[0] in may]
        sizes = Sizes(groups, self.cost)
        self._handed_on = [source(node) for node in groups.graph.output.all_input_nodes]
        read = {*self._handed_on, *(read for operator in self.operators for read in operator.reads)}
        self._shapes = {node: sizes.of(node) for node in read}
        self._times = [self._time(operator) for operator in self.operators]
        self._cold = self._cold_curve()
        self.scale, self.each = 1.0, 0.0
        measured = profile.models.get(model, {}).get("ms")
        alone = self.ms({}) if measured else 0.0
        if measured and alone:
            missing = max(0.0, measured - alone) / 2
            self.scale = (measured - missing) / alone
            self.each = missing / len(self.shares({}))

    def ms(self, widths: Mapping[int, int]) -> float:
        """The latency at these widths, fast or not; leaves that are not named keep their size."""
        return sum(ms for _, ms in self.shares(widths))

    def shares(self, widths: Mapping[int, int]) -> list[tuple[str, float]]:
        """The operators' parts of the latency at these widths, changes of layout among them."""
        full = {**self.sizes, **widths}
        rate = self._rate(full)
        found = []
        for operator, times, path, changes in self._walk(full):
            for change in changes:
                elements = math.prod(float(evaluate(terms, full)) for terms in change.shape)
                found.append((change.label, float(self._reorder(elements))))
            if times is not None:
                dims = [evaluate(terms, full) for terms in operator.dims]
                found.append((operator.label, float(self._whole(operator, times.on(path.fast), dims, rate))))
        return found

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The same sum, each operator by the path that its own sizes let it take; the changes of layout, and how many
        weights push one another out of the caches, are those at full width."""
        rate = self._rate(self.sizes)
        found: list[Factor] = []
        for operator, times, path, changes in self._walk(self.sizes):
            found += (self._factor(c.label, c.shape, lambda dims: self._reorder(math.prod(dims))) for c in changes)
            if times is not None:
                found.append(self._factor(operator.label, operator.dims, self._own(operator, times, path, rate)))
        return tuple(found)

    def _own(self, operator: Operator, times: _Times, path: Path, rate: float) -> Time:
        """An operator's milliseconds by its sizes alone."""
        if operator.kind not in DECIDED or times.slow is None:
            return lambda dims: self._whole(operator, times.on(path.fast), dims, rate)

        def time(dims: Sequence[Any]) -> np.ndarray:
            fast, slow = (self._whole(operator, times.on(which), dims, rate) for which in (True, False))
            return np.where(self.paths.fits(operator, dims), fast, slow)

        return time

    def _walk(
        self, widths: Mapping[int, int]
    ) -> Iterator[tuple[Operator, _Times | None, Path, list[_Change]]]:
        """The operators in the order in which they run, with their paths and the changes of layout before each.

        The last one may be what brings the model's results out of blocks; it and views have no time of their own.
        """
        layouts: dict[fx.Node, bool] = {}
        changed: set[tuple[fx.Node, bool]] = set()

        def changes(label: str, reads: Sequence[fx.Node], wanted: Sequence[bool]) -> list[_Change]:
            found = []
            for read, wants in zip(reads, wanted, strict=True):
                if layouts.get(read, False) != wants and (read, wants) not in changed:
                    changed.add((read, wants))
                    found.append(_Change(f"layout of {label}", self._shapes[read]))
            return found

        for operator, times in zip(self.operators, self._times, strict=True):
            plain = Path(False, (False,) * len(operator.reads), False)
            path, given = plain, [layouts.get(read, False) for read in operator.reads]
            result: list[_Change] = []
            if times is not None and times.blocked:
                path = self.paths.of(operator, sizes_at(operator, widths), given)
                if operator.kind in DECIDED and path.fast and not (times.ends and all(given[1:])):
                    # what follows it elementwise runs in the plain layout, and reads the other tensors there
                    path = Path(True, (path.reads[0], *(False for _ in path.reads[1:])), False)
                    result = [_Change(f"layout of {operator.label}", operator.result)] if times.ends else []
            yield operator, times, path, changes(operator.label, operator.reads, path.reads) + result
            layouts[operator.writes] = path.writes
        results = changes("the result", self._handed_on, [False for _ in self._handed_on])
        if results:
            yield operator, None, plain, results

    def _whole(self, operator: Operator, time: Time, dims: Sequence[Any], rate: float) -> Any:
        """Milliseconds of an operator inside the model: its own, and those for weights from memory at `rate`."""
        own = weight_bytes(operator.kind, dims, operator.static)
        return self.scale * (time(dims) + own * np.maximum(0.0, rate - self._cold(own))) + self.each

    def _rate(self, widths: Mapping[int, int]) -> float:
        """Milliseconds a byte of weights, for as many bytes as the model has."""
        return float(self._cold(sum(
            weight_bytes(operator.kind, sizes_at(operator, widths), operator.static) for operator in self.operators
        )))

    def _cold_curve(self) -> Callable[[Any], np.ndarray]:
        """Milliseconds a byte of weights, by how many bytes are read from one use of a weight to the next."""
        known = [(count, self.profile.samples.get(("cold", (count,)))) for count in COLD[0]]
        found = [(count, sample.us) for count, sample in known if sample is not None]
        if len(found) < 2:
            return np.zeros_like
        xs = np.array([count * COLD_WEIGHT for count, _ in found], dtype=np.float64)
        ys = np.maximum.accumulate(np.array([us - found[0][1] for _, us in found])) / 1e3 / COLD_WEIGHT
        return lambda size: np.interp(size, xs, ys)

    def steps(self, leaf: int) -> tuple[int, ...]:
        """The fast widths of a leaf, ascending: those that fill whole blocks wherever it is read, and the full one."""
        return fast_widths(leaf, self.sizes[leaf], self.operators, self.paths)

    def _factor(self, label: str, dims: Sequence[Terms], time: Time) -> Factor:
        leaves = leaves_of(dims)

        def function(*widths: np.ndarray) -> np.ndarray:
            known = dict(zip(leaves, widths, strict=True))
            return time([evaluate(terms, known) for terms in dims])

        return Factor(label, leaves, function)

    def _time(self, operator: Operator) -> _Times | None:
        if operator.kind == "view":
            return None
        if operator.kind in CURVE_OF:
            return _Times(self._curve(CURVE_OF[operator.kind]))
        full = sizes_at(operator, self.sizes)
        places = variable(operator)
        samples = {dims: self._sample(operator, dims) for dims in corners(operator, full, odd=False)}
        known = {dims: sample.us / 1e3 for dims, sample in samples.items()}
        if operator.kind not in DECIDED:
            return _Times(through(known, places).at)
        # the last corner is the widest: a narrow one may not fill a block
        *_, widest = samples.values()
        if not widest.blocked:
            return _Times(through(known, places).at, blocked=False)
        fast = self._with_few(operator, full, through(known, places, max(1, self.profile.block)).at)
        slow = None
        if places:
            odd = {dims: self._sample(operator, dims).us / 1e3 for dims in corners(operator, full, odd=True)}
            slow = through(odd, places).at
        return _Times(fast, slow, ends=widest.ends_blocked)

    def _with_few(self, operator: Operator, full: tuple[int, ...], time: Time) -> Time:
        """The time with the path for few channels in, where the device has one."""
        most = self.profile.rules.get("direct", 0)
        found = {dims: self._sample(operator, dims) for dims in direct(operator, full)}
        few = {dims: s.us / 1e3 for dims, s in found.items() if dims[0] <= most and s.blocked}
        if len({dims[0] for dims in few}) < 2:
            return time
        block = max(1, self.profile.block)
        lines = [
            (float(channels), through({d: ms for d, ms in few.items() if d[0] == channels}, (1,), block))
            for channels in sorted({dims[0] for dims in few})
        ]

        def narrow(dims: Sequence[Any]) -> np.ndarray:
            (a, first), (b, last) = lines[0], lines[-1]
            share = (np.asarray(dims[0], dtype=np.float64) - a) / (b - a)
            return np.maximum((1 - share) * first.at(dims) + share * last.at(dims), first.values.min() / 4)

        return lambda dims: np.where(np.asarray(dims[0]) <= most, narrow(dims), time(dims))

    def _sample(self, operator: Operator, dims: tuple[int, ...]) -> Any:
        try:
            return self.profile.samples[operator.key, dims]
        except KeyError as error:
            raise ProfileError(
                f"the profile holds nothing about {operator.label} ({operator.kind} of sizes {dims}): it was taken for "
                "other models; take one of this model with surgeon.profile, or merge it into this one"
            ) from error

    def _curve(self, kind: str) -> Time:
        samples = [self.profile.samples.get((kind, (elements,))) for elements in CURVES[kind]]
        if any(sample is None for sample in samples):
            raise ProfileError(f"the profile holds nothing about {kind}; take one of this model with surgeon.profile")
        xs = np.array(CURVES[kind], dtype=np.float64)
        ys = np.array([sample.us / 1e3 for sample in samples if sample is not None])
        return lambda dims: _line(np.asarray(dims[0], dtype=np.float64), xs, ys)

    def _reorder(self, elements: Any) -> Any:
        """Milliseconds to bring a tensor into blocks, or out of them."""
        xs, ys = self._reordering
        return self.scale * _line(np.asarray(elements, dtype=np.float64), xs, ys) + self.each

    @cached_property
    def _reordering(self) -> tuple[np.ndarray, np.ndarray]:
        xs, ys = [], []
        for _, elements in REORDERS:
            pair = [self.profile.samples.get((which, (elements,))) for which in ("reordered", "plain")]
            if pair[0] is not None and pair[1] is not None:
                xs.append(float(elements))
                ys.append(max(0.0, pair[0].us - pair[1].us) / 2e3)
        return (np.array(xs), np.array(ys)) if xs else (np.array([0.0, 1.0]), np.zeros(2))


def _line(x: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Linear between the points, and on from the last two."""
    slope = (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
    return np.where(x > xs[-1], ys[-1] + slope * (x - xs[-1]), np.interp(x, xs, ys))
