"""The milliseconds of operators, reorders and an empty run as functions of sizes, from a profile's measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from surgeon.device.microbenchmark import Sample
from surgeon.device.profile import Profile
from surgeon.errors import ProfileError
from surgeon.latency.interpolation import through
from surgeon.latency.onnx_micrographs import weight_bytes
from surgeon.latency.operators import Operator
from surgeon.latency.ort_layout import DECIDED
from surgeon.latency.sample_points import (
    COLD,
    COLD_WEIGHT,
    CURVE_OF,
    CURVES,
    REORDERS,
    RUNS,
    corners,
    direct,
    few_positions,
    sizes_at,
    variable,
)

#: Milliseconds at an operator's sizes, which may be arrays that broadcast.
Time = Callable[[Sequence[Any]], np.ndarray]


@dataclass(frozen=True)
class OperatorTime:
    """An operator's milliseconds in the NCHWc layout, and in the NCHW layout if that differs; whether it can run in the
    former, and whether its result is then in it."""

    fast: Time
    slow: Time | None = None
    blocked: bool = True
    ends: bool = True

    def on(self, fast: bool) -> Time:
        return self.fast if fast or self.slow is None else self.slow


@dataclass(frozen=True)
class Timings:
    """A profile, for a model with these full widths by leaf.

    The methods raise `ProfileError` if the profile lacks a measurement.
    """

    profile: Profile
    sizes: Mapping[int, int]

    def of(self, operator: Operator) -> OperatorTime:
        """The milliseconds of an operator with warm weights."""
        if operator.kind in CURVE_OF:
            return OperatorTime(self._curve(CURVE_OF[operator.kind]))
        full, places = sizes_at(operator, self.sizes), variable(operator)
        samples = {dims: self._sample(operator, dims) for dims in corners(operator, full, odd=False)}
        known = {dims: sample.us / 1e3 for dims, sample in samples.items()}
        if operator.kind not in DECIDED:
            known = {dims: max(ms / 4, ms - float(self._own(operator, dims))) for dims, ms in known.items()}
            return OperatorTime(through(known, places, least=self._a_node).at)
        # the last corner is the widest: narrow ones may not fill a block
        *_, widest = samples.values()
        if not widest.blocked:
            return OperatorTime(through(known, places).at, blocked=False)
        fast = self._with_few_channels(operator, full, through(known, places, max(1, self.profile.block)).at)
        odds = corners(operator, full, odd=True) if places else ()
        odd = {dims: self._sample(operator, dims).us / 1e3 for dims in odds}
        return OperatorTime(fast, through(odd, places).at if odd else None, ends=widest.ends_blocked)

    def cold(self, operator: Operator, dims: Sequence[Any], total: float) -> Any:
        """The additional milliseconds for weights that are evicted from the caches, in a model with `total` bytes of
        weights."""
        curve = self.cold_curve(operator)
        own = weight_bytes(operator.kind, dims, operator.static)
        if curve is None:
            return 0.0
        return np.maximum(0.0, own * curve(total) - (0.0 if self._streams(operator) else own * curve(own)))

    def _own(self, operator: Operator, dims: Sequence[Any]) -> Any:
        """What an operator's own weights cost it, measured alone, where it reads them from memory as it computes: what
        remains grows with its sizes, which this does not."""
        own = weight_bytes(operator.kind, dims, operator.static)
        return own * self._stream(own) if self._stream is not None and self._streams(operator) else 0.0

    def cold_curve(self, operator: Operator) -> Callable[[Any], np.ndarray] | None:
        """Milliseconds per byte of weights, by the bytes read in between; more if little is computed meanwhile."""
        return self._stream if self._streams(operator) else self._cold

    def _streams(self, operator: Operator) -> bool:
        """Whether memory bandwidth limits the operator: it uses each weight in few positions."""
        return self._stream is not None and few_positions(operator, sizes_at(operator, self.sizes))

    def reorder(self, elements: Any) -> np.ndarray:
        """The milliseconds to reorder a tensor of this many elements to the NCHWc layout, or from it."""
        return _line(np.asarray(elements, dtype=np.float64), *self._reorders)

    @cached_property
    def run(self) -> float:
        """The milliseconds of a run beside its operators': onnxruntime's own, and those that its threads take to wake,
        where there are several. 0 if the profile does not have them."""
        return max(self._beside("run"), self._beside("wake"))

    def _beside(self, kind: str) -> float:
        """The milliseconds of a run beside those of its operators of this kind; 0 if the profile does not have it."""
        one, each = self.profile.samples.get((kind, (RUNS[0],))), self._each(kind)
        return 0.0 if one is None or each is None else max(0.0, one.us / 1e3 - each)

    @cached_property
    def _a_node(self) -> float | None:
        """The milliseconds of an operator on almost no data; None if the profile does not have it."""
        return self._each("run")

    def _each(self, kind: str) -> float | None:
        """The milliseconds that one more operator of this kind takes in a run."""
        one, nine = (self.profile.samples.get((kind, (count,))) for count in RUNS)
        return None if one is None or nine is None else max(0.0, nine.us - one.us) / (RUNS[1] - RUNS[0]) / 1e3

    @cached_property
    def _cold(self) -> Callable[[Any], np.ndarray] | None:
        return self._by_bytes("cold", lambda us, count: us)

    @cached_property
    def _stream(self) -> Callable[[Any], np.ndarray] | None:
        return self._by_bytes("stream", lambda us, count: (us - self.run * 1e3) / count)

    def _by_bytes(self, kind: str, each: Callable[[float, int], float]) -> Callable[[Any], np.ndarray] | None:
        """Milliseconds per byte of weights, by the bytes read from one use of a weight to the next; None if the profile
        does not have it. `each` maps a sample's microseconds, and its number of operators, to those of one."""
        known = [(count, self.profile.samples.get((kind, (count,)))) for count in COLD[0]]
        found = [(count, each(sample.us, count)) for count, sample in known if sample is not None]
        if len(found) < 2:
            return None
        xs = np.array([count * COLD_WEIGHT for count, _ in found], dtype=np.float64)
        ys = np.maximum.accumulate(np.array([us - found[0][1] for _, us in found])) / 1e3 / COLD_WEIGHT
        return lambda size: np.interp(size, xs, ys)

    def _with_few_channels(self, operator: Operator, full: tuple[int, ...], time: Time) -> Time:
        """The time, with the path for few input channels, if the device has one."""
        most = self.profile.rules.get("direct", 0)
        found = {dims: self._sample(operator, dims) for dims in direct(operator, full)}
        few = {dims: s.us / 1e3 for dims, s in found.items() if dims[0] <= most and s.blocked}
        channels = sorted({dims[0] for dims in few})
        if len(channels) < 2:
            return time
        a, b, block = channels[0], channels[-1], max(1, self.profile.block)
        first, last = (through({d: ms for d, ms in few.items() if d[0] == each}, (1,), block) for each in (a, b))

        def narrow(dims: Sequence[Any]) -> np.ndarray:
            share = (np.asarray(dims[0], dtype=np.float64) - a) / (b - a)
            return np.maximum((1 - share) * first.at(dims) + share * last.at(dims), first.values.min() / 4)

        return lambda dims: np.where(np.asarray(dims[0]) <= most, narrow(dims), time(dims))

    def _sample(self, operator: Operator, dims: tuple[int, ...]) -> Sample:
        try:
            return self.profile.samples[operator.key, dims]
        except KeyError as error:
            raise ProfileError(
                f"the profile holds nothing about {operator.label} ({operator.kind} of sizes {dims}): it was taken for "
                f"other models or shapes: {self.profile.answers}; take one of this model at these shapes with "
                "surgeon.profile, or merge it into this one"
            ) from error

    def _curve(self, kind: str) -> Time:
        try:
            ys = np.array([self.profile.samples[kind, (elements,)].us / 1e3 for elements in CURVES[kind]])
        except KeyError as error:
            raise ProfileError(
                f"the profile holds nothing about {kind}, as it was taken for {self.profile.answers}; take one of this "
                "model with surgeon.profile"
            ) from error
        xs = np.array(CURVES[kind], dtype=np.float64)
        return lambda dims: _line(np.asarray(dims[0], dtype=np.float64), xs, ys)

    @cached_property
    def _reorders(self) -> tuple[np.ndarray, np.ndarray]:
        xs, ys = [], []
        for _, elements in REORDERS:
            pair = [self.profile.samples.get((which, (elements,))) for which in ("reordered", "plain")]
            if pair[0] is not None and pair[1] is not None:
                xs.append(float(elements))
                ys.append(max(0.0, pair[0].us - pair[1].us) / 2e3)
        return (np.array(xs), np.array(ys)) if xs else (np.array([0.0, 1.0]), np.zeros(2))


def _line(x: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Linear interpolation, extrapolated from the last two points."""
    slope = (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
    return np.where(x > xs[-1], ys[-1] + slope * (x - xs[-1]), np.interp(x, xs, ys))
