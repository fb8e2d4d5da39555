"""Widths for a budget, and once more with those tied that the model's own class derives from one another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from surgeon.allocation.choose import choose
from surgeon.allocation.configuration import allocate_told
from surgeon.allocation.damage_curves import damages
from surgeon.allocation.reach import outlook
from surgeon.cost.cost import Cost
from surgeon.errors import Infeasible, NotEquivalent, NothingToPrune, SurgeryError, first_line
from surgeon.groups.analyze import analyze_inputs
from surgeon.groups.coupling import Groups
from surgeon.groups.ties import Ties
from surgeon.pipeline.latency_target import LatencyTarget
from surgeon.pipeline.options import Options
from surgeon.pipeline.timing import Timing
from surgeon.plans.plan import Plan
from surgeon.support.progress import stage
from surgeon.surgery import Operation
from surgeon.surgery.build import Building
from surgeon.surgery.meanings import Reading
from surgeon.surgery.operate import OWN_CLASS
from surgeon.surgery.tying import Needed, needed
from surgeon.verification import Certificate

Keep = dict[int, tuple[int, ...]]

#: A plan with ties may do up to this many times the damage of the one without, and so much more.
WORSE, SLIGHT = 3.0, 0.05


@dataclass(frozen=True)
class Choice:
    """The units that stay, by leaf, and what is known of that choice.

    `damage` is that of the plan by the curves or scores that it was chosen by. `whole` are groups whose width no field
    of a configuration tells. `built` is the model that it makes, with the proof, where it was asked for. `unmeasured`
    says that the device is at hand, and the choice is the first that would be measured there.
    """

    keep: Keep
    damage: float
    timing: Timing | None = None
    possible: float | None = None
    unaligned: Mapping[str, int] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    built: tuple[Operation, Certificate] | None = None
    unmeasured: bool = False


@dataclass(frozen=True)
class Chooser:
    """Chooses widths for a target, by scores or by curves of damage."""

    model: nn.Module
    groups: Groups
    cost: Cost
    scores: Mapping[int, np.ndarray]
    curves: Mapping[int, np.ndarray] | None
    options: Options
    timer: LatencyTarget | None = None

    def __call__(self, ties: Ties | None = None, *, measured: bool = True) -> Choice:
        """The choice; with `ties`, the one in which these groups keep the same share of their units.

        A latency is as predicted where it is not to be `measured`.

        Raises:
            Infeasible: the budget can't be met.
        """
        target, select = self.options.target, self.options.select
        if self.timer is not None:
            keep, timing = self.timer.decide(
                self.scores, target.latency_ms, target.ratio, select.min_width, target.max_params, self.curves, ties,
                measured=measured,
            )
            return Choice(keep, self._damage(keep), timing, unmeasured=self.timer.here and not measured)
        assert target.ratio is not None  # a target has seen to that
        with stage("plan"):
            widths, whole = allocate_told(
                self.model, self.groups, self.scores, self.cost, budget=target.budget, ratio=target.ratio,
                scope=select.scope, align=select.align, min_width=select.min_width, curves=self.curves, ties=ties,
            )
            keep = choose(self.groups, self.scores, widths)
            possible, unaligned = outlook(
                self.groups, self.cost, widths, budget=target.budget, ratio=target.ratio, align=select.align,
                min_width=select.min_width,
            )
        return Choice(keep, self._damage(keep), None, possible, unaligned, whole)

    def _damage(self, keep: Mapping[int, Any]) -> float:
        curves = self.curves if self.curves is not None else damages(self.groups, self.scores, self.cost)
        return sum(float(curves[leaf][len(units) - 1]) for leaf, units in keep.items())


#: Carries out what is kept, in a form.
Build = Callable[[Keep, str], tuple[Operation, Certificate]]


def at_example_sizes(model: nn.Module, groups: Groups) -> Build:
    """What carries out choices on `groups` that are of a graph for other sizes than those of the example inputs."""
    here = analyze_inputs(model, groups.graph.inputs)
    building = Building(Reading(model, here))
    return lambda keep, form: building(Plan.of(groups, keep, {}, model=model).keep(here), form)


def built(
    model: nn.Module, groups: Groups, choose_widths: Callable[..., Choice], form: str, building: Build | None = None
) -> Choice:
    """The choice, and what it makes: of the user's own class if its code can hold it.

    If it can't, the choice with ties that it can hold, if the budget can be met by one that does not much more damage;
    else the one without, as a graph. With the form "module", there is no limit to the damage. `building` carries it
    out, by default on `groups`.

    Raises:
        Infeasible: the budget can't be met, whatever the form.
        SurgeryError, NotEquivalent: it can't be built in this form.
    """
    chosen = choose_widths(measured=form not in ("auto", "module"))
    reading = Reading(model, groups)
    building = building or Building(reading)

    def build(choice: Choice, form: str, reason: str = "") -> Choice:
        operation, certificate = building(choice.keep, form)
        return replace(choice, built=(replace(operation, reason=reason or operation.reason), certificate))

    if form not in ("auto", "module"):
        return build(chosen, form)
    free, found = _foreseen(reading, chosen, choose_widths)
    if found is None:
        try:
            return build(free, "module")
        except (SurgeryError, NotEquivalent) as error:
            failed, reason = error, _reason(error)
        with stage("operate"):
            found = needed(reading, free.keep, reason)
    else:
        failed = SurgeryError(found.reason)
        reason = _reason(failed)
    if found is None:
        if form == "module":
            raise failed
        return build(free, "graph", reason)
    tied = _with_ties(choose_widths, found, free, form)
    if isinstance(tied, str):
        if form == "module":
            raise SurgeryError(f"{failed}; {tied}") from failed
        return build(_measured(free, choose_widths), "graph", f"{reason}; {tied}")
    said = f"{_said(found)}: the damage is {tied.damage:.3g}, not {free.damage:.3g}"
    try:
        return build(tied, "module", f"sizes rewritten on its modules; {said}")
    except (SurgeryError, NotEquivalent) as error:
        if form == "module":
            raise
        still = f"{reason}; {said}, and it still does not: {first_line(error)}"
        return build(_measured(free, choose_widths), "graph", still)


def planned(model: nn.Module, groups: Groups, choose_widths: Callable[..., Choice]) -> Choice:
    """The choice that `built` would take, as far as that can be told without building more than one of them."""
    chosen = choose_widths(measured=False)
    reading = Reading(model, groups)
    free, found = _foreseen(reading, chosen, choose_widths)
    if found is None:
        with stage("operate"):
            found = needed(reading, free.keep)
    tied = _with_ties(choose_widths, found, free, "auto") if found is not None else free
    return _measured(free, choose_widths) if isinstance(tied, str) else tied


def _foreseen(
    reading: Reading, chosen: Choice, choose_widths: Callable[..., Choice]
) -> tuple[Choice, Needed | None]:
    """The choice without ties, of which `chosen` is not measured yet; and the ties that one of a latency is foreseen to
    need.

    Measuring takes longest, so it is not done for widths that the model's class can't hold.
    """
    if not chosen.unmeasured:
        return chosen, None
    with stage("operate"):
        found = needed(reading, chosen.keep)
    return (chosen, found) if found is not None else (choose_widths(), None)


def _measured(free: Choice, choose_widths: Callable[..., Choice]) -> Choice:
    """The choice without ties, measured where it is one of a latency."""
    return choose_widths() if free.unmeasured else free


def _reason(error: SurgeryError | NotEquivalent) -> str:
    """Why the model's class does not hold a choice."""
    if not isinstance(error, SurgeryError):
        # The user's code computes a number from sizes, as in x / x.numel(): a graph keeps the original's.
        return f"in its own class, {error}".partition(":")[0]
    return str(error).partition(OWN_CLASS)[2] or str(error)


def _with_ties(choose_widths: Callable[..., Choice], found: Needed, free: Choice, form: str) -> Choice | str:
    """The choice with ties; or why it is not taken."""
    try:
        tied = choose_widths(found.ties)
    except (Infeasible, NothingToPrune) as error:
        return f"{_said(found)}, but then {error if form == 'module' else first_line(error)}"
    if form != "module" and tied.damage > WORSE * free.damage + SLIGHT:
        cost = f"the damage is {tied.damage:.3g}, not {free.damage:.3g}"
        return f'{_said(found)}, but then {cost}; form="module" takes that'
    return tied


def _said(found: Needed) -> str:
    ties, parts = found.ties, []
    if ties.classes:
        count = sum(map(len, ties.classes))
        sets = f" in {len(ties.classes)} sets" if len(ties.classes) > 1 else ""
        parts.append(f"{count} groups keep the same share{sets}")
    if ties.held:
        parts.append(f"{len(ties.held)} {'groups stay' if len(ties.held) > 1 else 'group stays'} whole")
    more = " …" if len(found.places) > 1 else ""
    return f"its code derives widths from one another ({found.places[0]}{more}), so {' and '.join(parts)}"
