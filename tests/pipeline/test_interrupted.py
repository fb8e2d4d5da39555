"""Interrupted at any stage, nothing is left: of the user's model, generators, threads and files."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.support import progress

STAGES = (
    "trace", "couple", "read data", "calibration data", "project", "sensitivity", "selection", "plan", "operate",
    "verify", "recover", "distill",
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 24), nn.ReLU(), nn.BatchNorm1d(24), nn.Linear(24, 16), nn.Linear(16, 24), nn.ReLU(),
        nn.Linear(24, 3),
    ).train()


def state() -> list[Any]:
    """What belongs to the process: random numbers, threads, modes, and the files in the temporary folder."""
    return [
        torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()), torch.get_num_threads(),
        torch.get_default_dtype(), torch.is_grad_enabled(), progress._running.copy(),
        sorted(path.name for path in Path(tempfile.gettempdir()).iterdir() if "inductor" not in path.name),
    ]


def of_model(model: nn.Module) -> list[Any]:
    tensors = model.state_dict(keep_vars=True).items()
    held = [(name, value.tolist(), value.requires_grad, value.grad) for name, value in tensors]
    return [held, [(list(vars(each)), each.training, len(each._forward_hooks)) for each in model.modules()]]


def shrink(model: nn.Module, data: Any) -> nn.Module:
    return surgeon.shrink(model, 0.4, example_inputs=torch.zeros(2, 6), data=data, align=1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary folder that nobody else writes to."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.parametrize("name", STAGES)
def test_nothing_is_left_of_an_interrupted_stage(name: str, here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = network(), torch.randn(96, 6)
    timed, entered = progress._timed, []

    @contextmanager
    def interrupted(stage: str, *rest: Any) -> Iterator[None]:
        with timed(stage, *rest):
            entered.append(stage)
            if stage == name:
                torch.manual_seed(3)
                torch.set_num_threads(torch.get_num_threads() + 1)
                raise KeyboardInterrupt
            yield

    monkeypatch.setattr(progress, "_timed", interrupted)
    before, own = state(), of_model(model)
    with pytest.raises(KeyboardInterrupt):
        shrink(model, data)
    assert entered[-1] == name
    assert state() == before
    assert of_model(model) == own


class Stopping(nn.Module):
    """Is interrupted when it is called for the n-th time."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.inner, self.calls, self.after = network(), 0, after

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > self.after:
            raise KeyboardInterrupt
        return self.inner(x)


@pytest.mark.parametrize("after", [0, 1])
def test_nothing_is_left_where_the_model_is_interrupted(after: int, here: None) -> None:
    model, data = Stopping(after), torch.randn(96, 6)
    before, own = state(), of_model(model)
    with pytest.raises(KeyboardInterrupt):
        shrink(model, data)
    assert state() == before
    assert of_model(model) == own and model.calls == 0


def test_nothing_is_left_where_the_data_are_interrupted(here: None) -> None:
    def batches() -> Iterator[Tensor]:
        torch.manual_seed(4)
        yield torch.randn(16, 6)
        raise KeyboardInterrupt

    model = network()
    before, own = state(), of_model(model)
    with pytest.raises(KeyboardInterrupt):
        shrink(model, batches())
    assert state() == before
    assert of_model(model) == own


def test_work_is_counted_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: dict[str, list[float]] = {}
    counter = progress.counter

    @contextmanager
    def noted(name: str) -> Iterator[Any]:
        with counter(name) as count:
            def both(done: float, total: float) -> None:
                counted.setdefault(name, []).append(done / total)
                count(done, total)

            yield both

    for module in ("surgeon.recovery.lockstep", "surgeon.scoring.reconstruction", "surgeon.calibration.fisher"):
        monkeypatch.setattr(f"{module}.counter", noted)
    shrink(network(), torch.randn(200, 6))
    for name in ("recover", "selection", "sensitivity"):
        shares = counted[name]
        assert shares[0] == 0.0 and len(set(shares)) > 1
        assert max(shares) <= 1.0 + 1e-9
    recovered = counted["recover"]
    assert max(recovered) == pytest.approx(1.0)
