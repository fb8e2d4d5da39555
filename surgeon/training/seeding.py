"""What is drawn at random, as a function of where training stands: a training that is resumed draws the same again.

Nothing of a generator's state has to be kept, on however many processes: before each batch is read and before each
step is computed, the generators are seeded by the training's seed and by the place.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_READING, _COMPUTING = 0, 1


def reading(seed: int, epoch: int, batch: int) -> None:
    """Before a batch is read: the same on all processes, so that all see the same order."""
    _seed(seed, _READING, epoch, batch)


def computing(seed: int, step: int, process: int) -> None:
    """Before a step is computed: another draw on each process."""
    _seed(seed, _COMPUTING, step, process)


def restart(loader: Iterable[Any], seed: int, epoch: int) -> None:
    """Seed the generators that a DataLoader or its samplers hold themselves, and tell samplers the epoch."""
    holders = [loader]
    for holder in holders:
        for name in ("batch_sampler", "sampler"):
            inner = getattr(holder, name, None)
            if inner is not None and not any(inner is known for known in holders):
                holders.append(inner)
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(_number(seed, _READING, epoch))
        set_epoch = getattr(holder, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)


@contextmanager
def put_back() -> Iterator[None]:
    """Inside of this the generators may be seeded; afterwards they are as they were."""
    numbers, arrays = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(numbers)
        np.random.set_state(arrays)


def _number(*place: int) -> int:
    return int(np.random.SeedSequence(place).generate_state(1)[0])


def _seed(*place: int) -> None:
    number = _number(*place)
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)
