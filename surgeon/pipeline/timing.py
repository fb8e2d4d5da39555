"""What came of a latency that was asked for: predicted, measured, and whether the budget is met."""

from __future__ import annotations

from dataclasses import dataclass, replace

from surgeon.device.benchmark import Verdict
from surgeon.device.clock import CPU_TIME, Clock
from surgeon.latency.landing import Landed, where_landed


@dataclass(frozen=True)
class Part:
    """The latency of the runs whose inputs have one of several shapes, the share `weight` of all, in milliseconds a
    run: of the base, and of the smaller model as predicted and measured, the latter in `verdict`."""

    shapes: str
    weight: float
    base: float
    predicted: float
    measured: float | None = None
    verdict: Verdict | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of what was measured, in milliseconds."""
        return _interval(self.measured, self.verdict)

    def __str__(self) -> str:
        found = f"predicted {text(self.predicted)}"
        if self.measured is not None:
            found = f"measured {text(self.measured)}, {found}"
        return f"{self.shapes}: base {text(self.base)}, {found}; {self.weight:.0%} of all runs"


@dataclass(frozen=True)
class OperatorTime:
    """Milliseconds of an operator by the profile, before and after, and the least that any widths bring it to."""

    label: str
    before: float
    after: float
    least: float


@dataclass(frozen=True)
class Timing:
    """Latencies in milliseconds a run, by `clock`: asked for, and of the base and the smaller model.

    All are of `device`, a CPU by its name, with so many `threads`; of runs of several shapes, they are their mean,
    and `parts` are those of each. `requested` are the milliseconds that were asked for, `base` those of the whole
    model, `predicted` those of the smaller one by the profile. `measured` are the milliseconds that it was measured
    to take here, against the base in one interleaved run (`verdict`); nothing where the device is another one;
    `interval` is the 95 % interval of `measured`. `possible` is the least that any widths are predicted to take,
    every group at its floor. `corrections` counts how often the widths were chosen anew after measuring. `bound` says
    how far from the best the widths may be, by the profile: the relative distance of the damage done from its lower
    bound; nothing where that is not known. `operators` is where the time goes, by the profile. `notes` say what may
    be unexpected.

    >>> timing = Timing("Cortex-A76", threads=1, requested=4.0, base=8.0, predicted=3.97, possible=1.2)
    >>> print(timing)
    latency on Cortex-A76, 1 thread, CPU time:
      base 8 ms, requested 4 ms, predicted 3.97 ms
      possible from 1.2 ms on, by the profile
    >>> timing.prediction
    'predicted to be faster, 2.02x: 8 ms to 3.97 ms on Cortex-A76, by its profile, not measured'
    >>> timing.landed, timing.interval, timing.noise, timing.off
    (<Landed.MET: 'met'>, None, 0.0, 0.9925)
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
    parts: tuple[Part, ...] = ()
    operators: tuple[OperatorTime, ...] = ()

    @property
    def prediction(self) -> str:
        """What is said of the speed on another CPU than this one."""
        return (
            f"predicted to be faster, {self.base / self.predicted:.2f}x: {text(self.base)} to {text(self.predicted)} "
            f"on {self.device}, by its profile, not measured"
        )

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of what was measured, in milliseconds; of a mean, that of its parts' ends."""
        if len(self.parts) < 2:
            return _interval(self.measured, self.verdict)
        ends = [(part.weight, part.interval) for part in self.parts]
        known = [(weight * low, weight * high) for weight, each in ends if each is not None for low, high in [each]]
        return (sum(low for low, _ in known), sum(high for _, high in known)) if len(known) == len(ends) else None

    @property
    def landed(self) -> Landed:
        """Whether what was measured is what was asked for, or may be."""
        low, high = self.interval or (self.measured or self.predicted,) * 2
        return where_landed(self.off, low / self.requested, high / self.requested, self.noise)

    @property
    def noise(self) -> float:
        """How far from itself the base was measured to be; of several shapes, the largest."""
        verdicts = [part.verdict for part in self.parts] or [self.verdict]
        return max((each.noise for each in verdicts if each is not None), default=0.0)

    @property
    def off(self) -> float:
        """What was measured over what was asked for."""
        return (self.predicted if self.measured is None else self.measured) / self.requested

    def __str__(self) -> str:
        of = f", {self.parts[0].shapes}" if len(self.parts) == 1 else ", mean" if self.parts else ""
        lines = [f"latency on {self.device}, {Clock(self.threads, self.clock != CPU_TIME)}{of}:"]
        found = f"predicted {text(self.predicted)}"
        if self.measured is not None:
            between = " to ".join(f"{ms / self.requested:.1%}" for ms in self.interval or ())
            share = f"{self.measured / self.requested:.1%} of it" + (f", 95 % interval {between}" if between else "")
            found = f"measured {text(self.measured)} ({share}), {found}"
        lines.append(f"  base {text(self.base)}, requested {text(self.requested)}, {found}")
        lines += [f"  {part}" for part in self.parts if len(self.parts) > 1]
        lines.append(f"  possible from {text(self.possible)} on, by the profile")
        if self.corrections:
            times = "once" if self.corrections == 1 else f"{self.corrections} times"
            lines.append(f"  the widths were chosen anew {times}, after measuring")
        if self.bound is not None:
            lines.append(f"  the widths do at most {self.bound:.1%} more damage than the best would, by the profile")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def _interval(measured: float | None, verdict: Verdict | None) -> tuple[float, float] | None:
    if measured is None or verdict is None:
        return None
    ratio = verdict.ratio
    return measured * ratio.value / ratio.high, measured * ratio.value / ratio.low


def noted(timing: Timing, note: str) -> Timing:
    """With one more note."""
    return replace(timing, notes=(*timing.notes, note))


def a_step_short(timing: Timing) -> Timing:
    """With a note that says why nothing nearer was found."""
    found = "predicted" if timing.measured is None else "measured"
    return noted(
        timing, f"{found} {timing.off:.1%} of what was asked for; one step more of a group's widths takes too long"
    )


def doubtful(timing: Timing) -> Timing:
    """With a note that what was measured tells nothing, and why."""
    return noted(
        timing,
        f"too noisy here: the base differs from itself by up to {timing.noise:.1%}, so that nothing is told of whether "
        "the budget is met; these widths are predicted to meet it. Remedy: let nothing else run meanwhile, or ask for "
        "fewer threads",
    )


def text(ms: float) -> str:
    """Milliseconds with three digits.

    >>> text(17.724), text(0.01334)
    ('17.7 ms', '0.0133 ms')
    """
    return f"{ms:.3g} ms" if ms < 100 else f"{ms:.0f} ms"
