"""One run: prune a trained model and retrain it, or train one of the baselines."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path

from torch import nn

from surgeon.deploy.export import export
from surgeon.groups.analyze import analyze
from surgeon.pipeline.shrink import plan, shrink
from surgeon.scoring import GRADIENT_CRITERIA
from surgeon.study.connections import Connections
from surgeon.study.runs import Run, schedule_of
from surgeon.study.store import Row, Store
from surgeon.study.task import Task
from surgeon.study.training import Dense, Penalty, dense, macs, measure, penalty, steps_of, train
from surgeon.support.files import ensure_folder
from surgeon.training import schedules
from surgeon.training.pruner import Pruner
from surgeon.training.rewinding import reinitialize, rewind
from surgeon.training.schedules import Schedule

#: Pruning in several steps ends after this share of retraining; the rest is for the model to recover.
PRUNING = 1 / 3
#: Of retraining, what gradients are gathered over before the first units go by them.
GATHERING = 0.05


def carry_out(task: Task, run: Run, store: Store, measured: bool = False) -> Row:
    """The row of a run, and its model as ONNX where it will be measured. What it was cut off in is gone on with."""
    start = time.perf_counter()
    base = dense(task, run, store.dense(run))
    work = store.work(run)
    makers: dict[str, Callable[[Task, Run, Dense, Path], tuple[nn.Module, float | None]]] = {
        "prune": _prune, "scratch": _scratch, "small": _small, "dense": _longer,
    }
    model, before = makers[run.method](task, run, base, work)
    after = measure(task, model)
    found = {
        "dense": base.metric, "before": before, "after": after,
        "macs": base.macs if run.removed == "connections" else macs(task, model), "dense_macs": base.macs,
        "params": sum(int(value.count_nonzero()) for value in model.parameters()), "dense_params": base.params,
    }
    if measured:
        for path, each in ((store.onnx(run), model), (store.base, base.model)):
            if not path.is_file():
                ensure_folder(path.parent)
                export(each, path, example_inputs=task.inputs())
    return {**found, "seconds": time.perf_counter() - start}


def _prune(task: Task, run: Run, base: Dense, work: Path) -> tuple[nn.Module, float | None]:
    """The pruned model after retraining, and its metric before; that is not known where the two are one."""
    if run.removed == "connections":
        return _prune_connections(task, run, base, work)
    if run.iterative or run.criterion in GRADIENT_CRITERIA:
        pruner = _pruner(task, run, base)
        train(task, pruner.model, run, work, epochs=task.retraining, retraining=True, pruner=pruner)
        return pruner.commit(), None
    slim = shrink(
        base.model, run.ratio, example_inputs=task.inputs(), importance=run.criterion, scope=run.scope, align=1,
        seed=run.seed,
    )
    before = measure(task, slim)
    match run.survivors:
        case "rewound":
            rewind(slim, base.early)
        case "reinitialized":
            reinitialize(slim, _other(run))
    train(task, slim, run, work, epochs=task.retraining, retraining=True)
    return slim, before


def _pruner(task: Task, run: Run, base: Dense) -> Pruner:
    """What prunes a copy of the trained model while it is retrained."""
    return Pruner(
        copy.deepcopy(base.model), run.ratio, schedule=_schedule(task, run), importance=run.criterion,
        example_inputs=task.inputs(), scope=run.scope, align=1, seed=run.seed,
        regularizer=() if (found := penalty(run)) is None else found,
    )


def _prune_connections(task: Task, run: Run, base: Dense, work: Path) -> tuple[nn.Module, float | None]:
    """The same of single connections: the model has its shape, and zeros."""
    sparse, regularizer = copy.deepcopy(base.model), penalty(run)
    groups = analyze(sparse, task.inputs())
    pruner = Connections(
        sparse, groups, run.ratio, _schedule(task, run), scope=run.scope,
        seed=run.seed if run.criterion == "random" else None,
        penalty=None if regularizer is None else Penalty(regularizer, groups),
    )
    before = None if run.iterative else measure(task, sparse)
    match run.survivors:
        case "rewound":
            sparse.load_state_dict(base.early)
        case "reinitialized":
            reinitialize(sparse, _other(run))
    pruner.masks.enforce()
    train(task, sparse, run, work, epochs=task.retraining, retraining=True, pruner=pruner)
    return sparse, before


def _scratch(task: Task, run: Run, base: Dense, work: Path) -> tuple[nn.Module, None]:
    """The architecture that pruning leaves, trained from scratch for as long as the pruned model was in all."""
    if run.criterion in GRADIENT_CRITERIA:  # as far as the pruned model is retrained before its units go
        pruner = _pruner(task, run, base)
        train(
            task, pruner.model, run, None, epochs=task.retraining, steps=_gathering(task), retraining=True,
            pruner=pruner,
        )
        made = pruner.plan
    else:
        made = plan(
            base.model, run.ratio, example_inputs=task.inputs(), importance=run.criterion, scope=run.scope, align=1,
            seed=run.seed,
        )
    return _from_scratch(task, run, made.apply(base.model), work)


def _small(task: Task, run: Run, base: Dense, work: Path) -> tuple[nn.Module, None]:
    """A dense network of equal size: the widths of all layers cut by the same share, trained from scratch."""
    made = plan(
        base.model, run.ratio, example_inputs=task.inputs(), importance="random", scope="local", align=1, seed=run.seed
    )
    return _from_scratch(task, run, made.apply(base.model), work)


def _from_scratch(task: Task, run: Run, model: nn.Module, work: Path) -> tuple[nn.Module, None]:
    reinitialize(model, _other(run))
    train(task, model, run, work, epochs=task.epochs + task.retraining, retraining=False)
    return model, None


def _longer(task: Task, run: Run, base: Dense, work: Path) -> tuple[nn.Module, float]:
    """The dense model, trained on for as long as a pruned one is retrained."""
    model = copy.deepcopy(base.model)
    train(task, model, run, work, epochs=task.retraining, retraining=True)
    return model, base.metric


def _schedule(task: Task, run: Run) -> Schedule:
    """A run's schedule, over the steps of retraining."""
    kind, count = schedule_of(run)
    total = task.retraining * steps_of(task)
    start = _gathering(task) if run.criterion in GRADIENT_CRITERIA else 0
    end = max(round(PRUNING * total), start + 1)
    match kind:
        case "one-shot":
            return schedules.one_shot(start)
        case "steps":
            return schedules.steps(start, end, min(count, end - start + 1))
        case _:
            make = schedules.cubic if kind == "cubic" else schedules.exponential
            return make(start, end, max(1, round((end - start) / count)))


def _gathering(task: Task) -> int:
    """The steps of retraining that gradients are gathered over."""
    return max(1, round(GATHERING * task.retraining * steps_of(task)))


def _other(run: Run) -> int:
    """A seed that no run has, for weights that are drawn anew."""
    return run.seed + 1_000_000
