"""Meets a latency on a device: widths by its profile, then measured, and chosen anew until it is met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from surgeon.allocation.choose import choose
from surgeon.allocation.latency_budget import allocate_latency, least_ms
from surgeon.cost.cost import Cost
from surgeon.deploy.profiling import export_groups, load_device, profile_workloads
from surgeon.deploy.slim_file import write_slim
from surgeon.deploy.workloads import Workload, workloads
from surgeon.device.benchmark import Verdict, benchmark
from surgeon.device.statistics import NOISY
from surgeon.errors import ExportError, Infeasible, InvalidArgument
from surgeon.groups.coupling import Groups
from surgeon.groups.ties import Ties
from surgeon.latency.landing import AIM, Landed, next_target
from surgeon.latency.mixture import Mixture
from surgeon.latency.model import Latency
from surgeon.pipeline.options import Target
from surgeon.pipeline.timing import OperatorTime, Part, Timing, a_step_short, doubtful, text
from surgeon.support.arguments import MinWidth
from surgeon.support.progress import stage
from surgeon.surgery import operate

Kept = dict[int, tuple[int, ...]]
_Try = tuple[Kept, Timing]
_Solve = Callable[[Mixture, float], _Try]

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


class LatencyTarget:
    """A model's latency on a device: predicted at any widths and, where the device is this one, measured.

    `folder` is where the models are put that are measured.
    """

    def __init__(self, model: nn.Module, groups: Groups, cost: Cost, target: Target, folder: Path) -> None:
        self._model, self._groups, self._cost = model, groups, cost
        self._folder = folder
        self._shaped = bool(target.shapes)
        self._runs = workloads(model, groups, target.shapes)
        self._bases: dict[int, Path] = {}
        marks = [run.mark(model) for run in self._runs]
        threads, cpu_time = target.threads, target.cpu_time
        if target.device is None:
            self.profile = profile_workloads(model, self._runs, threads=threads, cpu_time=cpu_time, bases=self._base)
            self.here = True
        else:
            self.profile = load_device(target.device, threads, cpu_time)
            self.here = not self.profile.warnings_here(threads)
            if self.here:
                given = self.profile
                self.profile = profile_workloads(
                    model, self._runs, threads=given.threads, cpu_time=cpu_time, known=given, bases=self._base
                )
        costs = [cost if run.groups is groups else Cost(run.groups) for run in self._runs]
        self.latency = Mixture(
            tuple(
                Latency.of(run.groups, self.profile, own, mark, run.batch)
                for run, own, mark in zip(self._runs, costs, marks, strict=True)
            ),
            tuple(run.weight for run in self._runs),
        )
        self.base = self.latency.ms({})
        known = all("ms" in self.profile.models.get(mark, {}) for mark in marks)
        self.notes = () if known else ("the profile does not hold this model as a whole: milliseconds are estimates",)

    def _base(self, run: Workload) -> Path:
        """The whole model as ONNX, at the sizes of a workload."""
        key = id(run.groups)
        if key not in self._bases:
            path = self._folder / f"base{len(self._bases) or ''}.onnx"
            self._bases[key] = export_groups(self._model, run.groups, path)
        return self._bases[key]

    def decide(
        self, scores: Mapping[int, np.ndarray], ms: float | None, ratio: float | None, min_width: MinWidth,
        size: float | None, curves: Mapping[int, np.ndarray] | None = None, ties: Ties | None = None,
        *, measured: bool = True,
    ) -> tuple[Kept, Timing]:
        """The units that stay for a latency of `ms`, or of the base's less the share `ratio`.

        `curves` tell what each width does to the model, where that is known better than by the scores; `ties` which
        groups keep the same share of their units. Where it is not to be `measured`, the choice is the first that would
        be.

        Raises:
            Infeasible: no widths are so fast, by the profile or when measured, or none are nearly as slow.
        """
        requested = ms if ms is not None else (1 - (ratio or 0.0)) * self.base
        if requested >= self.base:
            given = f"latency_ms={ms:g}" if ms is not None else f"ratio={ratio:g}"
            raise InvalidArgument(f"{given}: the whole model takes {text(self.base)} already; ask for less")
        possible = least_ms(self._groups, self.latency, min_width, self._cost, ties)

        def solve(latency: Mixture, target: float) -> _Try:
            with stage("allocate"):
                widths, found = allocate_latency(
                    self._groups, scores, self._cost, latency, ms=target, min_width=min_width, size=size,
                    curves=curves, ties=ties,
                )
            timing = Timing(
                self.profile.cpu, self.profile.threads, requested, self.base, self.latency.ms(widths), bound=found.gap,
                notes=(*self.notes, *found.notes), possible=possible, clock=self.profile.clock,
                parts=self._parts(widths),
            )
            return choose(self._groups, scores, widths), timing

        def narrowest(latency: Mixture) -> _Try:
            return solve(latency, least_ms(self._groups, latency, min_width, self._cost, ties) * (1 + _ROUNDING))

        try:
            if self.here and not measured:
                try:
                    return solve(self.latency, requested)
                except Infeasible:
                    return narrowest(self.latency)
            if not self.here:
                kept, timing = solve(self.latency, requested)
                timing = replace(timing, operators=self._operators(_widths(kept)))
                return kept, timing if timing.landed is Landed.MET else a_step_short(timing)
            tries = self._tried(solve, narrowest, requested, possible, relative=ms is None)
            kept, timing = _settled(tries)
        except Infeasible as error:
            raise self._explained(error) from error
        operators = self._operators(_widths(kept))
        return kept, replace(timing, corrections=[each for each, _ in tries].index(kept), operators=operators)

    def _tried(
        self, solve: _Solve, narrowest: Callable[[Mixture], _Try], requested: float, possible: float, relative: bool
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
            measured = [(_widths(kept), self._measured_parts(timing)) for kept, timing in tries]
            latency = self.latency.fitted(measured)
            landings = [(latency.ms(_widths(kept)), timing.off) for kept, timing in tries]
            # At full width it takes what the base was measured to take.
            base = tries[-1][1].base / tries[-1][1].requested
            target = next_target(landings, (self.base, base))
        return tries

    def _explained(self, error: Infeasible) -> Infeasible:
        """With what of the latency is not the model's, where that is much."""
        if self.latency.run < _MUCH * self.base:
            return error
        return Infeasible(
            f"{error}\nToo small to time by its widths: of {text(self.base)} a run, {text(self.latency.run)} are "
            "onnxruntime's own overhead, which widths can't touch.", error.reachable,
        )

    def _parts(self, widths: Mapping[int, int]) -> tuple[Part, ...]:
        """What is predicted of each workload."""
        bases, made = self.latency.each({}), self.latency.each(widths)
        return tuple(
            Part(run.told(self._model), run.weight, base, ms)
            for run, base, ms in zip(self._runs, bases, made, strict=True)
        )

    def _measured_parts(self, timing: Timing) -> tuple[float, ...]:
        """What each workload was measured to take, as a share of the base: what the machine does to both models
        meanwhile says nothing about the widths."""
        bases = self.latency.each({})
        if any(part.measured is None for part in timing.parts):
            share = (timing.measured or timing.predicted) / timing.base
            return tuple(share * base for base in bases)
        parts = zip(bases, timing.parts, strict=True)
        return tuple(base * (part.measured or part.predicted) / part.base for base, part in parts)

    def _operators(self, widths: Mapping[int, int]) -> tuple[OperatorTime, ...]:
        """Where the time goes by the profile, and what no widths touch."""
        narrowest = {leaf: self.latency.steps(leaf)[0] for leaf in self._cost.sizes}
        before, after, least = (self.latency.by_operator(each) for each in ({}, widths, narrowest))
        return tuple(
            OperatorTime(label, before.get(label, 0.0), ms, min(ms, least.get(label, 0.0)))
            for label, ms in {**dict.fromkeys(before, 0.0), **after}.items()
        )

    def _file(self, slim: nn.Module, kept: Kept, run: Workload) -> Path:
        """The smaller model as ONNX: written from the base's file or, where that can't be, exported."""
        base = self._base(run)
        path = base.with_name(base.name.replace("base", "slim"))
        with stage("write slim"):
            try:
                write_slim(base, path, slim, run.groups, kept)
            except ExportError:
                return export_groups(slim, run.groups, path)
        return path

    def _measured(self, kept: Kept, timing: Timing, relative: bool) -> Timing:
        """With what the smaller model takes against the base, measured here and now."""
        slim = operate(self._model, self._groups, kept, "graph").module  # the quickest form; the file is the same
        files: dict[int, Path] = {}
        parts: list[Part] = []
        for run, part in zip(self._runs, timing.parts, strict=True):
            if (key := id(run.groups)) not in files:
                files[key] = self._file(slim, kept, run)
            with stage("measure"):
                verdict = self._verdict(run, files[key], _SECONDS)
                if verdict.noise > NOISY:
                    again = self._verdict(run, files[key], _LONGER * _SECONDS)
                    verdict = min(verdict, again, key=lambda each: each.noise)
            # A share of the latency is a share of what the base takes in the same minute.
            measured = verdict.base.low / verdict.ratio.value if relative else verdict.slim.low
            parts.append(replace(part, base=verdict.base.low, measured=measured, verdict=verdict))
        base = self.latency.mean([part.base for part in parts])
        return replace(
            timing, requested=timing.requested / self.base * base if relative else timing.requested, base=base,
            measured=self.latency.mean([part.measured or 0.0 for part in parts]), verdict=parts[0].verdict,
            parts=tuple(parts),
        )

    def _verdict(self, run: Workload, slim: Path, seconds: float) -> Verdict:
        """The smaller model against the base, by the clock of the profile."""
        clock = self.profile.timed
        return benchmark(
            self._base(run), slim, threads=clock.threads, seconds=seconds, cpu_time=not clock.wall,
            feeds=run.feeds(self._model) if self._shaped else None, peak_memory=False,
        )


def _widths(kept: Kept) -> dict[int, int]:
    """How many units of each leaf stay."""
    return {leaf: len(units) for leaf, units in kept.items()}


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
            return min(found, key=lambda each: abs(each[1].off - AIM))
    if noisy := [each for each in tries if each[1].landed is Landed.NOISY]:
        kept, timing = noisy[-1]
        return kept, doubtful(timing)
    under = [each for each in tries if each[1].off <= 1]
    if under and len(tries) < _MOST:  # nothing lies between these widths and those that take too long
        kept, timing = max(under, key=lambda each: each[1].off)
        return kept, a_step_short(timing)
    over = [timing for _, timing in tries if timing.off > 1]
    nearest = [max((timing for _, timing in under), key=lambda each: each.off)] if under else []
    nearest += [min(over, key=lambda each: each.off)] if over else []
    shown = " and ".join(
        f"latency_ms={timing.measured:.4g} (the share {1 - (timing.measured or 0.0) / timing.base:.4f})"
        for timing in nearest
    )
    raise Infeasible(
        f"a latency of {text(tries[-1][1].requested)} was not met: of {len(tries)} choices of widths that were "
        f"measured, the nearest take {shown}, of {text(tries[-1][1].base)}. Remedy: ask for one of those, let nothing "
        "else run meanwhile, or relax ignore= or min_width=."
    )
