"""The training loop: what it does to the user's objects, and that an interruption or more processes change nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from surgeon.errors import InvalidArgument, WeightsError
from surgeon.training import Pruner, l1, schedules
from surgeon.training.loop import Fitted, Moment, fit

accelerate = pytest.importorskip("accelerate")
AcceleratorState = accelerate.state.AcceleratorState


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Samples that are augmented by each of the generators that users draw from."""

    def __init__(self, count: int = 50) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(count, 6, generator=generator)
        self.labels = (self.inputs[:, 4] > self.inputs[:, 5]).long()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(6) + random.random() + float(np.random.rand())
        return self.inputs[index] + 0.1 * noise, self.labels[index]


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Shrinking:
    """A pruner as the loop sees one: it zeroes one more column each third step, and holds it at zero."""

    def __init__(self, model: nn.Module) -> None:
        self.weight = next(model.parameters())
        self.count, self.done = 0, 0

    def regularize(self) -> None:
        assert self.weight.grad is not None

    def step(self) -> None:
        self.count += 1
        self.done = min(self.count // 3, 4)
        with torch.no_grad():
            self.weight[:, : self.done] = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.done = state["count"], state["done"]


class Killed(Exception):
    """Thrown from a callback."""


def train(
    model: nn.Module, folder: Path | None = None, kill: int | None = None, workers: int = 0, **options: Any
) -> Fitted:
    """Six epochs of seven batches, with all that has a state."""

    def killer(moment: Moment) -> None:
        if moment.step == kill:
            raise Killed

    return fit(
        model,
        DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=workers),
        loss=entropy,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=42),
        pruner=Shrinking(model),
        callbacks=[killer],
        checkpoint=folder,
        seed=5,
        **({"epochs": 6} | options),
    )


def same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole() -> tuple[nn.Module, Fitted]:
    """Trained without an interruption."""
    model = network()
    return model, train(model)


def test_a_model_learns(whole: tuple[nn.Module, Fitted]) -> None:
    model, done = whole
    assert done.steps == 42
    assert np.mean(done.losses[-7:]) < 0.7 * np.mean(done.losses[:7])
    assert float(model[0].weight[:, :4].detach().abs().max()) == 0  # type: ignore[index]


@pytest.mark.parametrize(("kill", "every"), [(1, None), (7, None), (8, None), (33, None), (20, 3), (21, 3), (42, 5)])
def test_killed_and_resumed_the_weights_are_the_same_bit_for_bit(
    whole: tuple[nn.Module, Fitted], tmp_path: Path, kill: int, every: int | None
) -> None:
    with pytest.raises(Killed):
        train(network(), tmp_path, kill=kill, every=every)
    torch.manual_seed(99)  # what else draws does not matter
    model = network()
    done = train(model, tmp_path, every=every)
    assert same(model, whole[0])
    assert done.losses == whole[1].losses
    assert done.resumed == max((kill - 1) // (every or 7) * (every or 7), 0)


def test_killed_twice_and_with_workers(whole: tuple[nn.Module, Fitted], tmp_path: Path) -> None:
    plain, model = network(), network()
    train(plain, workers=1, epochs=2)
    for kill in (5, 11):
        with pytest.raises(Killed):
            train(network(), tmp_path, kill=kill, workers=1, epochs=2, every=2)
    assert train(model, tmp_path, workers=1, epochs=2, every=2).resumed == 10
    assert same(model, plain)


def test_a_finished_training_is_read_and_a_longer_one_goes_on(
    whole: tuple[nn.Module, Fitted], tmp_path: Path
) -> None:
    train(network(), tmp_path, epochs=4)
    model = network()
    assert train(model, tmp_path, epochs=6).resumed == 28
    assert same(model, whole[0])
    again = network()
    done = train(again, tmp_path, epochs=6)
    assert (done.resumed, done.steps) == (42, 42)
    assert same(again, model)


def test_without_resume_training_starts_anew(tmp_path: Path) -> None:
    train(network(), tmp_path, epochs=1)
    assert train(network(), tmp_path, epochs=1, resume=False).resumed == 0


def test_steps_end_within_an_epoch(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": None, "steps": 10}
    model, other = network(), network()
    assert train(model, **options).steps == 10
    with pytest.raises(Killed):
        train(network(), tmp_path, kill=9, **options)
    assert train(other, tmp_path, **options).resumed == 7
    assert same(model, other)


@pytest.mark.parametrize("importance", ["l1", "taylor"])
def test_a_pruner_is_resumed_with_its_training(tmp_path: Path, importance: str) -> None:
    def run(folder: Path | None, kill: int | None) -> Pruner:
        model = network()
        pruner = Pruner(
            model, 0.5, schedule=schedules.cubic(4, 30, 4), importance=importance, align=1, regularizer=l1(1e-3),
            example_inputs=torch.zeros(2, 6),
        )

        def killer(moment: Moment) -> None:
            if moment.step == kill:
                raise Killed

        fit(
            model, DataLoader(Noisy(), batch_size=8, shuffle=True), loss=entropy, steps=35, pruner=pruner, every=5,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), callbacks=[killer],
            checkpoint=folder,
        )
        return pruner

    whole = run(None, None)
    for kill in (3, 13, 24):  # before the first cut, and twice amid them
        with pytest.raises(Killed):
            run(tmp_path, kill)
    resumed = run(tmp_path, None)
    assert same(resumed.model, whole.model)
    assert resumed.plan == whole.plan
    assert resumed.history == whole.history
    assert same(resumed.commit(), whole.commit())


def test_a_killed_process_resumes(whole: tuple[nn.Module, Fitted], tmp_path: Path) -> None:
    """The process kills itself by a signal that nothing can catch, while it writes a checkpoint."""
    code = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import torch
torch.set_num_threads(1)
from surgeon.training import checkpoint
from tests.training import test_loop as here
written, save = 0, checkpoint.write_tensors
def cut_off(path, tensors):
    global written
    written += 1
    save(path, tensors)
    if written == 4:
        Path(path).write_bytes(Path(path).read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.write_tensors = cut_off
here.train(here.network(), Path({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    model = network()
    assert train(model, tmp_path).resumed == 21
    assert same(model, whole[0])


def test_what_is_the_users_stays_so() -> None:
    model, inputs = network(), torch.randn(4, 6)
    list(model.children())[3].eval()
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]
    modes, keys = [module.training for module in model.modules()], set(vars(model))
    data = TensorDataset(inputs, torch.zeros(4, dtype=torch.long))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, DataLoader(data, batch_size=2), loss=entropy, optimizer=optimizer, epochs=1)
    assert [module.training for module in model.modules()] == modes
    assert set(vars(model)) == keys
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_mixed_precision_leaves_the_model_as_it_was() -> None:
    model = network()
    before, seen = set(vars(model)), []
    next(model.children()).register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    AcceleratorState._reset_state(reset_partial_state=True)  # the library has one precision a process
    try:
        fit(
            model, DataLoader(Noisy(), batch_size=8), loss=entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            epochs=1, accelerator=accelerate.Accelerator(cpu=True, mixed_precision="bf16"),
        )
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert set(vars(model)) == before
    assert set(seen) == {torch.bfloat16}
    assert model(torch.zeros(2, 6)).dtype == torch.float32
    assert seen[-1] == torch.float32


def test_a_sampler_with_a_generator_of_its_own_is_resumed_too(tmp_path: Path) -> None:
    def run(model: nn.Module, folder: Path | None, steps: int) -> None:
        loader = DataLoader(Noisy(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(steps))
        fit(
            model, loader, loss=entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), steps=steps, checkpoint=folder
        )

    model, other = network(), network()
    run(model, None, 12)
    run(other, tmp_path, 9)
    run(other, tmp_path, 12)
    assert same(model, other)


SCRIPT = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
from torch import nn
torch.set_num_threads(1)
from surgeon.training.loop import fit
from surgeon.training import schedules
from surgeon.training import Pruner
from tests.training.test_loop import entropy
from torch.utils.data import DataLoader, TensorDataset

generator = torch.Generator().manual_seed(0)
inputs = torch.randn(30, 6, generator=generator)
data = DataLoader(TensorDataset(inputs, (inputs.sum(1) > 0).long()), batch_size=7, shuffle=True)
rank = int(os.environ["RANK"])
torch.manual_seed(rank)  # another network in each process: the first one's counts
model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
pruner = Pruner(model, 0.5, schedule=schedules.steps(4, 12, 3), importance="taylor", example_inputs=inputs[:2], align=1)
done = fit(model, data, loss=entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), epochs=4,
           pruner=pruner, checkpoint={folder!r})
weights = {{name: value.tolist() for name, value in model.state_dict().items()}}
Path(sys.argv[1] + f"-{{rank}}.json").write_text(json.dumps(
    {{"losses": done.losses, "weights": weights, "plan": str(pruner.plan), "done": pruner.done,
      "count": int(os.environ["WORLD_SIZE"])}}))
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def launch(processes: int, folder: Path) -> list[dict[str, Any]]:
    """The script in so many processes, which talk by gloo, and what each of them wrote."""
    script = folder / "script.py"
    root = str(Path(__file__).parents[2])
    script.write_text(SCRIPT.format(root=root, folder=str(folder / f"state-{processes}")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    out = str(folder / f"out-{processes}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), out], capture_output=True, text=True, check=False, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(Path(f"{out}-{rank}.json").read_text()) for rank in range(processes)]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    (one,), (first, second) = launch(1, tmp_path), launch(2, tmp_path)
    assert (one["count"], first["count"], second["count"]) == (1, 2, 2)
    assert first["weights"] == second["weights"]
    assert first["plan"] == second["plan"] == one["plan"]
    assert one["done"]
    assert first["losses"] == second["losses"]
    assert len(one["losses"]) == 20  # batches of 7 and of 2: parts are of unequal size
    assert np.abs(np.subtract(one["losses"], first["losses"])).max() < 1e-5
    for name, value in one["weights"].items():
        assert np.abs(np.subtract(value, first["weights"][name])).max() < 1e-5


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    train(network(), tmp_path, epochs=1)
    torch.manual_seed(0)
    wider = nn.Sequential(nn.Linear(6, 17), nn.BatchNorm1d(17), nn.Linear(17, 2))
    before = {name: value.clone() for name, value in wider.state_dict().items()}
    with pytest.raises(WeightsError, match=r"0\.weight is torch\.float32 \[16, 6\] there and torch\.float32 \[17, 6\]"):
        train(wider.requires_grad_(), tmp_path)
    assert all(torch.equal(value, wider.state_dict()[name]) for name, value in before.items())
    with pytest.raises(WeightsError, match="of another training"):
        fit(network(), [], loss=entropy, optimizer=torch.optim.SGD, epochs=1, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": None}, "epochs or steps"),
        ({"steps": 3}, "epochs or steps"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 1.5}, r"epochs=1\.5"),
        ({"every": 0}, "every=0"),
        ({"clip": -1.0}, r"clip=-1\.0"),
        ({"seed": -1}, "seed=-1"),
        ({"loader": []}, "no batch in epoch 0"),
        ({"loader": iter([(torch.ones(2, 6), torch.ones(2).long())]), "epochs": 2}, "no batch in epoch 1"),
        ({"loss": lambda model, batch: model(batch[0])}, r"torch\.float32 \[2, 2\]"),
        ({"loss": lambda model, batch: 1.0}, "a float"),
        ({"loss": lambda model, batch: model(batch[0]).sum().detach()}, "without a gradient"),
    ],
)
def test_careless_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "loader": [(torch.ones(2, 6), torch.ones(2).long())], "loss": entropy, "epochs": 1,
        "optimizer": torch.optim.SGD,
    }
    with pytest.raises(InvalidArgument, match=message):
        fit(network(), **(given | options))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InvalidArgument, match=r"pip install \"model-surgeon\[train\]\""):
        fit(network(), [], loss=entropy, optimizer=torch.optim.SGD, epochs=1)
