"""One run: prune a trained model and retrain it, or train one of the baselines."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from surgeon.deploy.export import export
from surgeon.groups.analyze import analyze
from surgeon.pipeline.shrink import plan, shrink
from surgeon.scoring import GRADIENT_CRITERIA
from surgeon.study.connections import Connections
from surgeon.study.runs import Run, schedule_of
from surgeon.study.store import Row, Store
from surgeon.study.task import Task
from surgeon.study.training import Dense, dense, macs, measure, penalty, steps_of, train
from surgeon.support.files import ensure_folder
from surgeon.training import schedules
from surgeon.training.pruner import Pruner
from surgeon.training.rewinding import reinitialize, rewind
from surgeon.training.schedules import Schedule

#: Iterative pruning ends after this share of retraining; the rest is for the model to recover.
PRUNING = 1 / 3
#: The share of retraining over which gradients are accumulated before the first units are removed by them.
GATHERING = 0.05


def carry_out(task: Task, run: Run, store: Store, measured: bool = False) -> Row:
    """The row of a run, resumed if it was interrupted. Its model is exported to ONNX if it is to be `measured`."""
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
    """The pruned model after retraining, and its metric before; None if it is pruned during retraining."""
    if run.removed == "connections":
        return _prune_connections(task, run, base, work)
    if run.iterative or run.criterion in GRADIENT_CRITERIA:
        pruner = _pruner(task, run, base)
        train(task, pruner.model, run, work, retraining=True, pruner=pruner)
        return pruner.commit(), None
    slim = shrink(base.model, run.ratio, compensate=False, **_options(task, run))
    before = measure(task, slim)
    match run.survivors:
        case "rewound":
            rewind(slim, base.early)
        case "reinitialized":
            reinitialize(slim, _other(run))
    train(task, slim, run, work, retraining=True)
    return slim, before


def _options(task: Task, run: Run) -> dict[str, Any]:
    return {
        "example_inputs": task.inputs(), "importance": run.criterion, "scope": run.scope, "align": 1, "seed": run.seed,
    }


def _pruner(task: Task, run: Run, base: Dense) -> Pruner:
    return Pruner(
        copy.deepcopy(base.model), run.ratio, schedule=_schedule(task, run), regularizer=penalty(run),
        **_options(task, run),
    )


def _prune_connections(task: Task, run: Run, base: Dense, work: Path) -> tuple[nn.Module, float | None]:
    """As `_prune`, for single connections: the model keeps its shape, and has zeros."""
    sparse = copy.deepcopy(base.model)
    pruner = Connections(
        sparse, analyze(sparse, task.inputs()), run.ratio, _schedule(task, run), scope=run.scope,
        seed=run.seed if run.criterion == "random" else None, regularizer=penalty(run),
    )
    before = None if run.iterative else measure(task, sparse)
    match run.survivors:
        case "rewound":
            sparse.load_state_dict(base.early)
        case "reinitialized":
            reinitialize(sparse, _other(run))
    pruner.masks.enforce()
    train(task, sparse, run, work, retraining=True, pruner=pruner)
    return sparse, before


def _scratch(task: Task, run: Run, base: Dense, work: Path) -> tuple[nn.Module, None]:
    """The pruned architecture, trained from scratch for as many epochs as the pruned model in total."""
    if run.criterion in GRADIENT_CRITERIA:  # retrain as far as the pruned model is before its units are removed
        pruner = _pruner(task, run, base)
        train(task, pruner.model, run, None, steps=_gathering(task), retraining=True, pruner=pruner)
        made = pruner.plan
    else:
        made = plan(base.model, run.ratio, **_options(task, run))
    return _from_scratch(task, run, made.apply(base.model), work)


def _small(task: Task, run: Run, base: Dense, work: Path) -> tuple[nn.Module, None]:
    """A dense network of the same size, with the widths of all layers cut by the same share, trained from scratch."""
    uniform = {"importance": "random", "scope": "local"}
    made = plan(base.model, run.ratio, **_options(task, run) | uniform)
    return _from_scratch(task, run, made.apply(base.model), work)


def _from_scratch(task: Task, run: Run, model: nn.Module, work: Path) -> tuple[nn.Module, None]:
    reinitialize(model, _other(run))
    train(task, model, run, work, epochs=task.epochs + task.retraining, retraining=False)
    return model, None


def _longer(task: Task, run: Run, base: Dense, work: Path) -> tuple[nn.Module, float]:
    """The dense model, trained further for as long as a pruned one is retrained."""
    model = copy.deepcopy(base.model)
    train(task, model, run, work, retraining=True)
    return model, base.metric


def _schedule(task: Task, run: Run) -> Schedule:
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
    """The steps of retraining over which gradients are accumulated."""
    return max(1, round(GATHERING * task.retraining * steps_of(task)))


def _other(run: Run) -> int:
    """A seed that no run uses, for reinitialized weights."""
    return run.seed + 1_000_000
