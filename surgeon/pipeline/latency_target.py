"""Meets a latency on a device: widths by its profile, then measured, and chosen anew until it is met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from torch import nn

from surgeon.allocation.choose import choose
from surgeon.allocation.latency_budget import allocate_latency, least_ms
from surgeon.cost.cost import Cost
from surgeon.deploy.profiling import export_groups, load_device, mark_of, profile_groups
from surgeon.deploy.slim_file import write_slim
from surgeon.device.benchmark import Verdict, benchmark
from surgeon.device.clock import CPU_TIME, Clock
from surgeon.device.statistics import NOISY
from surgeon.errors import ExportError, Infeasible, InvalidArgument
from surgeon.groups.coupling import Groups
from surgeon.groups.ties import Ties
from surgeon.latency.landing import AIM, Landed, next_target, where_landed
from surgeon.latency.model import Latency
from surgeon.pipeline.options import Target
from surgeon.support.arguments import MinWidth
from surgeon.support.progress import stage
from surgeon.surgery import operate

Kept = dict[int, tuple[int, ...]]
_Try = tuple[Kept, "Timing"]
_Solve = Callable[[Latency, float], _Try]

#: Up to how many choices of widths are measured, each for so many seconds.
_MOST = 9
_SECONDS = 2.0
# How many times longer is measured where that was too noisy.
_LONGER = 4
# Up to how many times what was asked for the least that is predicted is measured before it is believed.
_DOUBTED = 10.0
_ROUNDING = 1e-6
# From what share of the whole on it is said that a run of nothing takes as much.
_MUCH = 0.1


@dataclass(frozen=True)
class Timing:
    """Latencies in milliseconds by `clock`, batch of one: asked for, and of the base and the smaller model.

    `measured` is what the smaller model was measured to take here, against the base in one interleaved run (`verdict`);
    nothing where the device is another one; `interval` is the 95 % interval of `measured`. `possible` is the least that
    any widths are predicted to take, every group at its floor. `corrections` counts how often the widths were chosen
    anew after measuring. `bound` says how far from the best the widths may be, by the profile: the relative distance of
    the damage done from its lower bound; nothing where that is not known.

    >>> print(Timing("Cortex-A76", threads=1, requested=4.0, base=8.0, predicted=3.97, possible=1.2))
    latency on Cortex-A76, 1 thread, CPU time:
      base 8 ms, requested 4 ms, predicted 3.97 ms
      possible from 1.2 ms on, by the profile
    """

    device: str
    threads: int
    requested: float
    base: float
    predicted: float
    measured: float | None = None
    corrections: int = 0
    bound: float | None = None
    verdict: Verdict | None = None
    notes: tuple[str, ...] = ()
    possible: float = 0.0
    clock: str = CPU_TIME

    @property
    def prediction(self) -> str:
        """What is said of the speed on another CPU than this one."""
        return (
            f"predicted to be faster, {self.base / self.predicted:.2f}x: {_text(self.base)} to {_text(self.predicted)} "
            f"on {self.device}, by its profile, not measured"
        )

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of what was measured, in milliseconds."""
        if self.measured is None or self.verdict is None:
            return None
        ratio = self.verdict.ratio
        return self.measured * ratio.value / ratio.high, self.measured * ratio.value / ratio.low

    @property
    def landed(self) -> Landed:
        """Whether what was measured is what was asked for, or may be."""
        low, high = self.interval or (self.measured or self.predicted,) * 2
        return where_landed(_off(self), low / self.requested, high / self.requested, self.noise)

    @property
    def noise(self) -> float:
        """How far from itself the base was measured to be."""
        return 0.0 if self.verdict is None else self.verdict.noise

    def __str__(self) -> str:
        lines = [f"latency on {self.device}, {Clock(self.threads, self.clock != CPU_TIME)}:"]
        found = f"predicted {_text(self.predicted)}"
        if self.measured is not None:
            between = " to ".join(f"{ms / self.requested:.1%}" for ms in self.interval or ())
            share = f"{self.measured / self.requested:.1%} of it" + (f", 95 % interval {between}" if between else "")
            found = f"measured {_text(self.measured)} ({share}), {found}"
        lines.append(f"  base {_text(self.base)}, requested {_text(self.requested)}, {found}")
        lines.append(f"  possible from {_text(self.possible)} on, by the profile")
        if self.corrections:
            times = "once" if self.corrections == 1 else f"{self.corrections} times"
            lines.append(f"  the widths were chosen anew {times}, after measuring")
        if self.bound is not None:
            lines.append(f"  the widths do at most {self.bound:.1%} more damage than the best would, by the profile")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


class LatencyTarget:
    """A model's latency on a device: predicted at any widths and, where the device is this one, measured.

    `folder` is where the models are put that are measured.
    """

    def __init__(self, model: nn.Module, groups: Groups, cost: Cost, target: Target, folder: Path) -> None:
        self._model, self._groups, self._cost = model, groups, cost
        self._folder = folder
        mark = mark_of(model, groups)
        threads, cpu_time = target.threads, target.cpu_time
        if target.device is None:
            self.profile = profile_groups(model, groups, threads=threads, cpu_time=cpu_time, base=self._base)
            self.here = True
        else:
            self.profile = load_device(target.device, threads, cpu_time)
            self.here = not self.profile.warnings_here(threads)
            if self.here:
                given = self.profile
                whole = None if "ms" in given.models.get(mark, {}) else self._base
                self.profile = profile_groups(
                    model, groups, threads=given.threads, cpu_time=cpu_time, known=given, base=whole
                )
        self.latency = Latency.of(groups, self.profile, cost, mark)
        self.base = self.latency.ms({})
        known = "ms" in self.profile.models.get(mark, {})
        self.notes = () if known else ("the profile does not hold this model as a whole: milliseconds are estimates",)

    @cached_property
    def _base(self) -> Path:
        """The whole model as ONNX."""
        return export_groups(self._model, self._groups, self._folder / "base.onnx")

    def decide(
        self, scores: Mapping[int, np.ndarray], ms: float | None, ratio: float | None, min_width: MinWidth,
        size: float | None, curves: Mapping[int, np.ndarray] | None = None, ties: Ties | None = None,
    ) -> tuple[Kept, Timing]:
        """The units that stay for a latency of `ms`, or of the base's less the share `ratio`.

        `curves` tell what each width does to the model, where that is known better than by the scores; `ties` which
        groups keep the same share of their units.

        Raises:
            Infeasible: no widths are so fast, by the profile or when measured, or none are nearly as slow.
        """
        requested = ms if ms is not None else (1 - (ratio or 0.0)) * self.base
        if requested >= self.base:
            given = f"latency_ms={ms:g}" if ms is not None else f"ratio={ratio:g}"
            raise InvalidArgument(f"{given}: the whole model takes {_text(self.base)} already; ask for less")
        possible = least_ms(self._groups, self.latency, min_width, self._cost, ties)

        def solve(latency: Latency, target: float) -> _Try:
            with stage("allocate"):
                widths, found = allocate_latency(
                    self._groups, scores, self._cost, latency, ms=target, min_width=min_width, size=size,
                    curves=curves, ties=ties,
                )
            timing = Timing(
                self.profile.cpu, self.profile.threads, requested, self.base, self.latency.ms(widths), bound=found.gap,
                notes=(*self.notes, *found.notes), possible=possible, clock=self.profile.clock,
            )
            return choose(self._groups, scores, widths), timing

        def narrowest(latency: Latency) -> _Try:
            return solve(latency, least_ms(self._groups, latency, min_width, self._cost, ties) * (1 + _ROUNDING))

        try:
            if not self.here:
                kept, timing = solve(self.latency, requested)
                return kept, timing if timing.landed is Landed.MET else _a_step_short(timing)
            tries = self._tried(solve, narrowest, requested, possible, relative=ms is None)
            kept, timing = _settled(tries)
        except Infeasible as error:
            raise self._explained(error) from error
        return kept, replace(timing, corrections=[each for each, _ in tries].index(kept))

    def _tried(
        self, solve: _Solve, narrowest: Callable[[Latency], _Try], requested: float, possible: float, relative: bool
    ) -> list[_Try]:
        """Widths and what they were measured to take, until some meet what was asked for or none are left to try.

        What was measured corrects the prediction.
        """
        tries: list[_Try] = []
        latency, target = self.latency, requested
        for _ in range(_MOST):
            known = [kept for kept, _ in tries]
            try:
                found = _untried(partial(solve, latency), target, known, [latency.ms(_widths(kept)) for kept in known])
            except Infeasible:
                if not tries and possible > _DOUBTED * requested:
                    raise
                # The prediction is no proof: every group at its floor may be quick enough.
                found = narrowest(latency)
            if found is None or found[0] in known:
                break
            tries.append((found[0], self._measured(*found, relative=relative)))
            if tries[-1][1].landed in (Landed.MET, Landed.NOISY):  # more of the same noise would tell nothing
                break
            # Shares of the base: what the machine does to both models meanwhile says nothing about the widths.
            measured = [
                (_widths(kept), self.base * (timing.measured or timing.predicted) / timing.base)
                for kept, timing in tries
            ]
            latency = self.latency.fitted(measured)
            landings = [(latency.ms(_widths(kept)), _off(timing)) for kept, timing in tries]
            # At full width it takes what the base was measured to take.
            base = tries[-1][1].base / tries[-1][1].requested
            target = next_target(landings, (self.base, base))
        return tries

    def _explained(self, error: Infeasible) -> Infeasible:
        """With what of the latency is not the model's, where that is much."""
        if self.latency.run < _MUCH * self.base:
            return error
        return Infeasible(
            f"{error}\nToo small to time by its widths: of {_text(self.base)} a run, {_text(self.latency.run)} are "
            "onnxruntime's own overhead, which widths can't touch.", error.reachable,
        )

    def _file(self, slim: nn.Module, kept: Kept) -> Path:
        """The smaller model as ONNX: written from the base's file or, where that can't be, exported."""
        path = self._folder / "slim.onnx"
        with stage("write slim"):
            try:
                write_slim(self._base, path, slim, self._groups, kept)
            except ExportError:
                return export_groups(slim, self._groups, path)
        return path

    def _measured(self, kept: Kept, timing: Timing, relative: bool) -> Timing:
        """With what the smaller model takes against the base, measured here and now."""
        slim = operate(self._model, self._groups, kept).module
        path = self._file(slim, kept)
        with stage("measure"):
            verdict = self._verdict(path, _SECONDS)
            if verdict.noise > NOISY:
                verdict = min(verdict, self._verdict(path, _LONGER * _SECONDS), key=lambda each: each.noise)
        if not relative:
            return replace(timing, measured=verdict.slim.low, base=verdict.base.low, verdict=verdict)
        # A share of the latency is a share of what the base takes in the same minute.
        share = timing.requested / self.base
        requested = share * verdict.base.low
        return replace(
            timing, requested=requested, base=verdict.base.low, measured=verdict.base.low / verdict.ratio.value,
            verdict=verdict,
        )


    def _verdict(self, slim: Path, seconds: float) -> Verdict:
        """The smaller model against the base, by the clock of the profile."""
        clock = self.profile.timed
        return benchmark(self._base, slim, threads=clock.threads, seconds=seconds, cpu_time=not clock.wall)


def _text(ms: float) -> str:
    """Milliseconds with three digits.

    >>> _text(17.724), _text(0.01334)
    ('17.7 ms', '0.0133 ms')
    """
    return f"{ms:.3g} ms" if ms < 100 else f"{ms:.0f} ms"


def _widths(kept: Kept) -> dict[int, int]:
    """How many units of each leaf stay."""
    return {leaf: len(units) for leaf, units in kept.items()}


def _off(timing: Timing) -> float:
    """What was measured over what was asked for."""
    return (timing.predicted if timing.measured is None else timing.measured) / timing.requested


def _a_step_short(timing: Timing) -> Timing:
    """With a note that says why nothing nearer was found."""
    found = "predicted" if timing.measured is None else "measured"
    note = f"{found} {_off(timing):.1%} of what was asked for; one step more of a group's widths takes too long"
    return replace(timing, notes=(*timing.notes, note))


def _doubtful(timing: Timing) -> Timing:
    """With a note that what was measured tells nothing, and why."""
    note = (
        f"too noisy here: the base differs from itself by up to {timing.noise:.1%}, so that nothing is told of whether "
        "the budget is met; these widths are predicted to meet it. Remedy: let nothing else run meanwhile, or ask for "
        "fewer threads"
    )
    return replace(timing, notes=(*timing.notes, note))


def _untried(
    solve: Callable[[float], _Try], target: float, known: Sequence[Kept], predicted: Sequence[float]
) -> _Try | None:
    """The widths for `target` or, where those are known, others near it; nothing if there are none.

    Raises:
        Infeasible: none are predicted to take so little.
    """
    above = min((ms for ms in predicted if ms > target), default=target)
    below = max((ms for ms in predicted if ms <= target), default=target)
    refused: Infeasible | None = None
    for step in (0.0, 0.5, 0.8, -0.5, -0.8):
        at = target + (step * (above - target) if step > 0 else -step * (below - target))
        if step and at == target:
            continue
        try:
            found = solve(at)
        except Infeasible as error:
            refused = refused or error
            continue
        if found[0] not in known:
            return found
    if refused is not None:
        raise refused
    return None


def _settled(tries: Sequence[_Try]) -> _Try:
    """The widths that meet what was asked for best, from its side.

    Raises:
        Infeasible: none do; the message tells the nearest.
    """
    for good in (Landed.MET, Landed.MAY_BE):
        if found := [each for each in tries if each[1].landed is good]:
            return min(found, key=lambda each: abs(_off(each[1]) - AIM))
    if noisy := [each for each in tries if each[1].landed is Landed.NOISY]:
        kept, timing = noisy[-1]
        return kept, _doubtful(timing)
    under = [each for each in tries if _off(each[1]) <= 1]
    if under and len(tries) < _MOST:  # nothing lies between these widths and those that take too long
        kept, timing = max(under, key=lambda each: _off(each[1]))
        return kept, _a_step_short(timing)
    over = [timing for _, timing in tries if _off(timing) > 1]
    nearest = [max((timing for _, timing in under), key=_off)] if under else []
    nearest += [min(over, key=_off)] if over else []
    shown = " and ".join(
        f"latency_ms={timing.measured:.4g} (the share {1 - (timing.measured or 0.0) / timing.base:.4f})"
        for timing in nearest
    )
    raise Infeasible(
        f"a latency of {_text(tries[-1][1].requested)} was not met: of {len(tries)} choices of widths that were "
        f"measured, the nearest take {shown}, of {_text(tries[-1][1].base)}. Remedy: ask for one of those, let nothing "
        "else run meanwhile, or relax ignore= or min_width=."
    )
