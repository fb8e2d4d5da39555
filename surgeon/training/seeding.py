"""Random numbers as a function of training progress: a resumed training run draws the same numbers again.

No generator state has to be saved, however many processes there are: before each batch is read and before each step is
computed, the generators are seeded from the training seed and the position in the run.
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
    """Seed before a batch is read: alike in all processes, so that all see the same order."""
    _seed(seed, _READING, epoch, batch)


def computing(seed: int, step: int, process: int) -> None:
    """Seed before a step is computed: differently in each process."""
    _seed(seed, _COMPUTING, step, process)


def restart(loader: Iterable[Any], seed: int, epoch: int) -> None:
    """Seed the generators that a DataLoader or its samplers own, and tell samplers the epoch."""
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
    """A context in which the global generators may be seeded; on exit their states are restored."""
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
