"""Which units stay: analyzed and judged once, chosen for a target, and what makes up for the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import nn

from surgeon.calibration.data import Calibration
from surgeon.calibration.job import JobReport, Metric
from surgeon.calibration.other_sizes import calibrated
from surgeon.calibration.stand_in import REMEDY, Unserved, finite, noise_for_cut, served
from surgeon.cost.cost import Cost
from surgeon.deploy.profiling import profile_workloads
from surgeon.deploy.workloads import workloads
from surgeon.frontend.ignore import named
from surgeon.frontend.parameters import NOISE
from surgeon.frontend.parts import Parts
from surgeon.groups.coupling import Groups
from surgeon.groups.weights import check_finite
from surgeon.ir.fingerprint import fingerprint
from surgeon.pipeline.around import PARTS, analyzed
from surgeon.pipeline.latency_target import LatencyTarget
from surgeon.pipeline.options import Options, Target
from surgeon.pipeline.own_class import Choice, Chooser, at_example_sizes, built, planned
from surgeon.plans.plan import Plan
from surgeon.projection.project import rotated
from surgeon.recovery import Agreement, Recovery, recover_groups
from surgeon.scoring import Criterion
from surgeon.scoring.reconstruction import reconstruction
from surgeon.scoring.registry import RECONSTRUCTION, score_groups, settle
from surgeon.support.progress import stage
from surgeon.support.scratch import temporary_folder
from surgeon.surgery import Operation
from surgeon.verification import Certificate

Form = Literal["auto", "module", "graph"]


@dataclass(frozen=True)
class Judged:
    """The model and its groups in the basis in which units are judged, by scores and maybe by curves of damage."""

    model: nn.Module
    groups: Groups
    importance: str | Criterion
    scores: Mapping[int, np.ndarray]
    curves: Mapping[int, np.ndarray] | None = None


@dataclass(frozen=True)
class Prepared:
    """A model whose units are judged: all that is done once, whatever is removed then."""

    judged: Judged
    settings: dict[str, Any]
    cost: Cost
    options: Options
    form: Form | None
    data: Calibration | None
    unserved: str
    fingerprint: str | None
    metric: Metric | None = None

    def decide(self, target: Target | None = None) -> Decision:
        """Which units stay, for another target than that of the options if one is given.

        Raises:
            NothingToPrune, Infeasible: it can't be met.
        """
        model, groups, options = self.judged.model, self.judged.groups, self.options
        settings = dict(self.settings)
        if target is not None:
            options, settings = options.of_ratio(target), settings | target.settings()
        chooser = Chooser(model, groups, self.cost, self.judged.scores, self.judged.curves, options)
        if not options.target.timed:
            return Decision(
                model, groups, self._chosen(chooser), settings, self.cost, self.data, self.unserved, self.fingerprint
            )
        with temporary_folder() as folder:
            timer = LatencyTarget(model, groups, self.cost, options.target, folder)
            choice = self._chosen(replace(chooser, timer=timer))
        assert choice.timing is not None
        settings |= {"budget": "latency", "device": choice.timing.device, "threads": choice.timing.threads}
        settings |= {"clock": choice.timing.clock}
        return Decision(model, groups, choice, settings, self.cost, self.data, self.unserved)

    def profiled(self) -> Prepared:
        """With the profile of this CPU where a latency on it is asked for, which several decisions share."""
        target = self.options.target
        if not target.timed or target.device is not None:
            return self
        model, groups = self.judged.model, self.judged.groups
        runs = workloads(model, groups, target.shapes)
        profile = profile_workloads(model, runs, threads=target.threads, cpu_time=target.cpu_time)
        return replace(self, options=replace(self.options, target=replace(target, device=profile)))

    def judge(self, slim: nn.Module) -> JobReport | None:
        """How good the smaller model is at its job, where a metric tells."""
        if self.metric is None:
            return None
        with stage("metric"):
            return self.metric.report(slim, self.options.select.seed)

    def _chosen(self, chooser: Chooser) -> Choice:
        model, groups = self.judged.model, self.judged.groups
        if self.form is None:
            return planned(model, groups, chooser)
        varying = self.data is not None and bool(self.data.varying)
        return built(model, groups, chooser, self.form, at_example_sizes(model, groups) if varying else None)


@dataclass(frozen=True)
class Decision:
    model: nn.Module
    groups: Groups
    choice: Choice
    settings: dict[str, Any]
    cost: Cost
    data: Calibration | None = None
    unserved: str = ""  # why there is no noise in place of data
    fingerprint: str | None = None  # of the whole, where `model` is parts of it

    @property
    def keep(self) -> dict[int, tuple[int, ...]]:
        return self.choice.keep

    def plan(self) -> Plan:
        made = Plan.of(self.groups, self.keep, self.settings, model=self.model)
        return made if self.fingerprint is None else replace(made, fingerprint=self.fingerprint)


def prepare(
    model: nn.Module, options: Options, example_inputs: Any = None, form: Form | None = None
) -> Prepared:
    """Analyze a model and judge its units. With a `form`, what is decided is also carried out."""
    data, select = options.data, options.select
    importance = settle(select.importance, data.source, data.loss)
    settings = options.settings() | {"ignore": named(model, select.ignore)}
    traced, groups = analyzed(model, example_inputs, select.ignore, _needs_all(options, form))
    architecture = None
    if isinstance(traced, Parts):
        settings[PARTS], form, architecture = list(traced.called), form and "module", fingerprint(model)
    model, unserved = traced, ""
    check_finite(groups.graph)
    metric = _metric(model, groups, options)
    calibration = None
    if data.source is not None:
        with stage("read data"):
            groups, calibration = calibrated(
                data.source, groups, model, data.samples, select.ignore, labeled=data.loss is not None, seed=select.seed
            )
        judged = _judged(model, groups, importance, options, calibration)
    else:
        judged, calibration, unserved = _without_data(model, groups, importance, options, form)
        settings |= {"data": NOISE, "samples": calibration.samples} if calibration is not None else {}
    model, groups, importance = judged.model, judged.groups, judged.importance
    settings["importance"] = importance if isinstance(importance, str) else getattr(importance, "__name__", "custom")
    return Prepared(judged, settings, Cost(groups), options, form, calibration, unserved, architecture, metric)


def _metric(model: nn.Module, groups: Groups, options: Options) -> Metric | None:
    """The metric that is asked for, evaluated on the original."""
    job, data = options.job, options.data
    if job.metric is None:
        return None
    with stage("metric"):
        return Metric(job.metric, job.metric_data, groups.graph, model, data.source, data.samples)


def _judged(
    model: nn.Module, groups: Groups, importance: str | Criterion, options: Options, data: Calibration | None
) -> Judged:
    """Judge the units; by reconstruction, once the model is rotated."""
    seed, loss = options.select.seed, options.data.loss
    if importance == RECONSTRUCTION and data is not None:
        if options.repair.project:
            model, groups = rotated(model, groups, data, options.select.ignore)
        selection = reconstruction(model, groups, data, seed=seed, loss=loss)
        return Judged(model, groups, importance, selection.scores, selection.damages)
    with stage("plan"):
        return Judged(model, groups, importance, score_groups(model, groups, importance, data, loss, seed))


def _without_data(
    model: nn.Module, groups: Groups, importance: str | Criterion, options: Options, form: Form | None
) -> tuple[Judged, Calibration | None, str]:
    """What is judged on noise, and the noise; or by `importance`, and why there is no noise if that was not asked for.

    A criterion that was asked for is kept to: then noise is for fitting layers alone.
    """
    explicit, why = options.select.importance is not None, ""
    if options.repair.compensate and not (explicit and form is None):
        try:
            if isinstance(model, Parts):
                raise Unserved("noise is for a model that can be traced as a whole")
            noise = noise_for_cut(model, groups, options.select.seed)
            criterion = importance if explicit else RECONSTRUCTION
            judged = served(lambda: _judged(model, groups, criterion, options, noise))
            finite(judged.scores, judged.curves or {})
            return judged, noise, ""
        except Unserved as error:
            why = str(error)
    return _judged(model, groups, importance, options, None), None, why


@dataclass(frozen=True)
class Result:
    """What came of a decision: the model and the certificate of its cut, what made up for it, and what is kept."""

    made: Decision
    operation: Operation
    certificate: Certificate
    recovery: Recovery | None = None
    agreement: Agreement | None = None
    notes: tuple[str, ...] = ()


def carried_out(asked: Options, made: Decision, distill: bool = True) -> Result:
    """The smaller model, with its layers fitted."""
    assert made.choice.built is not None  # a form was given
    operation, certificate = made.choice.built
    notes = (f"nothing makes up for the cut: {made.unserved}; {REMEDY}",) if made.unserved else ()
    if made.data is None:
        return Result(made, operation, certificate, notes=notes)
    given, data, kept = asked.data.source is not None, made.data, made.groups.kept(made.keep)
    fitted = asked.repair.compensate

    def fit() -> tuple[nn.Module, Recovery]:
        return recover_groups(
            operation.module, made.groups, kept, data, compensate=fitted, batch_norm=fitted,
            distill=distill and given and asked.repair.distill,
        )

    try:
        with stage("recover"):
            module, recovery = fit() if given else served(fit)
    except Unserved as error:
        return Result(made, operation, certificate, notes=(f"no layer was fitted: {error}; {REMEDY}",))
    if not given:
        chosen = "units were chosen and " if asked.select.importance is None else ""
        how = f"{chosen}layers were fitted on {data.samples} samples of noise"
        notes = (f"no data were given, so {how}; {REMEDY}",)
    agreement = recovery.agreement
    if agreement is not None and agreement.warning:
        notes = (*notes, agreement.warning)
    if not fitted:
        return Result(made, operation, certificate, None, agreement, notes)
    return Result(made, replace(operation, module=module), certificate, recovery, agreement, notes)


def _needs_all(options: Options, form: Form | None) -> str:
    """What is asked for that needs the whole model traced; empty if nothing does."""
    if form == "graph":
        return "a graph is of the whole model"
    if options.data.source is not None:
        return "data is of the whole model"
    if options.job.metric is not None:
        return "a metric is of the whole model"
    return "a latency is of the whole model" if options.target.timed else ""


