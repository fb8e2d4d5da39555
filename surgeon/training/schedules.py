"""Schedules: which share of the pruning target is reached after how many optimizer steps.

A schedule maps a step, 0 before the first, to a share from 0 to 1 and never decreases. Those here compare and print by
their arguments; any user-defined function works as well.

>>> schedule = steps(start=100, end=300, n=3)
>>> [round(schedule(step), 2) for step in (99, 100, 199, 200, 300, 1000)]
[0.0, 0.33, 0.33, 0.67, 1.0, 1.0]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from surgeon.errors import InvalidArgument
from surgeon.support.arguments import NATURAL, POSITIVE, Check, call, checked, function, integer, number, shown

#: From a step to the share of the target that is reached by then.
Schedule = Callable[[int], float]
SCHEDULE = function(
    "one of surgeon.schedules, or a function from the step to a share from 0 to 1", 1, (type, nn.Module)
)
_TAKEN: dict[str, Check] = {
    **dict.fromkeys(("at", "start", "end", "step"), NATURAL), "n": POSITIVE, "every": POSITIVE, "schedule": SCHEDULE,
    "rate": number("a number above 0; the larger, the more goes early", lambda value: value > 0),
}


@checked(_TAKEN)
@dataclass(frozen=True)
class OneShot:
    """Everything at once, at step `at`; step 0 is before training.

    >>> one_shot(10)(9), one_shot(10)(10)
    (0.0, 1.0)

    Raises:
        InvalidArgument: `at` is not an integer of at least 0.
    """

    at: int = 0

    def __call__(self, step: int) -> float:
        return 1.0 if step >= self.at else 0.0


@checked(_TAKEN)
@dataclass(frozen=True)
class Steps:
    """An equal share of the target, 1 / `n`, at each of `n` steps: the first at `start`, the last at `end`.

    Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015, arXiv:1506.02626.

    >>> [round(steps(0, 10, 2)(step), 2) for step in (0, 9, 10)]
    [0.5, 0.5, 1.0]

    Raises:
        InvalidArgument: not 0 ≤ `start` ≤ `end`, `n` less than 1, or fewer than `n` steps from `start` to `end`.
    """

    start: int
    end: int
    n: int

    def __post_init__(self) -> None:
        integer(self.start)("end", self.end)
        available = self.end - self.start + 1
        if self.n > available:
            raise InvalidArgument(f"n={self.n}: only {available} steps lie from start={self.start} to end={self.end}")

    def __call__(self, step: int) -> float:
        if step < self.start:
            return 0.0
        if step >= self.end:
            return 1.0
        return (1 + (step - self.start) * (self.n - 1) // (self.end - self.start)) / self.n


@dataclass(frozen=True)
class _Ramp:
    """A schedule that rises from `start` to `end`, every `every` steps."""

    start: int
    end: int
    every: int = 1

    def __post_init__(self) -> None:
        integer(self.start + 1)("end", self.end)

    def _elapsed(self, step: int) -> float:
        """The fraction of the ramp that lies behind, as of the last update."""
        if step >= self.end:
            return 1.0
        return max(0, (step - self.start) // self.every * self.every) / (self.end - self.start)


@checked(_TAKEN)
@dataclass(frozen=True)
class Cubic(_Ramp):
    """Most of it early, while there is much to choose from: 1 - (1 - t)³, t from 0 at `start` to 1 at `end`.

    `start` and `end` are steps, and t rises once in `every` steps.

    Zhu & Gupta, "To prune, or not to prune", 2017, arXiv:1710.01878.

    >>> [round(cubic(start=100, end=200, every=50)(step), 3) for step in (100, 149, 150, 200)]
    [0.0, 0.0, 0.875, 1.0]

    Raises:
        InvalidArgument: not 0 ≤ `start` < `end`, or `every` less than 1.
    """

    def __call__(self, step: int) -> float:
        return 1 - (1 - self._elapsed(step)) ** 3


@checked(_TAKEN)
@dataclass(frozen=True)
class Exponential(_Ramp):
    """(1 - exp(-rate · t)) / (1 - exp(-rate)), t from 0 at `start` to 1 at `end`.

    `start` and `end` are steps, and t rises once in `every` steps. The larger the `rate`, the more goes early.

    With `rate` = -ln(1 - target) each step removes the same fraction of what is left, as in Frankle & Carbin, "The
    Lottery Ticket Hypothesis", 2019, arXiv:1803.03635.

    >>> halves = exponential(0, 2, rate=-math.log(1 - 0.75))
    >>> [round(1 - 0.75 * halves(step), 3) for step in (0, 1, 2)]
    [1.0, 0.5, 0.25]

    Raises:
        InvalidArgument: not 0 ≤ `start` < `end`, `every` less than 1, or `rate` not above 0.
    """

    rate: float = 3.0

    def __call__(self, step: int) -> float:
        return math.expm1(-self.rate * self._elapsed(step)) / math.expm1(-self.rate)


one_shot, steps, cubic, exponential = OneShot, Steps, Cubic, Exponential


@checked(_TAKEN)
def share_at(schedule: Schedule, step: int) -> float:
    """The share that a schedule gives for a step, checked.

    >>> share_at(lambda step: min(1, step / 10), 5)
    0.5

    Raises:
        InvalidArgument: it is not a function, or does not give a number from 0 to 1.
    """
    share: Any = call("schedule", schedule, step)
    try:
        value = math.nan if isinstance(share, str | bytes) else float(share)  # of a tensor too
    except (TypeError, ValueError, RuntimeError):
        value = math.nan
    if not 0 <= value <= 1:
        raise InvalidArgument(f"the schedule gives {shown(share)} at step {step}: a share of the target is from 0 to 1")
    return value
