"""Checkpoints: what is written is read as it was, and nothing that runs code is taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from surgeon.errors import InvalidArgument, WeightsError
from surgeon.training import checkpoint as checkpoints

STATE = {
    "numbers": [1, 2.5, float("inf"), None, True],
    "moments": {0: {"step": torch.tensor(3.0)}, "name": (1, "two", torch.arange(3))},
    "tied": [torch.ones(2, 2).t(), torch.zeros(0), torch.tensor([True])],
    "numpy": np.float64(0.1),
}


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    for step in (1, 2, 2):
        checkpoints.write(tmp_path, STATE, step)
        found = checkpoints.read(tmp_path)
        assert found is not None
        assert repr(found) == repr({**STATE, "numpy": 0.1})
        assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_takes_no_objects(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"scheduler\.lambdas\.0 is a builtin_function_or_method"):
        checkpoints.write(tmp_path, {"scheduler": {"lambdas": [print]}}, 1)
    assert checkpoints.read(tmp_path) is None


def _corrupt(folder: Path, what: str) -> None:
    head = folder / checkpoints.HEAD
    match what:
        case "head":
            head.write_text(head.read_text()[:50])
        case "tensors":
            next(folder.glob("*.safetensors")).unlink()
        case "cut":
            file = next(folder.glob("*.safetensors"))
            file.write_bytes(file.read_bytes()[:20])
        case "format":
            head.write_text("{}")
        case "version":
            head.write_text(head.read_text().replace('"version": 1', '"version": 9'))


@pytest.mark.parametrize("what", ["head", "tensors", "cut", "format", "version"])
def test_a_broken_checkpoint_is_refused(tmp_path: Path, what: str) -> None:
    checkpoints.write(tmp_path, STATE, 1)
    _corrupt(tmp_path, what)
    with pytest.raises(WeightsError, match=str(tmp_path)):
        checkpoints.read(tmp_path)
