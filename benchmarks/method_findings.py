"""The published findings on pruning, as comparisons of runs that share everything else, the seed too."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from surgeon.reporting.figures import FAINT, INK, SLIM, canvas, style
from surgeon.study import Run

Row = dict[str, Any]
Settings = Mapping[str, Any]

#: Two-sided 95 % quantiles of Student's distribution, by degrees of freedom.
STUDENT = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}
SEEDS = (0, 1, 2, 3, 4)
FEWEST = 3


@dataclass(frozen=True)
class Case:
    """A network, what is removed of it, and how much; on so many seeds."""

    network: str
    removed: str
    ratio: float
    seeds: tuple[int, ...] = SEEDS

    def __str__(self) -> str:
        return f"{self.network}, {self.ratio:.0%} of its {'MACs' if self.removed == 'units' else 'connections'}"

    def runs(self, settings: Settings) -> list[Run]:
        """A run a seed."""
        made = Run(**{"removed": self.removed, "ratio": self.ratio, **settings})
        return [replace(made, seed=seed) for seed in self.seeds]


@dataclass(frozen=True)
class Finding:
    """`better` should come out above `worse` by `value`, "before" or "after" retraining.

    Where a side names several settings, such as strengths of a penalty, the one with the best mean stands for it.
    """

    name: str
    claim: str
    better: tuple[Settings, ...]
    worse: tuple[Settings, ...]
    cases: tuple[Case, ...]
    value: str = "after"

    def runs(self) -> list[tuple[str, Run]]:
        """All that it needs, each with its network."""
        sides = (*self.better, *self.worse)
        return [(case.network, run) for case in self.cases for side in sides for run in case.runs(side)]


@dataclass(frozen=True)
class Effect:
    """The paired differences of a case in points, seed by seed; `low` and `high` are a 95 % interval of the mean."""

    case: Case
    differences: tuple[float, ...]
    better: str
    worse: str
    mean: float = field(init=False)
    low: float = field(init=False)
    high: float = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.differences)
        mean = statistics.mean(self.differences)
        reach = STUDENT[count - 1] * statistics.stdev(self.differences) / count**0.5
        for name, value in (("mean", mean), ("low", mean - reach), ("high", mean + reach)):
            object.__setattr__(self, name, value)

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if not any(self.differences):
            return "no difference"
        return "reproduced" if self.low > 0 else "refuted" if self.high < 0 else "open"


CONNECTED = tuple(Case("connected", "units", ratio) for ratio in (0.75, 0.9))
RESIDUAL = tuple(Case("residual", "units", ratio) for ratio in (0.5, 0.75))
SPARSE = tuple(Case("connected", "connections", ratio) for ratio in (0.9, 0.95))
SPARSE_RESIDUAL = (Case("residual", "connections", 0.9),)
EVERY = (*CONNECTED, *RESIDUAL, *SPARSE, *SPARSE_RESIDUAL)
L1 = ({"penalty": "l1:1e-4"}, {"penalty": "l1:1e-3"})
L2 = ({"penalty": "l2:1e-3"}, {"penalty": "l2:1e-2"})
KEPT: Settings = {}

FINDINGS = (
    Finding(
        "random", "random is worse: least magnitude against at random, after retraining",
        (KEPT,), ({"criterion": "random"},), EVERY,
    ),
    Finding(
        "random-before", "random is worse, before retraining",
        (KEPT,), ({"criterion": "random"},), EVERY, "before",
    ),
    Finding(
        "global", "global beats uniform: compared over all layers against the same share of each",
        (KEPT,), ({"scope": "local"},), EVERY,
    ),
    Finding(
        "scratch", "pruned and retrained beats trained from scratch: the same architecture, as many epochs in all",
        (KEPT,), ({"method": "scratch"},), (*CONNECTED, *RESIDUAL),
    ),
    Finding(
        "survivors", "survivors kept beat re-initialized, after as much retraining",
        (KEPT,), ({"survivors": "reinitialized"},), EVERY,
    ),
    Finding(
        "l2-after", "L2 while training beats L1 after retraining (the better of two strengths each)",
        L2, L1, SPARSE,
    ),
    Finding(
        "l1-before", "L1 while training beats L2 before retraining (the better of two strengths each)",
        L1, L2, SPARSE, "before",
    ),
    Finding(
        "iterative", "iterative beats one shot at as many epochs: five steps in the first third of retraining, "
        "against all at its start (the better of two schedules)",
        ({"schedule": "steps:5"}, {"schedule": "exponential:5"}), (KEPT,), EVERY,
    ),
)  # fmt: skip


def effect(finding: Finding, case: Case, rows: Mapping[str, Row]) -> Effect | None:
    """The effect in a case, on the seeds of which all runs are there; nothing where those are fewer than three."""
    compared = {name for side in (finding.better, finding.worse) for settings in side for name in settings}
    sides = [
        {_label(settings, compared): _values(finding, case, settings, rows) for settings in side}
        for side in (finding.better, finding.worse)
    ]
    seeds = sorted(set.intersection(*(set(values) for side in sides for values in side.values())))
    if len(seeds) < FEWEST:
        return None
    (first, good), (second, bad) = (
        max(side.items(), key=lambda item: statistics.mean(item[1][seed] for seed in seeds)) for side in sides
    )
    return Effect(case, tuple(100 * (good[seed] - bad[seed]) for seed in seeds), first, second)


def _values(finding: Finding, case: Case, settings: Settings, rows: Mapping[str, Row]) -> dict[int, float]:
    """What was found, by seed."""
    found = ((run.seed, rows.get(key(case.network, run), {}).get(finding.value)) for run in case.runs(settings))
    return {seed: value for seed, value in found if value is not None}


def _label(settings: Settings, compared: Iterable[str]) -> str:
    """What a side has of what is compared."""
    return ", ".join(str(settings.get(name, getattr(Run(), name))) for name in compared)


def key(network: str, run: Run) -> str:
    """The name of a run's row."""
    return f"run:{network}:{run.key}"


def summary(effects: Sequence[Effect]) -> str:
    """One word for all cases, or how many say what."""
    verdicts = [each.verdict for each in effects]
    order = dict.fromkeys(("reproduced", "refuted", "open", *verdicts))
    counts = {name: verdicts.count(name) for name in order if name in verdicts}
    if len(counts) == 1:
        return f"**{next(iter(counts))}**" + (f" in all {len(effects)}" if len(effects) > 1 else "")
    return ", ".join(f"**{name}** in {count}" for name, count in counts.items()) + f" of {len(effects)}"


def figure(finding: Finding, effects: Sequence[Effect]) -> Any:
    """A row a case: each seed's difference, the mean and its interval."""
    with style():
        made = canvas(7.0, 1.2 + 0.42 * len(effects))
        axes = made.subplots()
        axes.axvline(0, color=FAINT, linewidth=1)
        for row, each in enumerate(effects):
            jitter = np.linspace(-0.14, 0.14, len(each.differences))
            axes.scatter(each.differences, row + jitter, s=12, color=FAINT, zorder=2)
            axes.plot([each.low, each.high], [row, row], color=SLIM, linewidth=2, zorder=3)
            axes.scatter([each.mean], [row], s=34, color=SLIM, zorder=4)
            axes.annotate(
                each.verdict, (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, color=INK
            )
        axes.set_yticks(range(len(effects)), [str(each.case) for each in effects], fontsize=8.5)
        axes.set_ylim(len(effects) - 0.4, -0.6)
        axes.set_xlabel("points of accuracy in favor of the finding; each seed, mean, 95 % interval", fontsize=8.5)
        made.suptitle(textwrap.fill(finding.claim, 95), x=0.01, ha="left", fontsize=9.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.25)
    return made
