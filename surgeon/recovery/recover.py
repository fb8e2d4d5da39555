"""Recovery from unlabeled inputs: layer by layer in one pass, and then all layers together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.calibration.data import Calibration
from surgeon.calibration.other_sizes import calibrated
from surgeon.calibration.restated import carried_over, judged_on, stored
from surgeon.errors import PlanError
from surgeon.frontend.copies import duplicate
from surgeon.frontend.isolation import undisturbed
from surgeon.frontend.parameters import public
from surgeon.frontend.trace import normalize_inputs
from surgeon.frontend.wrappers import within_its_wrapper
from surgeon.groups.analyze import analyze_inputs
from surgeon.groups.coupling import Groups
from surgeon.ir.fingerprint import named_tensors
from surgeon.plans.basis import require
from surgeon.plans.plan import PLAN, Plan
from surgeon.recovery.agreement import agreement
from surgeon.recovery.deviation import OutputDeviation
from surgeon.recovery.distillation import distill_groups
from surgeon.recovery.least_squares import EXACT, Compensation, Corrected
from surgeon.recovery.report import Distillation, Recovery
from surgeon.rules import Kept
from surgeon.support.memory import using_memory
from surgeon.support.progress import collect
from surgeon.surgery.tensors import slim_tensors


@within_its_wrapper("slim")
@public(plan=PLAN)
@undisturbed()
def recover(
    model: nn.Module,
    slim: nn.Module,
    plan: Plan,
    data: Any,
    *,
    samples: int = 256,
    memory: float | None = None,
    ridge: float = 1e-2,
    batch_norm: bool = True,
    compensate: bool = True,
    distill: bool = True,
    example_inputs: Any = None,
    return_report: bool = False,
) -> Any:
    """A copy of `slim` whose layers compensate for what was removed, from unlabeled inputs.

    Each layer that reads removed units, or values computed from them, gets the weights and bias that reproduce the
    original's output best (least squares); it keeps its weights if that does not help on inputs that were held back.
    Batch norms get new running statistics. Then all layers that the cut affects are fine-tuned end to end by
    distillation, on the inputs and on mixtures of them, for about a minute at most; if that does not help on the inputs
    held back, it is undone. Both models run in eval mode.

    Args:
        model: the original; it is left as it is.
        slim: what `plan` made of it, in either form; it is left as it is.
        plan: what was removed.
        data: unlabeled inputs: a tensor, or an iterable of batches, such as a DataLoader, each a tensor, a tuple that
            starts with the inputs, or a dict by name. It is read once, and no further than needed. What an
            `attention_mask` hides does not count.
        samples: how many of them to use at most.
        memory: the share of the machine's memory that may be taken beside the models; by default an eighth, and at
            most 2 GiB.
        ridge: how strongly weights are kept near their values, relative to the mean variance of their inputs; more so
            where a layer has more inputs than the data have rows.
        batch_norm: whether running statistics are re-estimated.
        compensate: whether weights and biases are fitted.
        distill: whether distillation follows; never without `compensate`, nor with fewer than 64 samples.
        example_inputs: by default like those that the plan was made with.
        return_report: return `(module, Recovery)`.

    Raises:
        InvalidArgument: an argument is out of range.
        InvalidInputs: the data are empty, exhausted, of the wrong shape, or hold NaN.
        PlanError: the plan is of another architecture or basis, or `slim` is not what it makes of the model.

    >>> import surgeon, torch
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> made = surgeon.plan(net, 0.5, example_inputs=torch.randn(1, 8))
    >>> better, report = recover(net, made.apply(net), made, torch.randn(64, 8), return_report=True)
    >>> report.after < report.before
    True
    """
    plan.check(model)
    require(model, plan.settings.get("basis"))
    with collect() as seconds, using_memory(memory):
        inputs = plan.example_inputs() if example_inputs is None else normalize_inputs(example_inputs)
        groups = analyze_inputs(model, inputs)
        _check_slim(slim, groups, groups.kept(plan.keep(groups)))
        groups, calibration = calibrated(data, groups, model, samples)
        kept = groups.kept(plan.keep(groups))
        recovered, report = recover_groups(
            slim, groups, kept, calibration, ridge=ridge, batch_norm=batch_norm, compensate=compensate, distill=distill
        )
    return (recovered, replace(report, seconds=dict(seconds))) if return_report else recovered


def recover_groups(
    slim: nn.Module, groups: Groups, kept: Kept, calibration: Calibration, *,
    ridge: float = 1e-2, batch_norm: bool = True, compensate: bool = True, distill: bool = True,
) -> tuple[nn.Module, Recovery]:
    """As `recover`, for a model that is already traced and coupled."""
    if calibration.restated:
        return _on_noise(slim, groups, kept, calibration, ridge, batch_norm, compensate)
    notes = []
    deviation = OutputDeviation(groups, kept, calibration.held_back)
    before = after = deviation.of(dict(named_tensors(slim)))
    recovered = duplicate(slim)
    tensors = dict(named_tensors(recovered))
    corrected = Corrected()
    if compensate or batch_norm:
        corrected = Compensation(
            groups, kept, tensors, calibration, ridge=ridge, compensate=compensate, batch_norm=batch_norm
        ).run()
    if corrected.layers or corrected.batch_norms:
        after = deviation.of(tensors)
        notes += _fewer(*corrected.samples, calibration.samples)
    if not after <= before:
        recovered, corrected = duplicate(slim), Corrected()
        notes.append(
            f"the outputs would deviate by {after:.3g}, more than the {before:.3g} they do, so the model is "
            "left as it was; more, or more representative, data may help"
        )
        after = before
    distilled = None
    if distill and compensate and after > EXACT:
        recovered, distilled, why_not = _distilled(groups, kept, recovered, calibration, deviation, after)
        notes += [f"not distilled: {why_not}"] if why_not else []
    report = Recovery(
        tuple(corrected.layers), corrected.batch_norms, calibration.samples, before,
        after if distilled is None else distilled.after, (*calibration.notes, *notes), distilled=distilled,
        agreement=agreement(groups, kept, dict(named_tensors(recovered)), calibration.checked, calibration.noise),
    )
    return recovered, report


def _on_noise(
    slim: nn.Module, groups: Groups, kept: Kept, data: Calibration, ridge: float, batch_norm: bool, compensate: bool
) -> tuple[nn.Module, Recovery]:
    """Recovery with batch norms of the data's own statistics in both models, and what that makes of the real ones."""
    noisy = judged_on(groups, data)
    swapped, cut = duplicate(slim), slim_tensors(noisy, kept)
    tensors, before = dict(named_tensors(swapped)), dict(named_tensors(slim))
    norms = [norm for norm in stored(groups) if norm.mean in tensors and norm.variance in tensors]
    _write(tensors, {name: cut[name] for norm in norms for name in (norm.mean, norm.variance)})
    recovered, report = recover_groups(
        swapped, noisy, kept, replace(data, restated=False), ridge=ridge, batch_norm=batch_norm, compensate=compensate
    )
    after = dict(named_tensors(recovered))
    real: dict[str, Tensor] = {}
    for norm in norms:
        real[norm.mean], real[norm.variance] = carried_over(norm, before, cut, after)
    _write(after, real)
    return recovered, report


def _write(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            tensors[name].copy_(value)


def _fewer(first: int, last: int, count: int) -> list[str]:
    """What is said where there was not memory enough for all samples at once."""
    if first >= count:
        return []
    rest = "all" if last >= count else f"{last}"
    return [f"the first layers were fitted on {first} samples, the last on {rest}, to save memory; memory= allows more"]


def _distilled(
    groups: Groups, kept: Kept, model: nn.Module, data: Calibration, deviation: OutputDeviation, before: float
) -> tuple[nn.Module, Distillation | None, str]:
    """The distilled model, or the model itself if that is not nearer to the original.

    Also the result of distillation, or the reason why it was not done.
    """
    moved = duplicate(model)
    tensors = dict(named_tensors(moved))
    steps, why_not = distill_groups(groups, kept, moved, tensors, data)
    if not steps:
        return model, None, why_not
    after = deviation.of(tensors)
    if after < before:
        return moved, Distillation(steps, before, after), ""
    return model, Distillation(0, before, before), ""


def _check_slim(slim: nn.Module, groups: Groups, kept: Kept) -> None:
    """Make sure that every tensor of `slim` has the size that the plan leaves."""
    own = dict(named_tensors(slim))
    for name, axes in groups.tensors.items():
        canonical = groups.graph.canonical[name]
        if name not in own and (canonical in own or canonical not in groups.graph.read):
            continue  # a graph has no parts that run in train mode alone
        expected = tuple(kept.width(axis) for axis in axes)
        shape = tuple(own[name].shape) if name in own else None
        if shape != expected and isinstance(groups.graph.values[name], nn.Parameter):
            held = f"has shape {shape}" if shape is not None else "is missing"
            raise PlanError(
                f"{name} {held} in slim, where the plan leaves {expected}; pass the model that the plan made"
            )
