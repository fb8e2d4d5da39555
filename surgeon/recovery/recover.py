"""Recovery from unlabeled inputs: layer after layer in one pass, and then all layers together."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from surgeon.calibration.data import Calibration, calibrate
from surgeon.errors import PlanError
from surgeon.frontend.copies import duplicate
from surgeon.frontend.isolation import undisturbed
from surgeon.frontend.parameters import public
from surgeon.frontend.trace import normalize_inputs
from surgeon.groups.analyze import analyze_inputs
from surgeon.groups.coupling import Groups
from surgeon.plans.basis import require
from surgeon.plans.plan import PLAN, Plan
from surgeon.recovery.distillation import distill_groups
from surgeon.recovery.least_squares import EXACT, Compensation, Outcome
from surgeon.recovery.report import Distillation, Recovery
from surgeon.rules import Kept
from surgeon.support.progress import collect


@public(plan=PLAN)
@undisturbed()
def recover(
    model: nn.Module,
    slim: nn.Module,
    plan: Plan,
    data: Any,
    *,
    samples: int = 256,
    ridge: float = 1e-2,
    batch_norm: bool = True,
    compensate: bool = True,
    distill: bool = True,
    example_inputs: Any = None,
    return_report: bool = False,
) -> Any:
    """A copy of `slim` whose layers make up for what was removed, from unlabeled inputs and without labels.

    Each layer that reads removed units, or what they led to, gets the weights and bias that reproduce the original's
    output best (least squares) from what is left; a layer where that does not help on inputs that were held back keeps
    its weights. Batch norms get new running statistics. Then all layers that the cut touches are moved together, by
    gradients, toward what the original makes of the inputs and of mixtures of them, for about a minute at most; if that
    does not help on the inputs held back, it is undone. Both models run in eval mode.

    Args:
        model: the original; it is left as it is.
        slim: what `plan` made of it, in either form; it is left as it is.
        plan: what was removed.
        data: unlabeled inputs: a tensor, or an iterable of batches, such as a DataLoader, each a tensor, a tuple that
            starts with the inputs, or a dict by name. It is read once, no further than needed.
        samples: how many of them to use at most.
        ridge: how strongly weights are held to those that they have, relative to the mean variance of their inputs; it
            counts for more where a layer has more inputs than the data have rows.
        batch_norm: whether running statistics are estimated anew.
        compensate: whether weights and biases are fitted.
        distill: whether all is moved together after that; never without `compensate`, and not by fewer than 64 samples.
        example_inputs: by default like those that the plan was made with.
        return_report: return `(module, Recovery)`.

    Raises:
        InvalidArgument: an argument is out of range.
        InvalidInputs: the data are empty, used up, of the wrong shape, or hold NaN.
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
    with collect() as seconds:
        inputs = plan.example_inputs() if example_inputs is None else normalize_inputs(example_inputs)
        groups = analyze_inputs(model, inputs)
        kept = groups.kept(plan.keep(groups))
        _check_slim(slim, groups, kept)
        calibration = calibrate(data, groups.graph, model, samples)
        recovered, report = recover_groups(
            slim, groups, kept, calibration, ridge=ridge, batch_norm=batch_norm, compensate=compensate, distill=distill
        )
    report = Recovery(**{**vars(report), "seconds": dict(seconds)})
    return (recovered, report) if return_report else recovered


def recover_groups(
    slim: nn.Module, groups: Groups, kept: Kept, calibration: Calibration, *,
    ridge: float = 1e-2, batch_norm: bool = True, compensate: bool = True, distill: bool = True,
) -> tuple[nn.Module, Recovery]:
    """As `recover`, for a model that was traced and coupled already."""
    notes = []
    before = _pass(groups, kept, _tensors(slim), calibration.judge, compensate=False, batch_norm=False)
    recovered = duplicate(slim)
    after = _pass(
        groups, kept, _tensors(recovered), calibration, ridge=ridge, compensate=compensate, batch_norm=batch_norm
    )
    layers = tuple(after.layers)
    if not after.deviation <= before.deviation:
        recovered = duplicate(slim)
        notes.append(
            f"the outputs would deviate by {after.deviation:.3g}, more than the {before.deviation:.3g} they do, so "
            "the model is left as it was; more, or more fitting, data may help"
        )
        after = Outcome(deviation=before.deviation)
    distilled = None
    if distill and compensate and after.deviation > EXACT:
        recovered, distilled, why_not = _distilled(groups, kept, recovered, calibration, after.deviation)
        notes += [f"not distilled: {why_not}"] if why_not else []
    report = Recovery(
        layers, after.batch_norms, calibration.samples, before.deviation,
        after.deviation if distilled is None else distilled.after, (*calibration.notes, *notes), distilled=distilled,
    )
    return recovered, report


def _distilled(
    groups: Groups, kept: Kept, model: nn.Module, data: Calibration, before: float
) -> tuple[nn.Module, Distillation | None, str]:
    """What distillation makes of a smaller model, or the model itself where that is no nearer to the original.

    Also why it was given up, if it was.
    """
    moved = duplicate(model)
    steps, why_not = distill_groups(groups, kept, moved, _tensors(moved), data)
    if not steps:
        return model, None, why_not
    after = _pass(groups, kept, _tensors(moved), data.judge, compensate=False, batch_norm=False).deviation
    if after < before:
        return moved, Distillation(steps, before, after), ""
    return model, Distillation(0, before, before), ""


def _pass(
    groups: Groups, kept: Kept, tensors: dict[str, Tensor], data: Calibration, *, ridge: float = 1e-2,
    compensate: bool, batch_norm: bool,
) -> Outcome:
    return Compensation(
        groups, kept, tensors, data, ridge=ridge, batch_norm=batch_norm, compensate=compensate
    ).run()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))
    }


def _check_slim(slim: nn.Module, groups: Groups, kept: Kept) -> None:
    """Make sure that every tensor of `slim` has the size that the plan leaves."""
    own = _tensors(slim)
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
