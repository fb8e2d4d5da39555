"""Training as a study does it: seeded, with a penalty, resumed where it was cut off."""

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
from surgeon.training.loop import Moment, Steered, fit
from surgeon.training.regularizers import Regularizer

#: The state that weights are rewound to: after this share of the training, as the lottery tickets that train well.
EARLY = 0.1


@dataclass
class Penalty:
    """A regularizer as the training loop takes it."""

    regularizer: Regularizer
    groups: Groups

    def regularize(self) -> None:
        """Add its gradients."""
        self.regularizer(self.groups)

    def step(self) -> None:
        """Nothing is pruned."""

    def state_dict(self) -> dict[str, Any]:
        """It has none."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """It has none."""


@dataclass(frozen=True)
class Dense:
    """A trained model, its weights early in training, what it is worth, and its size."""

    model: nn.Module
    early: dict[str, Tensor]
    metric: float
    macs: float
    params: int


def fresh(task: Task, seed: int) -> nn.Module:
    """A new model of the task, with the weights that `seed` draws."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = task.model()
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"task.model() gives a {type(model).__name__}, not a torch.nn.Module")
    return model


def measure(task: Task, model: nn.Module) -> float:
    """The task's metric of a model."""
    model.eval()
    with torch.no_grad():
        value = task.metric(model)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"task.metric(model) gives a {type(value).__name__}, not a number") from error


def macs(task: Task, model: nn.Module) -> float:
    """Multiply-accumulate operations of one sample."""
    return Cost(analyze(model, task.inputs())).macs({})


def penalty(run: Run) -> Regularizer | None:
    """What a run's training is penalized by."""
    name, strength = penalty_of(run)
    made: Regularizer | None = getattr(regularizers, name)(strength) if name != "none" else None
    return made


def steps_of(task: Task) -> int:
    """The batches of an epoch."""
    batches = task.batches()
    return len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)


def train(
    task: Task, model: nn.Module, run: Run, folder: Path | None, *, epochs: int, retraining: bool,
    steps: int | None = None, pruner: Steered | None = None, early: Path | None = None,
) -> None:
    """Train `model` in place, and go on from `folder` where that was begun; `early` is where an early state goes.

    With `steps` training stops after so many of those that `epochs` are.
    """
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
    """The trained model that a run starts from: trained, or read where that was done before."""
    model = fresh(task, run.seed)
    state = checkpoints.read(folder / "trained")
    if state is None:
        train(task, model, run, folder / "checkpoint", epochs=task.epochs, retraining=False, early=folder / "early")
        size = {"macs": macs(task, model), "params": sum(value.numel() for value in model.parameters())}
        state = {"metric": measure(task, model), **size, "model": model.state_dict()}
        checkpoints.write(folder / "trained", state, 0)
    remove_folder(folder / "checkpoint")
    model.load_state_dict(state["model"])
    early = checkpoints.read(folder / "early")
    assert early is not None  # it was written first
    return Dense(model, early["model"], state["metric"], state["macs"], state["params"])
