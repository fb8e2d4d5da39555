"""Training with a pruner: killed at a random step and resumed, and on one and on two processes.

Run by `benchmarks.method`; as a program it is one process of a training:

    python -m benchmarks.method_training NETWORK SEED KILL FOLDER      # KILL is a step, or 0
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.method_tasks import Clothes, Connected, Convolutional
from surgeon.training import Pruner, fit, schedules
from surgeon.training.loop import Fitted, Moment

NETWORKS: dict[str, type[Clothes]] = {"connected": Connected, "residual": Convolutional}
EPOCHS = 2
TARGET = 0.75
OUT = "out.json"

Row = dict[str, Any]


def train(network: str, seed: int, folder: Path | None, kill: int = 0, every: int = 10) -> tuple[Pruner, Fitted]:
    """Train and prune by a cubic schedule and Taylor's criterion; at step `kill` the process kills itself."""
    task = NETWORKS[network]()
    torch.manual_seed(seed)
    model = task.model()
    total = EPOCHS * len(task.batches())

    def killer(moment: Moment) -> None:
        if moment.step == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    pruner = Pruner(
        model, TARGET, schedule=schedules.cubic(total // 8, total // 2, total // 16), importance="taylor",
        example_inputs=task.inputs(), align=1, seed=seed,
    )
    done = fit(
        model, task.batches(), loss=task.loss, optimizer=lambda parameters: task.optimizer(parameters, False),
        scheduler=lambda optimizer: task.scheduler(optimizer, total), epochs=EPOCHS, pruner=pruner, callbacks=[killer],
        checkpoint=folder, every=every, seed=seed,
    )
    return pruner, done


def resumed(network: str, seed: int) -> Row:
    """A training that ran through, against one that was killed by SIGKILL at a random step and resumed."""
    steps = EPOCHS * len(NETWORKS[network]().batches())
    kill = random.Random(f"{network} {seed}").randrange(2, steps)
    whole, done = train(network, seed, None)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "benchmarks.method_training", network, str(seed), str(kill), scratch]
        code = subprocess.run(command, check=False, env=_environment()).returncode
        again, second = train(network, seed, Path(scratch) / "state")
    one, other = whole.model.state_dict(), again.model.state_dict()
    return {
        "steps": steps, "killed": kill, "code": code, "resumed": second.resumed,
        "losses": done.losses == second.losses, "plan": whole.plan == again.plan,
        "equal": all(torch.equal(one[name], other[name]) for name in one), "units": _units(whole),
    }


def processes(network: str, seed: int) -> Row:
    """The same script in one process and in two, which talk by gloo."""
    found: dict[int, list[Row]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for count in (1, 2):
            place = Path(scratch) / str(count)
            place.mkdir()
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
            command += ["-m", "benchmarks.method_training", network, str(seed), "0", str(place)]
            subprocess.run(command, check=True, env=_environment())
            found[count] = [json.loads(path.read_text()) for path in sorted(place.glob(f"*{OUT}"))]
    (one,), (first, second) = found[1], found[2]
    return {
        "steps": len(one["losses"]), "units": one["units"],
        "same_plan_on_both": first["plan"] == second["plan"], "same_plan_as_one": first["plan"] == one["plan"],
        "losses_apart": max(abs(a - b) for a, b in zip(one["losses"], first["losses"], strict=True)),
        "ranks_apart": max(abs(a - b) for a, b in zip(first["losses"], second["losses"], strict=True)),
    }


def _units(pruner: Pruner) -> list[int]:
    """Units in all, before and after."""
    return [sum(group.size for group in pruner.groups), sum(pruner.history[-1].widths.values())]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}


def _plan(model: nn.Module, pruner: Pruner) -> list[Any]:
    return [[cut.tensor, cut.axis, list(cut.keep)] for cut in pruner.plan.cuts]


def main() -> None:
    """One process."""
    network, seed, kill, folder = sys.argv[1:]
    torch.set_num_threads(1)
    pruner, done = train(network, int(seed), Path(folder) / "state", int(kill))
    rank = os.environ.get("RANK", "0")
    found = {"losses": done.losses, "plan": _plan(pruner.model, pruner), "units": _units(pruner)}
    (Path(folder) / f"{rank}-{OUT}").write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
