"""Iterative pruning that goes on in another process, after the first was killed at some step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import surgeon

# Trains a model that was smaller already, and kills itself after a step; started again, it goes on.
WORKER = """
import os, signal, sys, torch, surgeon
from pathlib import Path
from torch import nn
from surgeon.training import checkpoint

folder, kill, last = Path(sys.argv[1]), int(sys.argv[2]), 9
torch.manual_seed(0)
net = lambda: nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))
x = torch.randn(16, 8)
model = surgeon.shrink(net(), 0.2, example_inputs=x, align=1).train()
pruner = surgeon.Pruner(model, 0.4, schedule=surgeon.schedules.steps(2, 8, 3), importance="taylor", example_inputs=x,
                        align=1)
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
state = checkpoint.read(folder / "training")
if state is not None:
    pruner.load(folder / "pruner")
    model.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
while pruner.steps < last:
    optimizer.zero_grad()
    model(torch.randn(16, 8)).square().mean().backward()
    pruner.regularize()
    optimizer.step()
    pruner.step()
    pruner.save(folder / "pruner")
    rest = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
    checkpoint.write(folder / "training", rest, pruner.steps)
    if pruner.steps == kill:
        os.kill(os.getpid(), signal.SIGKILL)
slim = pruner.commit()
surgeon.save(slim, folder / "slim")
surgeon.transfer_optimizer(optimizer, slim)
assert torch.equal(surgeon.load(folder / "slim", net()).eval()(x), slim.eval()(x))
"""


def run(folder: Path, kill: int) -> int:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WORKER, str(folder), str(kill)], cwd=Path(__file__).parents[2],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode in (0, -9), done.stderr[-2000:]
    return done.returncode


@pytest.mark.parametrize("kills", [[1, 6], [5]], ids=["twice, before and after the first decision", "at a decision"])
def test_the_result_is_that_of_one_process(kills: list[int], tmp_path: Path) -> None:
    assert run(tmp_path / "whole", 0) == 0
    for kill in kills:
        assert run(tmp_path / "parts", kill) == -9
    assert run(tmp_path / "parts", 0) == 0
    for name in ("weights.safetensors", "plan.json"):
        whole, parts = ((tmp_path / each / "slim" / name).read_bytes() for each in ("whole", "parts"))
        assert whole == parts
    assert len(surgeon.Plan.load(tmp_path / "parts" / "slim" / "plan.json").steps) == 2
