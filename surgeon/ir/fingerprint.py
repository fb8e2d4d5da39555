"""The architecture of a model: the names and shapes of its tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from torch import Tensor, nn


def fingerprint(model: nn.Module) -> str:
    """A digest of the names and shapes of all parameters and buffers; values, dtypes and devices do not count.

    >>> fingerprint(nn.Linear(2, 3)) == fingerprint(nn.Linear(2, 3).half()) != fingerprint(nn.Linear(3, 2))
    True
    """
    shapes = sorted((name, list(tensor.shape)) for name, tensor in named_tensors(model))
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers, tied ones under each of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
