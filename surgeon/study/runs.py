"""The runs of a study: their settings and names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from surgeon.errors import InvalidArgument
from surgeon.scoring import CRITERIA, GRADIENT_CRITERIA
from surgeon.support.arguments import SCOPES, SHARE, choice

#: Prune a trained model; train the pruned architecture, or a dense network of the same size with all widths cut alike,
#: from scratch; or train the dense model for as long.
METHODS = ("prune", "scratch", "small", "dense")
#: What happens to the remaining weights before retraining.
SURVIVORS = ("kept", "rewound", "reinitialized")
#: What is removed: coupled units, or single connections.
REMOVED = ("units", "connections")
BASELINES = ("random", "scratch", "small", "dense")
ONE_SHOT = "one-shot"
NO_PENALTY = "none"
_SCHEDULE = re.compile(r"one-shot|(steps|cubic|exponential):([1-9]\d*)")
_PENALTY = re.compile(r"none|(l1|l2|group_lasso|batch_norm_l1):(\d.*)")


@dataclass(frozen=True)
class Run:
    """The settings of one row of a study. Widths are not aligned (`align=1`), so that the criteria alone are compared.

    Args:
        method: see METHODS.
        criterion: the name of a criterion.
        ratio: the share of the MACs, or of the connections, to remove.
        scope: "global", or "local" for the same share of each layer.
        schedule: "one-shot", or "steps:N", "cubic:N" or "exponential:N" to prune N times during retraining.
        survivors: "kept", "rewound" to an early state of training, or "reinitialized".
        penalty: during training and retraining: "none", or its name and strength, such as "l1:1e-5".
        removed: "units" or "connections".
        seed: of all random numbers.

    >>> Run(criterion="l1", ratio=0.75).key
    'prune-l1-0.75-global-one-shot-kept-none-units-s0'
    >>> Run(schedule="steps:3").iterative
    True
    >>> Run(method="small", criterion="l2", ratio=0.5, scope="local", seed=2).plain.key
    'small-magnitude-0.5-global-one-shot-kept-none-units-s2'

    Raises:
        InvalidArgument: a setting has another value, or two of them can't be combined.
    """

    method: str = "prune"
    criterion: str = "magnitude"
    ratio: float = 0.5
    scope: str = "global"
    schedule: str = ONE_SHOT
    survivors: str = "kept"
    penalty: str = NO_PENALTY
    removed: str = "units"
    seed: int = 0

    def __post_init__(self) -> None:
        SHARE("ratio", self.ratio)
        known = {
            "method": METHODS, "criterion": (*CRITERIA, *GRADIENT_CRITERIA), "scope": SCOPES, "survivors": SURVIVORS,
            "removed": REMOVED,
        }
        for name, values in known.items():
            choice(*values)(name, getattr(self, name))
        if not _SCHEDULE.fullmatch(self.schedule):
            raise InvalidArgument(
                f"schedule={self.schedule!r}: give one-shot, steps:N, cubic:N or exponential:N, such as steps:5"
            )
        if not _PENALTY.fullmatch(self.penalty) or not _is_number(self.penalty.partition(":")[2] or "0"):
            raise InvalidArgument(f"penalty={self.penalty!r}: give none, or one with its strength, such as l1:1e-5")
        if type(self.seed) is not int or self.seed < 0:
            raise InvalidArgument(f"seed={self.seed!r}: give an integer of at least 0")
        if self.survivors != "kept" and self.schedule != ONE_SHOT:
            raise InvalidArgument(f"survivors={self.survivors!r} go with schedule='one-shot', not {self.schedule!r}")
        if self.removed == "connections" and (self.method != "prune" or self.criterion not in ("magnitude", "random")):
            raise InvalidArgument(
                "connections are pruned by magnitude or at random, from a trained model: the method can't be "
                f"{self.method} with the criterion {self.criterion}"
            )

    @property
    def key(self) -> str:
        """The run's name, which is a valid file name."""
        *parts, seed = (f"{value:g}" if isinstance(value, float) else str(value) for value in asdict(self).values())
        return "-".join([*(part.replace(":", "") for part in parts), f"s{seed}"])

    @property
    def iterative(self) -> bool:
        """Whether the model is pruned in several steps."""
        return self.schedule != ONE_SHOT

    @property
    def plain(self) -> Run:
        """The run with defaults for all settings that its method ignores."""
        default = Run()
        kept = {
            "prune": {field.name for field in fields(Run)},
            "scratch": {"method", "criterion", "ratio", "scope", "penalty", "seed"},
            "small": {"method", "ratio", "penalty", "seed"},
            "dense": {"method", "penalty", "seed"},
        }[self.method]
        other = {f.name: getattr(default, f.name) for f in fields(Run) if f.name not in kept}
        return replace(self, **(other | ({"ratio": 0.0} if self.method == "dense" else {})))


def schedule_of(run: Run) -> tuple[str, int]:
    """The kind of a run's schedule, and its number of steps."""
    kind, _, count = run.schedule.partition(":")
    return kind, int(count or 1)


def penalty_of(run: Run) -> tuple[str, float]:
    """The name of a run's penalty, and its strength."""
    name, _, strength = run.penalty.partition(":")
    return name, float(strength or 0)


def grid(
    *,
    criteria: Iterable[str] = ("magnitude",),
    ratios: Iterable[float] = (0.5,),
    scopes: Iterable[str] = ("global",),
    schedules: Iterable[str] = (ONE_SHOT,),
    survivors: Iterable[str] = ("kept",),
    penalties: Iterable[str] = (NO_PENALTY,),
    removed: Iterable[str] = ("units",),
    seeds: int | Iterable[int] = 3,
    baselines: Iterable[str] = BASELINES,
) -> tuple[Run, ...]:
    """Every combination of the settings, and its baselines, each run once.

    Survivors other than "kept" are combined with "one-shot" only.

    Args:
        criteria, ratios, scopes, schedules, survivors, penalties, removed: the values of a setting of `Run` each.
        seeds: the number of seeds, from 0, or the seeds.
        baselines: what each is held against: "random" units, "scratch" and "small" architectures trained from initial
            weights, and the "dense" model.

    >>> len(grid(criteria=["l1", "l2"], ratios=[0.5, 0.75], seeds=3, baselines=["random", "small"]))
    24

    Raises:
        InvalidArgument: a value is unknown, or there is no run.
    """
    baselines = tuple(baselines)
    for name in baselines:
        if name not in BASELINES:
            raise InvalidArgument(f"baseline {name!r} is unknown: choose among {', '.join(BASELINES)}")
    numbers = range(seeds) if isinstance(seeds, int) else seeds
    found: dict[Run, None] = {}
    combinations = itertools.product(numbers, ratios, criteria, scopes, schedules, survivors, penalties, removed)
    for seed, ratio, criterion, scope, schedule, survivor, penalty, what in combinations:
        if survivor != "kept" and schedule != ONE_SHOT:
            continue
        run = Run("prune", criterion, ratio, scope, schedule, survivor, penalty, what, seed)
        found[run] = None
        for name in baselines:
            if name == "random":
                found[replace(run, criterion="random")] = None
            elif what == "units" or name == "dense":
                found[replace(run, method=name, removed="units", schedule=ONE_SHOT, survivors="kept").plain] = None
    if not found:
        raise InvalidArgument("the study has no run: give at least one criterion, ratio, scope, schedule and seed")
    return tuple(found)


def parse(data: Any) -> Run:
    """A run from its JSON object.

    >>> parse(asdict(Run(ratio=0.25))) == Run(ratio=0.25)
    True

    Raises:
        InvalidArgument: it does not describe a run.
    """
    try:
        return Run(**data)
    except TypeError as error:
        raise InvalidArgument(f"{str(data)[:200]} is not a run: {error}") from error


def _is_number(text: str) -> bool:
    try:
        return 0 <= float(text) < float("inf")
    except ValueError:
        return False
