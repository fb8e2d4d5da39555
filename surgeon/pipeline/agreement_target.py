"""The smallest model that keeps so much of the function: ratios are bisected, of one analysis."""

from __future__ import annotations

from dataclasses import replace

from surgeon.calibration.stand_in import REMEDY
from surgeon.errors import Infeasible, InvalidArgument
from surgeon.pipeline.decision import Prepared, Result, carried_out
from surgeon.support.progress import counter

#: How often the ratios that are left are halved, and the largest of them.
HALVED = 6
MOST = 0.96


def smallest(prepared: Prepared, least: float) -> Result:
    """The result of the largest ratio, of those tried, that keeps an agreement of at least `least`.

    Raises:
        InvalidArgument: there are no inputs to tell.
        Infeasible: the smallest ratio that was tried keeps less, or nothing can be removed.
    """
    if prepared.data is None:
        raise InvalidArgument(
            f"min_agreement={least!r} is told by inputs, and noise does not serve: "
            f"{prepared.unserved or 'nothing is fitted'}; pass unlabeled inputs as data="
        )
    low, high, best, nearest = 0.0, MOST, None, ""
    with counter("agreement") as progress:
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
            share = found.agreement.share if found.agreement is not None else 0.0
            if share >= least:
                low, best = ratio, found
            else:
                high, nearest = ratio, f"a ratio of {ratio:.3g} keeps {share:.6f}"
    if best is None:
        raise Infeasible(
            f"min_agreement={least!r}: no smaller model that was tried keeps it; {nearest}. Remedy: {REMEDY}, ask for "
            "less, or relax ignore=, min_width= or align="
        )
    repair = prepared.options.repair
    if prepared.options.data.source is None or not (repair.distill and repair.compensate):
        return best
    distilled = carried_out(prepared.options, best.made)
    kept = distilled.agreement is not None and distilled.agreement.share >= least
    return distilled if kept else best


def _tried(prepared: Prepared, ratio: float, distill: bool) -> Result:
    target = replace(prepared.options.target, ratio=ratio)
    return carried_out(prepared.options, prepared.decide(target), distill)
