"""Whether one model is faster than another: statistics of interleaved timings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final, Literal

import numpy as np

Decision = Literal["faster", "slower", "no reliable difference"]
NO_DIFFERENCE: Final = "no reliable difference"

LOW = 10
"""The percentile that is compared: interference only ever adds time, so the low end is the model's own."""

NOISY: Final = 0.05
"""From this noise on, the base's largest distance from itself, nothing is told of differences that may be noise."""

_RESAMPLES = 2000
_CONFIDENCE = 95


@dataclasses.dataclass(frozen=True)
class Ratio:
    """The ratio of two times, first over second, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f}x [{self.low:.2f}, {self.high:.2f}]"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`ratio` is base / slim, `control` base / base; `noise` the largest relative error the control shows.

    `doubt` names other statistics of the same timings that differ from it by more than that, or says that the noise is
    too large to tell; empty if neither is so.
    """

    ratio: Ratio
    control: Ratio
    noise: float
    decision: Decision
    doubt: str = ""


def compare_timings(
    base: np.ndarray,
    slim: np.ndarray,
    control: np.ndarray,
    *,
    seed: int = 0,
    others: Mapping[str, float] | None = None,
) -> Comparison:
    """Decide between two models from timings of shape (rounds,); round i holds one timing of each.

    The ratio is that of the 10th percentiles; its interval is bootstrapped over rounds, since what slows a round down
    slows all of its timings. `control` is the base model measured as if it were another one: its interval around 1
    shows the noise of this machine, and `ratio`'s interval must exclude 1 by more than that.

    Where timings have two modes, as with several threads that wake in time or not, the 10th percentiles may belong to
    different modes, and be stable all the same. So the interval is widened to the ratio of the medians. `others` are
    ratios by other clocks, by name: if one lies on the other side of 1 than the interval, there is no verdict.

    >>> rng = np.random.default_rng(0)
    >>> noise = rng.lognormal(0, 0.05, (3, 50))
    >>> compare_timings(2 * noise[0], noise[1], 2 * noise[2]).decision
    'faster'
    """
    rng = np.random.default_rng(seed)
    rounds = rng.integers(len(base), size=(_RESAMPLES, len(base)))
    ratio = _bootstrap(base, slim, rounds)
    others = {"medians": float(np.median(base) / np.median(slim)), **(others or {})}
    against = _contradiction(ratio, others)
    ratio = dataclasses.replace(ratio, low=min(ratio.low, others["medians"]), high=max(ratio.high, others["medians"]))
    same = _bootstrap(base, control, rounds)
    margin = max(abs(np.log(same.low)), abs(np.log(same.high)))
    decision: Decision = NO_DIFFERENCE
    if np.log(ratio.low) > margin:
        decision = "faster"
    elif np.log(ratio.high) < -margin:
        decision = "slower"
    if against:
        decision = NO_DIFFERENCE
    noise = float(np.expm1(margin))
    apart = [
        f"by the {name} {value:.2f}x" for name, value in others.items()
        if not ratio.low / (1 + noise) <= value <= ratio.high * (1 + noise)
    ]
    if decision == NO_DIFFERENCE and noise > NOISY:
        apart = [f"too noisy here: the base differs from itself by up to {noise:.1%}", *apart]
    return Comparison(ratio, same, noise, decision, against or ", ".join(apart))


def _contradiction(ratio: Ratio, others: Mapping[str, float]) -> str:
    """The statistics that lie on the other side of 1 than the interval, as a message."""
    side = 1 if ratio.low > 1 else -1 if ratio.high < 1 else 0
    against = [f"{name} {value:.2f}x" for name, value in others.items() if side * np.log(value) < 0]
    if not against:
        return ""
    return f"too noisy to tell: by the {LOW}th percentiles {ratio.value:.2f}x, by the {', by the '.join(against)}"


def _bootstrap(numerator: np.ndarray, denominator: np.ndarray, rounds: np.ndarray) -> Ratio:
    ratios = np.percentile(numerator[rounds], LOW, axis=1) / np.percentile(denominator[rounds], LOW, axis=1)
    tail = (100 - _CONFIDENCE) / 2
    low, high = np.percentile(ratios, (tail, 100 - tail))
    value = np.percentile(numerator, LOW) / np.percentile(denominator, LOW)
    return Ratio(float(value), float(low), float(high))
