"""The latency of a model at any widths of its groups, from a profile of its operators on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from torch import fx

from surgeon.cost import Cost
from surgeon.coupling import Groups
from surgeon.device.profile import Profile
from surgeon.errors import ProfileError
from surgeon.latency.factors import Factor
from surgeon.latency.operators import Operator, operators
from surgeon.latency.paths import Paths, result_sizes
from surgeon.latency.sampling import COLD, COLD_WEIGHT, CURVES, REORDERS, corners, direct, evaluate, sizes_at, variable
from surgeon.latency.surface import Surface, through
from surgeon.latency.tiny import BLOCKS, weight_bytes

Time = Callable[[Sequence[Any]], np.ndarray]

#: Fast widths of a group that are looked at: a wider group is looked at in larger steps.
MOST_STEPS = 48


class Latency:
    """Milliseconds of one run, batch of one, as a function of the widths.

    It is a sum over the operators, each at the sizes that the widths give it and by the path that it takes there (on
    channels in blocks, or not), of the changes of layout in between, and of what it takes to read weights that the
    rest of the model has pushed out of the caches. Where the profile holds what the model at full width was measured
    to take (`Profile.models`), what is missing then is spread over them, half of it evenly and half by what they take:
    a whole model finds less in the caches than an operator alone.
    """

    def __init__(self, groups: Groups, profile: Profile, cost: Cost | None = None, model: str = "") -> None:
        self.cost = cost or Cost(groups)
        self.profile = profile
        self.sizes = dict(self.cost.sizes)
        self.operators = operators(groups, self.cost)
        self.paths = Paths(profile)
        self._times = [self._time(operator) for operator in self.operators]
        self._cold = self._cold_curve()
        self.scale, self.each = 1.0, 0.0
        measured = profile.models.get(model, {}).get("ms")
        if measured:
            alone = self.ms({})
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
        layouts: dict[fx.Node, bool] = {}
        changed: set[tuple[fx.Node, bool]] = set()
        elements: dict[fx.Node, float] = {}
        for operator, (fast, slow, ends) in zip(self.operators, self._times, strict=True):
            dims = sizes_at(operator, full)
            path = self.paths.of(operator, dims, [layouts.get(read, False) for read in operator.reads])
            taken = slow if slow is not None and not path.fast else fast
            found.append((operator.label, float(self._whole(operator, taken, dims, rate))))
            for read, wants in zip(operator.reads, path.reads, strict=True):
                has = layouts.get(read, False)
                if has != wants and read in elements and (read, wants) not in changed:
                    changed.add((read, wants))
                    found.append((f"layout of {operator.label}", float(self._reorder(elements[read]))))
            layouts[operator.writes] = path.writes and ends
            elements[operator.writes] = self._elements(operator, full)
        return found

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The same sum at `steps`, where every operator takes the path that it takes at full width."""
        found = []
        for operator, (fast, slow, _) in zip(self.operators, self._times, strict=True):
            dims = sizes_at(operator, self.sizes)
            path = self.paths.of(operator, dims, [True for _ in operator.reads])
            taken = slow if slow is not None and not path.fast else fast
            found.append(self._factor(operator.label, operator.leaves, operator.dims, self._with_cold(operator, taken)))
        found += self._reorders
        return tuple(found)

    def _with_cold(self, operator: Operator, time: Time) -> Time:
        rate = self._rate(self.sizes)
        return lambda dims: self._whole(operator, time, dims, rate)

    def _whole(self, operator: Operator, time: Time, dims: Sequence[Any], rate: float) -> Any:
        """Milliseconds of an operator inside the model: its own, and those for weights from memory at `rate`."""
        own = weight_bytes(operator.kind, dims, operator.static)
        return self.scale * (time(dims) + own * np.maximum(0.0, rate - self._cold(own))) + self.each

    def _rate(self, widths: Mapping[int, int]) -> float:
        """Milliseconds a byte of weights, for as many bytes as the model has."""
        sizes = (sizes_at(operator, widths) for operator in self.operators)
        total = sum(
            weight_bytes(operator.kind, dims, operator.static)
            for operator, dims in zip(self.operators, sizes, strict=True)
        )
        return float(self._cold(total))

    def _cold_curve(self) -> Callable[[Any], np.ndarray]:
        """Milliseconds a byte of weights, by how many bytes are read from one use of a weight to the next."""
        known = [(count, self.profile.samples.get(("cold", (count,)))) for count in COLD[0]]
        found = [(count, sample.us) for count, sample in known if sample is not None]
        if len(found) < 2:
            return np.zeros_like
        xs = np.array([count * COLD_WEIGHT for count, _ in found], dtype=np.float64)
        ys = np.maximum.accumulate(np.array([us - found[0][1] for _, us in found])) / 1e3 / COLD_WEIGHT
        return lambda size: np.interp(size, xs, ys)

    @cached_property
    def _reorders(self) -> list[Factor]:
        """The changes of layout at full width."""
        found = []
        layouts: dict[fx.Node, bool] = {}
        changed: set[tuple[fx.Node, bool]] = set()
        makers: dict[fx.Node, Operator] = {}
        for operator, (_, _, ends) in zip(self.operators, self._times, strict=True):
            dims = sizes_at(operator, self.sizes)
            path = self.paths.of(operator, dims, [layouts.get(read, False) for read in operator.reads])
            for read, wants in zip(operator.reads, path.reads, strict=True):
                if layouts.get(read, False) != wants and read in makers and (read, wants) not in changed:
                    changed.add((read, wants))
                    shape = result_sizes(makers[read])
                    leaves = tuple(sorted({leaf for terms in shape for part in terms for leaf in part}))
                    time: Time = lambda dims: self._reorder(math.prod(dims))  # noqa: E731
                    found.append(self._factor(f"layout of {operator.label}", leaves, shape, time))
            layouts[operator.writes] = path.writes and ends
            makers[operator.writes] = operator
        return found

    def steps(self, leaf: int) -> tuple[int, ...]:
        """The fast widths of a leaf, ascending: multiples that fill whole blocks wherever it is read, and the full."""
        size = self.sizes[leaf]
        grain = 1
        for operator in self.operators:
            for terms in operator.dims:
                units = [factor for leaves, factor in terms.items() if leaf in leaves]
                if not units:
                    continue
                inside = max(1, round(min(units)))
                wanted = self.paths.grain(size * inside)
                grain = math.lcm(grain, wanted // math.gcd(wanted, inside))
        while grain > 1 and size // grain < 2:
            grain //= 2
        while size // grain > MOST_STEPS:
            grain *= 2
        return (*range(grain, size, grain), size)

    def _factor(self, label: str, leaves: tuple[int, ...], dims: Sequence[Any], time: Time) -> Factor:
        def function(*widths: np.ndarray) -> np.ndarray:
            known = dict(zip(leaves, widths, strict=True))
            return time([evaluate(terms, known) for terms in dims])

        return Factor(label, leaves, function)

    def _elements(self, operator: Operator, widths: Mapping[int, int]) -> float:
        return float(math.prod(float(evaluate(terms, widths)) for terms in result_sizes(operator)))

    def _time(self, operator: Operator) -> tuple[Time, Time | None, bool]:
        """Milliseconds on the fast path and, where there is one, the slow path; and whether it ends in blocks."""
        if operator.kind in CURVES:
            return self._curve(operator.kind), None, False
        full = sizes_at(operator, self.sizes)
        places = variable(operator)
        fast = {dims: self._sample(operator, dims) for dims in corners(operator, full, odd=False)}
        blocked = all(sample.blocked for sample in fast.values())
        block = max(1, self.profile.block) if blocked else 1
        surface = through({dims: sample.us / 1e3 for dims, sample in fast.items()}, places, block)
        ends = blocked and all(sample.ends_blocked for sample in fast.values())
        slow: Surface | None = None
        if blocked and operator.kind in (*BLOCKS, "pool") and places:
            odd = {dims: self._sample(operator, dims).us / 1e3 for dims in corners(operator, full, odd=True)}
            slow = through(odd, places)
        taken = self._with_few(operator, full, surface.at) if blocked else surface.at
        return taken, slow.at if slow is not None else None, ends

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
