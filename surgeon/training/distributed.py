"""Decisions on which all processes of a distributed training run agree."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import distributed


def agreed(scores: Mapping[int, np.ndarray], device: torch.device) -> dict[int, np.ndarray]:
    """The mean of the scores over all processes, as rank 0 has it; in a single process, the scores themselves.

    `device` is where the sum is computed by a backend that supports no other device, such as NCCL.

    >>> agreed({3: np.array([1.0, 2.0])}, torch.device("cpu"))
    {3: array([1., 2.])}
    """
    alone = not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1
    if alone or not scores:
        return dict(scores)
    joined = torch.from_numpy(np.concatenate(list(scores.values())))
    if distributed.get_backend() == "nccl":
        joined = joined.to(device)
    distributed.all_reduce(joined)
    distributed.broadcast(joined, src=0)
    values = (joined / distributed.get_world_size()).cpu().numpy()
    ends = np.cumsum([len(each) for each in scores.values()])[:-1]
    return dict(zip(scores, np.split(values, ends), strict=True))
