"""The smallest model that keeps so much of the original, however that is told: ratios are bisected, of one analysis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from surgeon.calibration.stand_in import REMEDY
from surgeon.errors import Infeasible, InvalidArgument
from surgeon.pipeline.decision import Prepared, Result, carried_out
from surgeon.support.progress import counter

#: How often the ratios that are left are halved, and the largest of them.
HALVED = 6
MOST = 0.96


@dataclass(frozen=True)
class Goal:
    """At least the share `least` is to be kept, by the option `name`; `kept` tells it of a result."""

    name: str
    least: float
    kept: Callable[[Result], float]

    def __str__(self) -> str:
        return f"{self.name}={self.least!r}"


def goal(prepared: Prepared) -> Goal | None:
    """What is to be kept, where that was asked for instead of a ratio.

    Raises:
        InvalidArgument: there are no inputs to tell.
    """
    least, share, metric = prepared.options.repair.min_agreement, prepared.options.job.min_metric, prepared.metric
    if least is not None:
        if prepared.data is None:
            raise InvalidArgument(
                f"min_agreement={least!r} is told by inputs, and noise does not serve: "
                f"{prepared.unserved or 'nothing is fitted'}; pass unlabeled inputs as data="
            )
        return Goal("min_agreement", least, lambda found: found.agreement.share if found.agreement is not None else 0.0)
    if share is None or metric is None:
        return None
    return Goal("min_metric", share, lambda found: metric.share(found.operation.module))


def smallest(prepared: Prepared, goal: Goal) -> Result:
    """The result of the largest ratio, of those tried, that keeps what it is to.

    Raises:
        Infeasible: the smallest ratio that was tried keeps less, or nothing can be removed.
    """
    prepared = prepared.profiled()
    low, high, best, nearest = 0.0, MOST, None, ""
    with counter(goal.name) as progress:
        for step in range(HALVED):
            progress(step, HALVED)
            ratio = (low + high) / 2
            try:
                found = _tried(prepared, ratio, distill=False)
            except Infeasible as error:
                high = min(high, error.reachable) if error.reachable and error.reachable > low else ratio
                if high > ratio:
                    continue
                high, nearest = ratio, str(error)
                continue
            share = goal.kept(found)
            if share >= goal.least:
                low, best = ratio, found
            else:
                high, nearest = ratio, f"a ratio of {ratio:.3g} keeps {share:.6f}"
    if best is None:
        raise Infeasible(
            f"{goal}: no smaller model that was tried keeps it; {nearest}. Remedy: {REMEDY}, ask for less, or relax "
            "ignore=, min_width= or align="
        )
    repair = prepared.options.repair
    if prepared.options.data.source is None or not (repair.distill and repair.compensate):
        return best
    distilled = carried_out(prepared.options, best.made)
    return distilled if goal.kept(distilled) >= goal.least else best


def _tried(prepared: Prepared, ratio: float, distill: bool) -> Result:
    target = replace(prepared.options.target, ratio=ratio)
    return carried_out(prepared.options, prepared.decide(target), distill)
