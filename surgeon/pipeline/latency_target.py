"""Meets a latency on a device: widths by its profile, then measured, and corrected once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from surgeon.allocation.latency_budget import allocate_latency
from surgeon.allocation.limits import Keep
from surgeon.cost.cost import BUDGETS, Cost
from surgeon.deploy.profiling import export_groups, load_device, profile_groups
from surgeon.device.benchmark import Verdict, benchmark
from surgeon.device.profile import Profile
from surgeon.errors import Infeasible, InvalidArgument
from surgeon.groups.coupling import Groups
from surgeon.ir.fingerprint import fingerprint
from surgeon.latency.model import Latency
from surgeon.plans.plan import choose
from surgeon.support.progress import stage
from surgeon.surgery import operate

Device = Profile | str | Path | None
Kept = dict[int, tuple[int, ...]]

#: What is measured over what was asked for: within these, nothing is corrected.
CLOSE = (0.97, 1.005)
_SECONDS = 3.0


@dataclass(frozen=True)
class Timing:
    """Latencies in milliseconds, batch of one: asked for, and of the base and the smaller model.

    `measured` is what the smaller model was measured to take here, against the base in one interleaved run (`verdict`);
    nothing where the device is another one. `corrections` counts how often the widths were chosen anew after
    measuring. `bound` says how far from the best the widths may be, by the profile: the relative distance of the damage
    done from its lower bound; nothing where that is not known.
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

    def __str__(self) -> str:
        lines = [f"latency on {self.device}, {self.threads} thread{'s' if self.threads > 1 else ''}:"]
        found = f"predicted {_text(self.predicted)}"
        if self.measured is not None:
            found = f"measured {_text(self.measured)} ({self.measured / self.requested:.1%} of it), {found}"
        lines.append(f"  base {_text(self.base)}, requested {_text(self.requested)}, {found}")
        if self.corrections:
            lines.append("  the widths were chosen anew once, after measuring")
        if self.bound is not None:
            lines.append(f"  the widths do at most {self.bound:.1%} more damage than the best would, by the profile")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


class Clock:
    """A model's latency on a device: predicted at any widths and, where the device is this one, measured.

    `folder` is where the models are put that are measured.
    """

    def __init__(
        self, model: nn.Module, groups: Groups, cost: Cost, device: Device, threads: int | None, folder: Path
    ) -> None:
        self._model, self._groups, self._cost = model, groups, cost
        self._folder = folder
        mark = fingerprint(model)
        if device is None:
            self.profile = profile_groups(model, groups, threads=threads or 1, base=self._base)
            self.here = True
        else:
            self.profile = load_device(device, threads)
            self.here = not self.profile.warnings_here(threads)
            if self.here:
                given = self.profile
                whole = None if "ms" in given.models.get(mark, {}) else self._base
                self.profile = profile_groups(model, groups, threads=given.threads, known=given, base=whole)
        self.latency = Latency(groups, self.profile, cost, mark)
        self.base = self.latency.ms({})
        known = "ms" in self.profile.models.get(mark, {})
        self.notes = () if known else ("the profile does not hold this model as a whole: milliseconds are estimates",)

    @cached_property
    def _base(self) -> Path:
        """The whole model as ONNX."""
        return export_groups(self._model, self._groups, self._folder / "base.onnx")

    def decide(
        self, scores: Mapping[int, np.ndarray], ms: float | None, ratio: float | None, keep: Keep, size: float | None,
        curves: Mapping[int, np.ndarray] | None = None,
    ) -> tuple[Kept, Timing]:
        """The units that stay for a latency of `ms`, or of the base's less the share `ratio`.

        `curves` tell what each width does to the model, where that is known better than by the scores.

        Raises:
            Infeasible: no widths are so fast.
        """
        requested = ms if ms is not None else (1 - (ratio or 0.0)) * self.base
        if requested >= self.base:
            raise InvalidArgument(
                f"latency_ms={requested:g}: the whole model takes {self.base:.2f} ms already; ask for less"
            )
        solve = self._solver(scores, keep, size, curves)
        kept, timing = solve(requested, requested)
        if not self.here:
            return kept, timing
        timing = self._measured(kept, timing, relative=ms is None)
        off = timing.measured / timing.requested if timing.measured is not None else 1.0
        if CLOSE[0] <= off <= CLOSE[1]:
            return kept, timing
        landed = f"measured {off:.1%} of what was asked for"
        try:
            again, other = solve(requested, self._corrected(timing))
        except Infeasible:
            return kept, _noted(timing, f"{landed}, and the widths can't be cut further")
        if again == kept:
            return kept, _noted(timing, f"{landed}, and no other widths are predicted nearer to it")
        other = replace(self._measured(again, other, relative=ms is None), corrections=1)
        if _error(other) <= _error(timing):
            return again, other
        return kept, _noted(timing, f"{landed}; widths that were chosen anew missed it by more")

    def _corrected(self, timing: Timing) -> float:
        """What to predict so that what was asked for is measured.

        It lies on the line through the base and what was made, as long as that is between doing nothing and scaling.
        """
        assert timing.measured is not None
        scaled = timing.predicted * timing.requested / timing.measured
        run = timing.base - timing.measured
        if run <= 0:
            return scaled
        line = timing.predicted + (timing.requested - timing.measured) * (self.base - timing.predicted) / run
        low, high = sorted((timing.predicted, scaled))
        return min(max(line, low), high)

    def _solver(
        self, scores: Mapping[int, np.ndarray], keep: Keep, size: float | None,
        curves: Mapping[int, np.ndarray] | None,
    ) -> Callable[[float, float], tuple[Kept, Timing]]:
        def solve(requested: float, target: float) -> tuple[Kept, Timing]:
            with stage("allocate"):
                widths, found = allocate_latency(
                    self._groups, scores, self._cost, self.latency, ms=target, keep=keep, size=size,
                    curves=curves,
                )
            predicted = self.latency.ms(widths)
            device, threads = self.profile.cpu, self.profile.threads
            notes = (*self.notes, *found.notes)
            timing = Timing(device, threads, requested, self.base, predicted, bound=found.gap, notes=notes)
            return choose(self._groups, scores, widths), timing

        return solve

    def _measured(self, kept: Kept, timing: Timing, relative: bool) -> Timing:
        """With what the smaller model takes against the base, measured here and now."""
        slim = operate(self._model, self._groups, kept).module
        path = export_groups(slim, self._groups, self._folder / "slim.onnx")
        with stage("measure"):
            verdict = benchmark(self._base, path, threads=self.profile.threads, seconds=_SECONDS)
        if not relative:
            return replace(timing, measured=verdict.slim.low, base=verdict.base.low, verdict=verdict)
        # A share of the latency is a share of what the base takes in the same minute.
        share = timing.requested / self.base
        requested = share * verdict.base.low
        return replace(
            timing, requested=requested, base=verdict.base.low, measured=verdict.base.low / verdict.ratio.value,
            verdict=verdict,
        )


def _noted(timing: Timing, note: str) -> Timing:
    return replace(timing, notes=(*timing.notes, note))


def _text(ms: float) -> str:
    """Milliseconds with three digits.

    >>> _text(17.724), _text(0.01334)
    ('17.7 ms', '0.0133 ms')
    """
    return f"{ms:.3g} ms" if ms < 100 else f"{ms:.0f} ms"


def _error(timing: Timing) -> float:
    """How far the measured latency is from what was asked for; to be too slow counts twice."""
    off = (timing.measured or timing.predicted) / timing.requested - 1
    return 2 * off if off > 0 else -off


def check_request(ratio: Any, latency_ms: Any, budget: str) -> None:
    """Make sure that there is one request, and that it can be told from the others."""
    if budget not in (known := (*BUDGETS, "latency")):
        raise InvalidArgument(f"budget={budget!r} is none that surgeon knows; choose one of {', '.join(known)}")
    if latency_ms is None:
        if ratio is None:
            raise InvalidArgument("give the ratio to remove, or latency_ms")
        return
    if ratio is not None:
        raise InvalidArgument(f"ratio={ratio!r} and latency_ms={latency_ms!r}: give one of them")
    if budget not in ("macs", "latency"):
        raise InvalidArgument(f"latency_ms={latency_ms!r} is a budget of its own; leave budget={budget!r} out")
    number = isinstance(latency_ms, int | float) and not isinstance(latency_ms, bool)
    if not number or not 0 < latency_ms < float("inf"):
        raise InvalidArgument(f"latency_ms={latency_ms!r}: give milliseconds, a number above 0")


def check_device(
    timed: bool, *, align: Any, scope: str, device: Any, threads: Any, max_params: Any
) -> None:
    """Make sure that what is asked for goes with the kind of budget."""
    if timed:
        if align is not None:
            raise InvalidArgument(f"align={align!r}: for a latency, the device's own rules say which widths are fast")
        if scope != "global":
            raise InvalidArgument(f"scope={scope!r}: for a latency, groups are always compared with one another")
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise InvalidArgument(f"threads={threads!r}: give an integer of at least 1")
        if max_params is not None and (isinstance(max_params, bool) or not 0 < max_params < float("inf")):
            raise InvalidArgument(f"max_params={max_params!r}: give a number of parameters above 0")
        return
    for name, value in (("device", device), ("threads", threads), ("max_params", max_params)):
        if value is not None:
            shown = str(value) if isinstance(value, Path) else value
            raise InvalidArgument(f'{name}={shown!r} is for a latency; ask for budget="latency" or latency_ms=')
