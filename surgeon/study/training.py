"""Training in a study: seeded, with an optional penalty, and resumable."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.cost.cost import Cost
from surgeon.errors import InvalidArgument
from surgeon.groups.analyze import analyze
from surgeon.groups.coupling import Groups
from surgeon.study.runs import Run, penalty_of
from surgeon.study.task import Task
from surgeon.support.files import remove_folder
from surgeon.training import checkpoint as checkpoints
from surgeon.training import regularizers
from surgeon.training.loop import Moment, TrainingHook, fit
from surgeon.training.regularizers import Regularizer

#: Weights are rewound to their state after this share of training, as is best for lottery tickets.
EARLY = 0.1


@dataclass
class Penalty:
    """A regularizer as a hook of the training loop."""

    regularizer: Regularizer
    groups: Groups

    def regularize(self) -> None:
        self.regularizer(self.groups)

    def step(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class Dense:
    """A trained model, its weights early in training, its metric and its size."""

    model: nn.Module
    early: dict[str, Tensor]
    metric: float
    macs: float
    params: int


def fresh(task: Task, seed: int) -> nn.Module:
    """A new model of the task, initialized with `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = task.model()
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"task.model() returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def measure(task: Task, model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        value = task.metric(model)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"task.metric(model) returned a {type(value).__name__}, not a number") from error


def macs(task: Task, model: nn.Module) -> float:
    """Multiply-accumulate operations per sample."""
    return Cost(analyze(model, task.inputs())).macs({})


def penalty(run: Run) -> Regularizer | None:
    name, strength = penalty_of(run)
    made: Regularizer | None = getattr(regularizers, name)(strength) if name != "none" else None
    return made


def steps_of(task: Task) -> int:
    batches = task.batches()
    return len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)


def train(
    task: Task, model: nn.Module, run: Run, folder: Path | None, *, retraining: bool, epochs: int | None = None,
    steps: int | None = None, pruner: TrainingHook | None = None, early: Path | None = None,
) -> None:
    """Train `model` in place, resuming from the checkpoint in `folder`; an early state is written to `early`.

    `epochs` are by default the task's. With `steps`, training stops after that many steps of the schedule for them.
    """
    if epochs is None:
        epochs = task.retraining if retraining else task.epochs
    regularizer = penalty(run)
    if pruner is None and regularizer is not None:
        pruner = Penalty(regularizer, analyze(model, task.inputs()))
    first = max(1, round(EARLY * epochs * steps_of(task)))

    def remember(moment: Moment) -> None:
        if early is not None and moment.step == first:
            checkpoints.write(early, {"model": model.state_dict()}, moment.step)

    scheduler = getattr(task, "scheduler", None)
    fit(
        model, task.batches(), loss=task.loss, optimizer=lambda parameters: task.optimizer(parameters, retraining),
        scheduler=None if scheduler is None else lambda optimizer: scheduler(optimizer, epochs * steps_of(task)),
        epochs=epochs if steps is None else None, steps=steps, pruner=pruner, callbacks=[remember], checkpoint=folder,
        seed=run.seed,
    )


def dense(task: Task, run: Run, folder: Path) -> Dense:
    """The trained model that a run starts from; it is read if it was trained before."""
    model = fresh(task, run.seed)
    state = checkpoints.read(folder / "trained")
    if state is None:
        train(task, model, run, folder / "checkpoint", retraining=False, early=folder / "early")
        size = {"macs": macs(task, model), "params": sum(value.numel() for value in model.parameters())}
        state = {"metric": measure(task, model), **size, "model": model.state_dict()}
        checkpoints.write(folder / "trained", state, 0)
    remove_folder(folder / "checkpoint")
    model.load_state_dict(state["model"])
    early = checkpoints.read(folder / "early")
    assert early is not None  # training has written it
    return Dense(model, early["model"], state["metric"], state["macs"], state["params"])
