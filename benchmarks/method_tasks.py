"""What the method is studied on: small networks that train in seconds, on images of clothing of half the size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models
from models.data import load_test, load_train
from models.residual import Residual

IMAGES, TESTED = 3000, 5000
BATCH = 64


class Batches:
    """Full batches in an order drawn anew for each epoch."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images) // BATCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(self.images)).split(BATCH)[: len(self)]:
            yield self.images[chosen], self.labels[chosen]


@lru_cache(maxsize=1)
def clothes() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test images (N, 1, 14, 14) of Fashion-MNIST, and their labels."""
    (train, known), (test, truth) = load_train(limit=IMAGES), load_test(TESTED)
    return (F.avg_pool2d(train, 2), known), (F.avg_pool2d(test, 2), truth)


class Clothes:
    """Training on some of the images of Fashion-MNIST; accuracy on the test images, which choose nothing."""

    epochs, retraining = 12, 6

    def model(self) -> nn.Module:
        """The network."""
        raise NotImplementedError

    def inputs(self) -> Tensor:
        """Two images."""
        return clothes()[1][0][:2]

    def batches(self) -> Batches:
        """The training images."""
        return Batches(*clothes()[0])

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross entropy."""
        return F.cross_entropy(model(batch[0]), batch[1])

    def optimizer(self, parameters: Iterable[nn.Parameter], retraining: bool) -> torch.optim.Optimizer:
        """The rate falls to zero by the scheduler."""
        return torch.optim.SGD(parameters, lr=0.02 if retraining else 0.05, momentum=0.9)

    def scheduler(self, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        """Half a cosine."""
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def metric(self, model: nn.Module) -> float:
        """The share of the test images that are told right."""
        return models.accuracy(model, *clothes()[1])


class Connected(Clothes):
    """A fully connected network."""

    def model(self) -> nn.Module:
        """Two hidden layers."""
        return nn.Sequential(
            nn.Flatten(), nn.Linear(196, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )


class Convolutional(Clothes):
    """A residual network."""

    epochs, retraining = 8, 4

    def model(self) -> nn.Module:
        """Three stages of one block."""
        return Residual((16, 24, 32), 1)
