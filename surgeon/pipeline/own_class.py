"""Widths for a budget, and once more with those tied that the model's own class derives from one another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from surgeon.allocation.allocate import allocate
from surgeon.allocation.choose import choose
from surgeon.allocation.damage_curves import damages
from surgeon.allocation.reach import outlook
from surgeon.cost.cost import Cost
from surgeon.errors import Infeasible, NothingToPrune, SurgeryError, first_line
from surgeon.groups.coupling import Groups
from surgeon.groups.ties import Ties
from surgeon.pipeline.latency_target import LatencyTarget, Timing
from surgeon.pipeline.options import Options
from surgeon.support.progress import stage
from surgeon.surgery.tying import Needed, needed

#: A plan with ties may do up to this many times the damage of the one without, and so much more.
WORSE, SLIGHT = 4.0, 0.1


@dataclass(frozen=True)
class Choice:
    """The units that stay, by leaf, and what is known of that choice.

    `damage` is that of the plan by the curves or scores that it was chosen by. `tied` says in one line which widths
    were tied and what that cost, or why they were not; `free` is the choice without ties, where there are some.
    """

    keep: dict[int, tuple[int, ...]]
    damage: float
    timing: Timing | None = None
    possible: float | None = None
    unaligned: Mapping[str, int] = field(default_factory=dict)
    tied: str = ""
    free: Choice | None = None


@dataclass(frozen=True)
class Chooser:
    """Chooses widths for a target, by scores or by curves of damage."""

    groups: Groups
    cost: Cost
    scores: Mapping[int, np.ndarray]
    curves: Mapping[int, np.ndarray] | None
    options: Options
    timer: LatencyTarget | None = None

    def __call__(self, ties: Ties | None = None) -> Choice:
        """The choice; with `ties`, the one in which these groups keep the same share of their units.

        Raises:
            Infeasible: the budget can't be met.
        """
        target, select = self.options.target, self.options.select
        if self.timer is not None:
            keep, timing = self.timer.decide(
                self.scores, target.latency_ms, target.ratio, select.min_width, target.max_params, self.curves, ties
            )
            return Choice(keep, self._damage(keep), timing)
        assert target.ratio is not None  # a target has seen to that
        with stage("plan"):
            widths = allocate(
                self.groups, self.scores, self.cost, budget=target.budget, ratio=target.ratio, scope=select.scope,
                align=select.align, min_width=select.min_width, curves=self.curves, ties=ties,
            )
            keep = choose(self.groups, self.scores, widths)
            possible, unaligned = outlook(
                self.groups, self.cost, widths, budget=target.budget, ratio=target.ratio, align=select.align,
                min_width=select.min_width,
            )
        return Choice(keep, self._damage(keep), None, possible, unaligned)

    def _damage(self, keep: Mapping[int, Any]) -> float:
        curves = self.curves if self.curves is not None else damages(self.groups, self.scores, self.cost)
        return sum(float(curves[leaf][len(units) - 1]) for leaf, units in keep.items())


def for_own_class(model: nn.Module, groups: Groups, choose_widths: Callable[..., Choice], form: str) -> Choice:
    """The choice that the model's own class can hold, if the budget can be met by one that does not much more damage.

    Else the choice without ties, with what was found. With the form "module", there is no limit to the damage.

    Raises:
        Infeasible: the budget can't be met, whatever the form.
        SurgeryError: it can't be met with ties, and the form is "module".
    """
    free = choose_widths()
    if form == "graph":
        return free
    with stage("operate"):
        found = needed(model, groups, free.keep)
    if found is None:
        return free
    try:
        tied = choose_widths(found.ties)
    except (Infeasible, NothingToPrune) as error:
        if form == "module":
            raise SurgeryError(f"{found.reason}. {_said(found)}, but then {error}") from error
        return replace(free, tied=f"{_said(found)}, but then {first_line(error)}")
    cost = f"the damage is {tied.damage:.3g}, not {free.damage:.3g}"
    if form != "module" and tied.damage > WORSE * free.damage + SLIGHT:
        return replace(free, tied=f'{_said(found)}, but then {cost}; form="module" takes that')
    return replace(tied, tied=f"{_said(found)}: {cost}", free=free)


def _said(found: Needed) -> str:
    ties, parts = found.ties, []
    if ties.classes:
        count = sum(map(len, ties.classes))
        sets = f" in {len(ties.classes)} sets" if len(ties.classes) > 1 else ""
        parts.append(f"{count} groups keep the same share{sets}")
    if ties.held:
        parts.append(f"{len(ties.held)} stay whole")
    more = " …" if len(found.places) > 1 else ""
    return f"its code derives widths from one another ({found.places[0]}{more}), so {' and '.join(parts)}"
