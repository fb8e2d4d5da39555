"""Schedules: which share of the target is removed after how many steps of the optimizer.

A schedule is a function of the step, counted from 0 before the first, that gives a share from 0 to 1 and never falls.
Those here are compared and printed by their arguments; any function of the user's own does as well.

>>> schedule = steps(start=100, end=300, n=3)
>>> [round(schedule(step), 2) for step in (99, 100, 199, 200, 300, 1000)]
[0.0, 0.33, 0.33, 0.67, 1.0, 1.0]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from surgeon.errors import InvalidArgument

#: From the step to the share of the target that is removed by then.
Schedule = Callable[[int], float]


@dataclass(frozen=True)
class OneShot:
    """All at step `at`."""

    at: int

    def __call__(self, step: int) -> float:
        return 1.0 if step >= self.at else 0.0


@dataclass(frozen=True)
class Steps:
    """The same share at each of `n` steps, evenly from `start` to `end`."""

    start: int
    end: int
    n: int

    def __call__(self, step: int) -> float:
        if step < self.start:
            return 0.0
        if step >= self.end:
            return 1.0
        return (1 + (step - self.start) * (self.n - 1) // (self.end - self.start)) / self.n


@dataclass(frozen=True)
class Cubic:
    """Fast at `start`, slowly towards `end`, every so many steps."""

    start: int
    end: int
    every: int

    def __call__(self, step: int) -> float:
        return 1 - (1 - _passed(step, self.start, self.end, self.every)) ** 3


@dataclass(frozen=True)
class Exponential:
    """Falling off from `start` to `end` at a rate, every so many steps."""

    start: int
    end: int
    every: int
    rate: float

    def __call__(self, step: int) -> float:
        return math.expm1(-self.rate * _passed(step, self.start, self.end, self.every)) / math.expm1(-self.rate)


def one_shot(at: int = 0) -> OneShot:
    """Everything at once, at step `at`; 0 is before the training.

    >>> one_shot(10)(9), one_shot(10)(10)
    (0.0, 1.0)

    Raises:
        InvalidArgument: `at` is no integer of at least 0.
    """
    return OneShot(_integer(at, "at", 0))


def steps(start: int, end: int, n: int) -> Steps:
    """A fixed share of the target, 1 / `n`, at each of `n` steps: the first at `start`, the last at `end`.

    Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015, arXiv:1506.02626.

    >>> [round(steps(0, 10, 2)(step), 2) for step in (0, 9, 10)]
    [0.5, 0.5, 1.0]

    Raises:
        InvalidArgument: not 0 ≤ `start` ≤ `end`, `n` less than 1, or fewer than `n` steps from `start` to `end`.
    """
    _integer(start, "start", 0)
    _integer(end, "end", start)
    _integer(n, "n", 1)
    if n > end - start + 1:
        raise InvalidArgument(f"n={n}: there are but {end - start + 1} steps from start={start} to end={end}")
    return Steps(start, end, n)


def cubic(start: int, end: int, every: int = 1) -> Cubic:
    """Most of it early, while there is much to choose from: 1 - (1 - t)³, t from 0 at `start` to 1 at `end`.

    Zhu & Gupta, "To prune, or not to prune", 2017, arXiv:1710.01878.

    >>> [round(cubic(start=100, end=200, every=50)(step), 3) for step in (100, 149, 150, 200)]
    [0.0, 0.0, 0.875, 1.0]

    Raises:
        InvalidArgument: not 0 ≤ `start` < `end`, or `every` less than 1.
    """
    return Cubic(*_span(start, end, every))


def exponential(start: int, end: int, every: int = 1, rate: float = 3.0) -> Exponential:
    """(1 - exp(-rate · t)) / (1 - exp(-rate)), t from 0 at `start` to 1 at `end`.

    With `rate` = -ln(1 - target) each step removes the same fraction of what is left, as in Frankle & Carbin, "The
    Lottery Ticket Hypothesis", 2019, arXiv:1803.03635.

    >>> halves = exponential(0, 2, rate=-math.log(1 - 0.75))
    >>> [round(1 - 0.75 * halves(step), 3) for step in (0, 1, 2)]
    [1.0, 0.5, 0.25]

    Raises:
        InvalidArgument: not 0 ≤ `start` < `end`, `every` less than 1, or `rate` not above 0.
    """
    if type(rate) not in (int, float) or not 0 < rate < math.inf:
        raise InvalidArgument(f"rate={rate!r}: give a number above 0; the larger, the more goes early")
    return Exponential(*_span(start, end, every), float(rate))


def share_at(schedule: Schedule, step: int) -> float:
    """What a schedule says of a step, checked.

    >>> share_at(lambda step: min(1, step / 10), 5)
    0.5

    Raises:
        InvalidArgument: it is no function, or gives no number from 0 to 1.
    """
    if not callable(schedule):
        raise InvalidArgument(
            f"schedule={schedule!r}: give one of surgeon.schedules, or a function from the step to a share from 0 to 1"
        )
    share: Any = schedule(step)
    try:
        value = float(share)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"the schedule gives {share!r} at step {step}, not a share from 0 to 1") from error
    if not 0 <= value <= 1:
        raise InvalidArgument(f"the schedule gives {share!r} at step {step}: a share of the target is from 0 to 1")
    return value


def _passed(step: int, start: int, end: int, every: int) -> float:
    """How much of the way from `start` to `end` is behind, as of the last multiple of `every`."""
    if step >= end:
        return 1.0
    return max(0, (step - start) // every * every) / (end - start)


def _span(start: int, end: int, every: int) -> tuple[int, int, int]:
    _integer(start, "start", 0)
    _integer(end, "end", start + 1)
    _integer(every, "every", 1)
    return start, end, every


def _integer(value: int, name: str, least: int) -> int:
    if type(value) is not int or value < least:
        raise InvalidArgument(f"{name}={value!r}: give an integer of at least {least}")
    return value
