"""An optimizer that goes on with the smaller model: what it keeps, what starts anew, what it refuses."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import surgeon
from surgeon.errors import InvalidArgument, PlanError

X = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


def net(classes: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes))


def shrink(model: nn.Module, **options: Any) -> Any:
    return surgeon.shrink(model, 0.4, example_inputs=X, align=1, **options)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 2) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


#: Each kind of optimizer with a state for each parameter, and with options that its state depends on.
KINDS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.01),
    "SGD, momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, 3e-4),
    "Adam, foreach": lambda p: torch.optim.Adam(p, 3e-4, foreach=True, betas=(0.8, 0.9)),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, 3e-4, fused=True),
    "AdamW, amsgrad": lambda p: torch.optim.AdamW(p, 3e-4, amsgrad=True, weight_decay=0.1),
    "Adam, rate as a tensor": lambda p: torch.optim.Adam(p, torch.tensor(3e-4)),
    "NAdam": lambda p: torch.optim.NAdam(p, 3e-4),
    "RAdam": lambda p: torch.optim.RAdam(p, 3e-4),
    "Adamax": lambda p: torch.optim.Adamax(p, 3e-4),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01, initial_accumulator_value=0.5),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
    "ASGD": lambda p: torch.optim.ASGD(p),
    "RMSprop": lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.9),
    "Rprop": lambda p: torch.optim.Rprop(p),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_state_is_cut_like_the_parameters(kind: Callable[[Any], torch.optim.Optimizer]) -> None:
    model = net()
    optimizer = kind(model.parameters())
    train(model, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    slim = shrink(model)
    new, report = surgeon.transfer_optimizer(optimizer, slim, return_report=True)
    assert type(new) is type(optimizer)
    assert report.kept == tuple(dict(slim.named_parameters()))
    assert not report.restarted
    (group,), (old_group,) = new.param_groups, optimizer.param_groups
    assert {k: v for k, v in group.items() if k != "params"} == {k: v for k, v in old_group.items() if k != "params"}
    assert all(a is b for a, b in zip(group["params"], slim.parameters(), strict=True))
    for name, parameter in slim.named_parameters():
        cuts, old = slim.surgeon_plan.tensor(name), optimizer.state[model.get_parameter(name)]
        assert new.state[parameter].keys() == old.keys()
        for key, value in old.items():
            if isinstance(value, Tensor) and value.dim():
                for axis, keep in cuts.items():
                    value = value.index_select(axis, torch.tensor(keep)) if value.shape[axis] > 1 else value
                assert torch.equal(new.state[parameter][key], value), key
            elif isinstance(value, Tensor):
                assert torch.equal(new.state[parameter][key], value)
                assert new.state[parameter][key] is not value
    weights = [value.clone() for value in slim.parameters()]
    train(slim, new)
    assert not any(torch.equal(a, b) for a, b in zip(weights, slim.parameters(), strict=True))
    assert same(optimizer.state_dict()["state"] if before["state"] else {}, before["state"])


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list | tuple) else bool(a == b)


@pytest.mark.parametrize("kind", ["Adam", "SGD, momentum", "RMSprop", "Adagrad"])
def test_training_goes_on_as_if_the_units_had_been_zero(kind: str) -> None:
    """Units whose weights are zero, and have no gradient, change nothing: without them training is the same."""
    model: Any = net()
    with torch.no_grad():
        for layer, after in ((0, 2), (2, 4)):
            model[layer].weight[40:], model[layer].bias[40:] = 0, 0
            model[after].weight[:, 40:] = 0
    optimizer = KINDS[kind](model.parameters())
    train(model, optimizer)
    slim = surgeon.sweep(model, X)
    assert slim[0].out_features == 40
    new = surgeon.transfer_optimizer(optimizer, slim)
    train(model, optimizer, 3)
    train(slim, new, 3)
    assert torch.allclose(slim(X), model(X), atol=1e-6)


def test_groups_and_names_stay() -> None:
    model = net()
    model.get_parameter("0.bias").requires_grad_(False)
    decayed = [(name, value) for name, value in model.named_parameters() if value.dim() > 1]
    biases = [(name, value) for name, value in model.named_parameters() if value.dim() == 1 and value.requires_grad]
    listed: Any = [{"params": decayed}, {"params": biases, "weight_decay": 0.0, "lr": 1e-5}]
    optimizer = torch.optim.AdamW(listed, lr=1e-3)
    train(model, optimizer)
    slim = shrink(model)
    new = surgeon.transfer_optimizer(optimizer, slim)
    assert [group["param_names"] for group in new.param_groups] == [[name for name, _ in decayed], ["2.bias", "4.bias"]]
    assert [group["weight_decay"] for group in new.param_groups] == [0.01, 0.0]
    assert [group["lr"] for group in new.param_groups] == [1e-3, 1e-5]
    assert new.param_groups[1]["params"][0] is slim[2].bias
    train(slim, new)


@pytest.mark.parametrize("form", ["module", "graph"])
def test_from_any_model_that_it_comes_from(form: str) -> None:
    model = net()
    optimizer = KINDS["Adam"](model.parameters())
    train(model, optimizer)
    middle = shrink(model, form=form)
    between = surgeon.transfer_optimizer(optimizer, middle)
    train(middle, between)
    slim = copy.deepcopy(shrink(middle, form=form))
    for old, count in ((optimizer, 2), (between, 4)):
        new = surgeon.transfer_optimizer(old, slim)
        for parameter in slim.parameters():
            assert new.state[parameter]["exp_avg"].shape == parameter.shape
            assert new.state[parameter]["step"] == count
        train(slim, new)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_through_wrappers(wrap: Callable[[nn.Module], Any]) -> None:
    model = wrap(net())
    optimizer = KINDS["Adam"](model.parameters())
    train(model, optimizer)
    slim = shrink(model)
    new, report = surgeon.transfer_optimizer(optimizer, slim, return_report=True)
    assert len(report.kept) == 6
    train(slim, new)


def test_after_a_load_the_model_must_be_told(tmp_path: Path) -> None:
    model = net()
    optimizer = KINDS["Adam"](model.parameters())
    train(model, optimizer)
    surgeon.save(shrink(shrink(model)), tmp_path)
    slim: Any = surgeon.load(tmp_path, net())
    gc.collect()
    with pytest.raises(InvalidArgument, match=r"transfer_optimizer\(optimizer, slim, model=model\)"):
        surgeon.transfer_optimizer(optimizer, slim)
    new = surgeon.transfer_optimizer(optimizer, slim, model=model)
    assert new.state[slim[0].weight]["exp_avg"].shape == slim[0].weight.shape
    train(slim, new)
    with pytest.raises(InvalidArgument, match="model has none of the parameters of the optimizer"):
        surgeon.transfer_optimizer(optimizer, slim, model=net())
    with pytest.raises(InvalidArgument, match="slim is a Sequential that carries no plan"):
        surgeon.transfer_optimizer(optimizer, net())
    wider = nn.Sequential(nn.Linear(16, 99), nn.ReLU(), nn.Linear(99, 64), nn.ReLU(), nn.Linear(64, 10))
    with pytest.raises(PlanError, match=r"0\.weight axis 0"):
        surgeon.transfer_optimizer(torch.optim.SGD(wider.parameters(), 0.1), slim, model=wider)


def test_a_layer_that_was_replaced_starts_anew() -> None:
    model = net()
    optimizer = torch.optim.Adagrad(model.parameters(), 0.1, initial_accumulator_value=0.5)
    train(model, optimizer)
    slim = shrink(model)
    slim[4] = nn.Linear(slim[4].in_features, 3)
    with pytest.warns(UserWarning, match=r"2 of 6 parameters starts anew .* 4\.weight: it was replaced since"):
        new = surgeon.transfer_optimizer(optimizer, slim)
    assert bool((new.state[slim[4].weight]["sum"] == 0.5).all())
    train(slim, new)
    _, report = surgeon.transfer_optimizer(optimizer, slim, return_report=True)
    assert list(report.restarted) == ["4.weight", "4.bias"]
    assert "4.bias starts anew: it was replaced since: the plan leaves [10] of it, and it is [3]" in str(report)


def test_rotated_tensors_start_anew() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = KINDS["Adam"](model.parameters())
    train(model, optimizer)
    slim = shrink(model, data=torch.randn(64, 16))
    new, report = surgeon.transfer_optimizer(optimizer, slim, return_report=True)
    assert set(report.restarted) == {"0.weight", "0.bias", "1.weight"}
    assert report.kept == ("1.bias", "3.weight", "3.bias")
    assert "other directions" in report.restarted["1.weight"]
    assert not new.state[slim[0].weight]
    train(slim, new)


def test_a_parameter_that_is_not_the_models_stays() -> None:
    model, scale = net(), nn.Parameter(torch.ones(3))
    optimizer = KINDS["Adam"]([*model.parameters(), scale])
    scale.sum().backward()
    train(model, optimizer, 1)
    new, report = surgeon.transfer_optimizer(optimizer, shrink(model), return_report=True)
    assert report.others == 1
    assert new.param_groups[0]["params"][-1] is scale


class Own(torch.optim.SGD):
    """With an attribute of its own, which is plain, and perhaps one that is not."""

    def __init__(self, params: Any, inner: Any = None) -> None:
        super().__init__(params, 0.1, momentum=0.9)
        self.warmup, self.inner = {"steps": 3}, inner


class Flat(torch.optim.SGD):
    """Its state is one vector a parameter."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["flat"] = parameter.detach().flatten()


def test_kinds_of_the_users_own() -> None:
    model = net()
    own = Own(model.parameters())
    train(model, own)
    slim = shrink(model)
    new = surgeon.transfer_optimizer(own, slim)
    assert new.warmup == {"steps": 3}
    assert new.warmup is not own.warmup
    with pytest.raises(InvalidArgument, match=r"is a Own, which holds tensors or another optimizer in its .*'inner'"):
        surgeon.transfer_optimizer(Own(model.parameters(), own), slim)
    flat = Flat(model.parameters())
    train(model, flat)
    with pytest.raises(InvalidArgument, match=r"Flat, which keeps 'flat' of 0\.weight with shape \[1024\]"):
        surgeon.transfer_optimizer(flat, slim)
    lbfgs = torch.optim.LBFGS(model.parameters())
    with pytest.raises(InvalidArgument, match=r"LBFGS, which holds tensors .* '_params'.*make a new one"):
        surgeon.transfer_optimizer(lbfgs, slim)


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "steps": lambda o: lr_scheduler.StepLR(o, 2),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 9),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "linear": lambda o: lr_scheduler.LinearLR(o),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3),
    "in sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=2), lr_scheduler.CosineAnnealingLR(o, 9)], [2]),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]),
}  # fmt: skip


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules_go_on(make: Callable[[Any], Any]) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = make(optimizer)
    for _ in range(3):
        train(model, optimizer, 1)
        scheduler.step()
    slim = shrink(model)
    new = surgeon.transfer_optimizer(optimizer, slim)
    goes_on = copy.deepcopy(scheduler, {id(optimizer): new})
    for _ in range(6):
        for each, schedule in ((optimizer, scheduler), (new, goes_on)):
            train(model if each is optimizer else slim, each, 1)
            schedule.step()
        assert new.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        assert new.param_groups[0]["momentum"] == optimizer.param_groups[0]["momentum"]


def test_a_plateau_goes_on() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=2)
    for _ in range(3):
        train(model, optimizer, 1)
        scheduler.step(1.0)
    new = surgeon.transfer_optimizer(optimizer, shrink(model))
    goes_on = copy.deepcopy(scheduler, {id(optimizer): new})
    goes_on.step(1.0)
    assert new.param_groups[0]["lr"] == pytest.approx(0.01)
    assert optimizer.param_groups[0]["lr"] == 0.1
