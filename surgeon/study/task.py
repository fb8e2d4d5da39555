"""The interface through which a study uses a user's model, data and training recipe."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

from surgeon.errors import InvalidArgument
from surgeon.frontend.own_python import called, current_folder_importable


@runtime_checkable
class Task(Protocol):
    """A model, data, a loss and a metric.

    The dense model is trained for `epochs` epochs, a pruned one for `retraining` more. Random numbers must come from
    the global generators of torch, numpy or Python, which the study seeds.

    >>> class Line:
    ...     epochs, retraining = 1, 1
    ...     def model(self):
    ...         return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    ...     def inputs(self):
    ...         return torch.zeros(2, 4)
    ...     def batches(self):
    ...         return [(torch.ones(16, 4), torch.ones(16, 1))] * 8
    ...     def loss(self, model, batch):
    ...         return nn.functional.mse_loss(model(batch[0]), batch[1])
    ...     def optimizer(self, parameters, retraining):
    ...         return torch.optim.SGD(parameters, lr=0.01 if retraining else 0.1)
    ...     def metric(self, model):
    ...         return -model(torch.ones(1, 4)).sub(1).abs().item()
    >>> import torch
    >>> task = Line()
    >>> model, batch = task.model(), next(iter(task.batches()))
    >>> task.loss(model, batch).shape, task.metric(model) <= 0, model(task.inputs()).shape
    (torch.Size([]), True, torch.Size([2, 1]))
    >>> task.optimizer(model.parameters(), retraining=True).param_groups[0]["lr"]
    0.01
    """

    epochs: int
    retraining: int

    def model(self) -> nn.Module:
        """A new model with initial weights."""

    def inputs(self) -> Any:
        """Example inputs of the model, as `surgeon.shrink` takes them."""

    def batches(self) -> Iterable[Any]:
        """The training set: a DataLoader, or any iterable that yields the batches of an epoch each time."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of `model` on a `batch`: a tensor of shape ()."""

    def optimizer(self, parameters: Iterable[nn.Parameter], retraining: bool) -> Optimizer:
        """The optimizer of `parameters` for training or for `retraining`, which often has a smaller learning rate."""

    def metric(self, model: nn.Module) -> float:
        """The score of `model` in eval mode on held-out data, such as its accuracy; higher is better."""


PARTS = ("epochs", "retraining", "model", "inputs", "batches", "loss", "optimizer", "metric")


def load(spec: str) -> Task:
    """The task named by `spec`, `package.module:NAME` or `folder/file.py:NAME`: an object, or a callable that makes it.

    Raises:
        InvalidArgument: there is no such task, or it lacks an attribute; the message says which.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name:
        raise InvalidArgument(f"{spec!r} names no task; give package.module:NAME or folder/file.py:NAME")
    with current_folder_importable():
        found = called(spec)
        if found is None:
            raise InvalidArgument(f"{source} has no {name!r}")
        if inspect.isclass(found) or (callable(found) and not isinstance(found, Task)):
            try:
                found = found()
            except Exception as error:  # the user's own code may raise anything
                raise InvalidArgument(f"{spec} could not be made: {type(error).__name__}: {error}") from error
    return check(found, spec)


def check(task: Any, name: str = "task") -> Task:
    """Return `task` if it implements `Task`.

    Raises:
        InvalidArgument: it lacks an attribute, or its epochs are not positive integers.
    """
    missing = [part for part in PARTS if not hasattr(task, part)]
    if missing:
        raise InvalidArgument(f"{name} is not a task: it has no {', '.join(missing)}; see surgeon.study.Task")
    for part in ("epochs", "retraining"):
        value = getattr(task, part)
        if type(value) is not int or value < 1:
            raise InvalidArgument(f"{name}.{part} is {value!r}; it must be an integer of at least 1")
    found: Task = task
    return found
