"""A task that a study of the tests finishes in seconds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Blobs:
    """Points around four centers, told apart by a small network."""

    epochs, retraining = 3, 2

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(4, (300,), generator=generator)
        centers = torch.randn(4, 8, generator=generator)
        self.points = centers[self.labels] + torch.randn(300, 8, generator=generator)

    def model(self) -> nn.Module:
        hidden = (nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
        return nn.Sequential(*hidden, nn.Linear(16, 4))

    def inputs(self) -> Tensor:
        return self.points[:2]

    def batches(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(self.points[:200], self.labels[:200]), 20, shuffle=True)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def optimizer(self, parameters: Iterable[nn.Parameter], retraining: bool) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.02 if retraining else 0.1, momentum=0.9)

    def metric(self, model: nn.Module) -> float:
        return (model(self.points[200:]).argmax(1) == self.labels[200:]).float().mean().item()


class Odd:
    """No task: most of it is missing."""

    epochs = 1


class Broken(Blobs):
    """A task whose metric fails once a model is small."""

    def metric(self, model: nn.Module) -> float:
        if sum(value.numel() for value in model.parameters()) < 400:
            raise ArithmeticError("too small to tell")
        return super().metric(model)
