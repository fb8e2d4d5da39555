"""Pruning while training: when units go, that they stay gone, that surgery gives the masked model, and resuming."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.errors import Infeasible, InvalidArgument, WeightsError
from surgeon.plans.carried import attached
from surgeon.scoring import CRITERIA, GRADIENT_CRITERIA
from surgeon.training import checkpoint, schedules
from surgeon.training.pruner import Pruner
from surgeon.training.regularizers import group_lasso, l1
from surgeon.training.schedules import Schedule
from testbed.networks import randomise


class Residual(nn.Module):
    """Two residual convolutions with batch norms, and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.a, self.an = nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.b = nn.Conv2d(24, 16, 3, padding=1)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = x + self.b(F.relu(self.an(self.a(x))))
        return self.head(self.drop(x.mean((2, 3))))


class Depthwise(nn.Module):
    """An inverted residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand, self.en = nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32)
        self.depth, self.dn = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32)
        self.project = nn.Conv2d(32, 8, 1)
        self.head = nn.Linear(8 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        y = F.relu6(self.en(self.expand(x)))
        return self.head((x + self.project(F.relu6(self.dn(self.depth(y))))).flatten(1))


class Transformer(nn.Module):
    """A block of attention and a perceptron, with layer norms over a stream that is pruned too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.norm1, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm2, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.norm3, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2))
        n, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, length, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.proj(y)
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm3(x).mean(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (3, 6, 6)),
    "depthwise": (Depthwise, (3, 6, 6)),
    "transformer": (Transformer, (5, 6)),
}
SCHEDULE = schedules.cubic(1, 7, every=2)


def network(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    randomise(model)
    return model.double(), torch.randn(16, *shape, dtype=torch.float64)


def train(model: nn.Module, pruner: Pruner, x: Tensor, count: int, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for _ in range(count):
        optimizer.zero_grad()
        chosen = torch.randint(len(x), (8,))
        F.cross_entropy(model(x[chosen]), chosen % 5).backward()
        pruner.regularize()
        optimizer.step()
        pruner.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
@pytest.mark.parametrize("name", NETWORKS)
def test_surgery_gives_the_masked_model(name: str, importance: str) -> None:
    model, x = network(name)
    pruner = Pruner(
        model, 0.5, schedule=SCHEDULE, importance=importance, example_inputs=x[:2], align=1, regularizer=l1(1e-4)
    )
    train(model, pruner, x, 9, sgd(model))
    assert pruner.done and not pruner.notes
    slim = pruner.commit()
    with torch.no_grad():
        masked, small = model.eval()(x), slim.eval()(x)
    torch.testing.assert_close(small, masked, rtol=1e-9, atol=1e-9)
    plan = attached(slim)
    assert plan is not None and plan == pruner.plan
    assert sum(p.numel() for p in slim.parameters()) < 0.75 * sum(p.numel() for p in model.parameters())
    pruner.release()
    assert plan.verify(model, slim, x[:2]).deviation < 1e-9
    assert 0.5 <= pruner.history[-1].removed < 0.54  # one unit of these narrow groups is up to 4 %


@pytest.mark.parametrize("scope", ["global", "local", "isomorphic"])
@pytest.mark.parametrize("importance", [*CRITERIA, *GRADIENT_CRITERIA])
def test_what_is_gone_stays_gone(importance: str, scope: str) -> None:
    model, x = network("residual")
    steps = schedules.steps(1, 4, 4)
    pruner = Pruner(
        model, 0.6, schedule=steps, importance=importance, example_inputs=x[:2], scope=scope, align=1, seed=3
    )
    optimizer = sgd(model)
    before: dict[int, set[int]] = {}
    for index in range(4):
        train(model, pruner, x, 1, optimizer)
        keep = {leaf: set(kept) for leaf, kept in pruner.plan.keep(pruner.groups).items()}
        assert all(keep[leaf] <= kept for leaf, kept in before.items())
        before = keep
        assert pruner.history[-1].removed == pytest.approx(0.6 * (index + 1) / 4, abs=0.02)
    assert [decision.step for decision in pruner.history] == [1, 2, 3, 4]


def test_the_least_units_go() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        model[0].weight[[2, 5, 11]] *= 1e-3  # type: ignore[index, operator]
        model[2].weight[:, [2, 5, 11]] *= 1e-3  # type: ignore[index, operator]
        model[0].bias.fill_(0.1)  # type: ignore[operator]
    pruner = Pruner(
        model, 3 / 16, schedule=schedules.one_shot(), example_inputs=torch.randn(1, 4), budget="channels", align=1
    )
    (kept,) = pruner.plan.keep(pruner.groups).values()
    assert set(range(16)) - set(kept) == {2, 5, 11}
    assert pruner.done and pruner.history[0].step == 0


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_killed_and_resumed_gives_the_same_weights(importance: str, tmp_path: Path) -> None:
    def prepared() -> tuple[nn.Module, Tensor, Pruner, torch.optim.Optimizer]:
        model, x = network("residual")
        pruner = Pruner(
            model, 0.5, schedule=SCHEDULE, importance=importance, example_inputs=x[:2], align=1,
            regularizer=[group_lasso(1e-4)],
        )
        return model, x, pruner, sgd(model)

    model, x, pruner, optimizer = prepared()
    torch.manual_seed(1)
    train(model, pruner, x, 12, optimizer)
    killed = int(np.random.default_rng(len(importance)).integers(1, 11))
    other, x, half, stopped = prepared()
    torch.manual_seed(1)
    train(other, half, x, killed, stopped)
    half.save(tmp_path / "pruner")
    rest = {"model": other.state_dict(), "optimizer": stopped.state_dict(), "random": torch.get_rng_state()}
    checkpoint.write(tmp_path / "training", rest, killed)

    resumed, x, second, again = prepared()
    state = checkpoint.read(tmp_path / "training")
    assert state is not None
    second.load(tmp_path / "pruner")
    resumed.load_state_dict(state["model"])
    again.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    train(resumed, second, x, 12 - killed, again)
    for (key, value), found in zip(model.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, found), f"{key}, killed after step {killed}"
    assert second.plan == pruner.plan and second.history == pruner.history
    for a, b in zip(pruner.commit().parameters(), second.commit().parameters(), strict=True):
        assert torch.equal(a, b)


def test_attached_to_an_optimizer_it_needs_no_call() -> None:
    results = []
    for attach in (False, True):
        model, x = network("residual")
        pruner = Pruner(
            model, 0.5, schedule=SCHEDULE, importance="fisher", example_inputs=x[:2], align=1, regularizer=l1(1e-3)
        )
        optimizer = sgd(model)
        if attach:
            handles = pruner.attach(optimizer)
        torch.manual_seed(1)
        model.train()
        for _ in range(8):
            optimizer.zero_grad()
            model(x[torch.randint(16, (8,))]).square().mean().backward()
            if not attach:
                pruner.regularize()
            optimizer.step()
            if not attach:
                pruner.step()
        if attach:
            for handle in handles:
                handle.remove()
            optimizer.step()
        assert pruner.steps == 8
        results.append((pruner.plan, pruner.history))
    assert results[0] == results[1]


def test_a_function_of_the_user_s_is_a_schedule_and_a_criterion() -> None:
    def last_first(groups: Any, group: Any, rng: np.random.Generator) -> Any:
        return np.arange(group.size, 0, -1)

    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    pruner = Pruner(
        model, 0.5, schedule=lambda step: min(step / 2, 1), importance=last_first, example_inputs=torch.randn(1, 4),
        align=1,
    )
    assert pruner.history == ()
    assert [str(pruner.step() or "") for _ in range(3)] == [
        "step 1: 50.0% of the target, 25.0% of the budget gone, 12 units",
        "step 2: 100.0% of the target, 50.0% of the budget gone, 8 units",
        "",
    ]
    assert list(pruner.plan.keep(pruner.groups).values()) == [tuple(range(8))]
    assert pruner.plan.settings["importance"] == "last_first"


def test_the_last_step_meets_the_target_whatever_is_gone_by_then() -> None:
    def unlucky(step: int) -> float:
        return (0.0, 0.5624, 1.0)[step]

    # In eights, 45.7 % is 16 and 24 units, but 25.7 % is 32 and 16: from there on, 42.9 or 51.4 % can go.
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))
    pruner = Pruner(model, 0.457, schedule=unlucky, example_inputs=torch.randn(1, 8), align=8)
    for _ in range(2):
        pruner.step()
    assert pruner.done
    assert pruner.history[-1].removed == pytest.approx(0.514, abs=1e-3)


def test_release_gives_the_weights_back() -> None:
    model, x = network("transformer")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruner = Pruner(model, 0.5, schedule=schedules.one_shot(), example_inputs=x[:2])
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    pruner.release()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nothing_due_is_nothing_cut() -> None:
    model, x = network("residual")
    pruner = Pruner(model, 0.5, schedule=schedules.one_shot(100), example_inputs=x[:2])
    slim = pruner.commit()
    assert pruner.plan.cuts == ()
    with torch.no_grad():
        torch.testing.assert_close(slim.eval()(x), model.eval()(x))


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"target": 1.0}, InvalidArgument, r"target=1\.0: give the share"),
    ({"schedule": 0.5}, InvalidArgument, r"schedule=0\.5: give one of surgeon\.schedules"),
    ({"schedule": lambda step: 2.0}, InvalidArgument, r"gives 2\.0 at step 0"),
    ({"schedule": schedules.one_shot(), "importance": "taylor"}, InvalidArgument, "none at step 0"),
    ({"importance": "tailor"}, InvalidArgument, "'tailor' is not a criterion"),
    ({"regularizer": 0.1}, InvalidArgument, "regularizer: a float is none"),
    ({"regularizer": [0.1]}, InvalidArgument, "regularizer: a float is none"),
    ({"budget": "latency"}, InvalidArgument, "macs, params, channels"),
    ({"scope": "everywhere"}, InvalidArgument, "global, local"),
    ({"align": 16, "target": 0.93}, Infeasible, "out of reach"),
    ({"ignore": "nothing.like.it"}, InvalidArgument, "is not a part of the model"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_refused_before_anything_is_changed(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model, x = network("residual")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        Pruner(model, **{"target": 0.5, "schedule": SCHEDULE, "example_inputs": x[:2], **options})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_wrapped_model_is_masked_inside() -> None:
    model, x = network("residual")
    wrapped = nn.DataParallel(model)
    pruner = Pruner(wrapped, 0.5, schedule=SCHEDULE, example_inputs=x[:2])
    for _ in range(9):
        wrapped(x).square().mean().backward()
        pruner.step()
    assert pruner.model is model
    slim = pruner.commit()
    assert type(slim) is type(model)
    assert torch.allclose(slim.eval()(x), wrapped.eval()(x), atol=1e-5)


def test_gradients_that_are_missing_are_told() -> None:
    model, x = network("residual")
    pruner = Pruner(model, 0.5, schedule=SCHEDULE, importance="taylor", example_inputs=x[:2])
    with pytest.raises(InvalidArgument, match=r"observe after loss\.backward\(\) and before"):
        pruner.step()


def test_the_state_of_another_is_refused(tmp_path: Path) -> None:
    model, x = network("residual")
    pruner = Pruner(model, 0.5, schedule=SCHEDULE, example_inputs=x[:2])
    with pytest.raises(WeightsError, match="holds no state of a pruner"):
        pruner.load(tmp_path)
    with pytest.raises(WeightsError, match="not the state of such a pruner: 'step'"):
        pruner.load_state_dict({})
    other, y = network("transformer")
    theirs = Pruner(other, 0.5, schedule=schedules.one_shot(), example_inputs=y[:2])
    with pytest.raises(WeightsError, match="no group"):
        pruner.load_state_dict(theirs.state_dict())


def schedule_of(steps: int) -> Schedule:
    return schedules.steps(1, steps, 2)


WORKER = """
import json, sys, torch
from torch import distributed
from torch.nn import functional as F
from surgeon.training.pruner import Pruner
from tests.training.test_pruner import network, schedule_of, sgd
rank, port, importance = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
model, x = network("residual")
wrapped = torch.nn.parallel.DistributedDataParallel(model)
pruner = Pruner(model, 0.5, schedule=schedule_of(4), importance=importance, example_inputs=x[:2], align=1)
optimizer = sgd(model)
for step in range(5):
    optimizer.zero_grad()
    mine = torch.arange(8) + 8 * rank
    F.cross_entropy(wrapped(x[mine]), mine % 5).backward()
    if importance == "gradient":  # gradients that were not averaged: the ranks differ before they agree
        model.head.weight.grad.mul_(1 + rank)
        model.a.weight.grad.mul_(torch.rand(24, 1, 1, 1, generator=torch.Generator().manual_seed(rank)))
    optimizer.step()
    pruner.step()
pruner.plan.save(sys.argv[4])
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("importance", ["taylor", "gradient"])
def test_two_processes_take_the_same_decisions(importance: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = Path(__file__).parents[2]
    paths = [tmp_path / f"{rank}.json" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), port, importance, str(path)], cwd=root, stderr=subprocess.PIPE
        )
        for rank, path in enumerate(paths)
    ]
    errors = [process.communicate(timeout=900)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert b'"cuts": []' not in paths[0].read_bytes()
