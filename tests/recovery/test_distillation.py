"""Distillation: what the cut touches is moved together toward the original, where that helps on inputs held back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.calibration.data import calibrate
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import couple
from surgeon.plans.plan import Plan
from surgeon.recovery import Recovery, distillation, recover


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 12)
        self.up, self.down = nn.Linear(12, 32), nn.Linear(32, 12)
        self.out = nn.Linear(12, 20, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        return self.out(x + self.down(F.gelu(self.up(x))))


class Stamped(nn.Module):
    """A batch that is written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x.reshape(4, 6))))


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 24, 3, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, groups=24), nn.ReLU(),
        nn.Conv2d(24, 24, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 5),
    )


NETWORKS = {
    "images": (images, torch.randn(4, 2, 8, 8), lambda n: F.interpolate(torch.randn(n, 2, 2, 2), 8, mode="bilinear")),
    "tokens": (Tied, torch.randint(20, (4, 5)), lambda n: torch.randint(20, (n, 5))),
    "a batch of its own": (Stamped, torch.randn(4, 6), lambda n: torch.randn(n, 6)),
}


def halved(net: nn.Module, example: Tensor) -> tuple[nn.Module, Plan]:
    groups = couple(trace(net, example))
    plan = Plan.of(groups, {group.leaf.id: range(group.size // 2) for group in groups}, model=net)
    return plan.apply(net, example), plan


def recovered(net: nn.Module, example: Tensor, data: Any, **options: Any) -> tuple[nn.Module, nn.Module, Recovery]:
    slim, plan = halved(net, example)
    made, report = recover(net, slim, plan, data, example_inputs=example, return_report=True, **options)
    return slim, made, report


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_nearer_on_inputs_never_seen(name: str) -> None:
    torch.manual_seed(0)
    build, example, draw = NETWORKS[name]
    net = build().eval()
    data, unseen = draw(192), draw(4)
    before = copy.deepcopy(net.state_dict())
    _, fitted, _ = recovered(net, example, data, distill=False)
    _, moved, report = recovered(net, example, data)
    assert report.distilled is not None and report.distilled.steps > 0
    assert report.after == report.distilled.after < report.distilled.before
    assert f"distilled in {report.distilled.steps} steps" in str(report)
    with torch.no_grad():
        wanted = net(unseen)
        assert (moved(unseen) - wanted).norm() < (fitted(unseen) - wanted).norm()
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_it_is_the_same_again() -> None:
    torch.manual_seed(0)
    net, data = images().eval(), torch.randn(128, 2, 8, 8)
    one, two = (recovered(net, data[:2], data)[1].state_dict() for _ in range(2))
    torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"distill": False}, {"compensate": False}])
def test_it_can_be_switched_off(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    net, data = images().eval(), torch.randn(128, 2, 8, 8)
    assert recovered(net, data[:2], data, **options)[2].distilled is None


def test_few_samples_and_noise_teach_nothing() -> None:
    torch.manual_seed(0)
    net = images().eval()
    report = recovered(net, torch.randn(2, 2, 8, 8), torch.randn(distillation.FEWEST // 2, 2, 8, 8))[2]
    assert report.distilled is None and "not distilled: 28 samples are too few" in str(report)
    plain = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))  # no batch norm: inputs are drawn at random
    report = recovered(plain, torch.randn(2, 8), "synthetic")[2]
    assert report.distilled is None and "not distilled: nothing can be learned from noise" in str(report)


@pytest.mark.parametrize(("loss", "told"), [(float("nan"), "was nan"), (float("inf"), "was inf")])
def test_a_deviation_that_is_no_number_is_told(loss: float, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, data = images().eval(), torch.randn(128, 2, 8, 8)
    _, fitted, _ = recovered(net, data[:2], data, distill=False)
    right, calls = distillation._Learner.deviation, []

    def deviation(learner: distillation._Learner, batch: Any) -> Tensor:
        calls.append(batch)
        return right(learner, batch) * (loss if len(calls) == 3 else 1.0)

    monkeypatch.setattr(distillation._Learner, "deviation", deviation)
    _, kept, report = recovered(net, data[:2], data)
    assert report.distilled is None
    assert f"not distilled: at step 3 of 35, the deviation from the original {told}" in str(report)
    torch.testing.assert_close(kept.state_dict(), fitted.state_dict(), rtol=0, atol=0)


def test_what_does_not_help_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, data = images().eval(), torch.randn(128, 2, 8, 8)
    _, fitted, _ = recovered(net, data[:2], data, distill=False)
    monkeypatch.setattr(distillation, "RATE", 10.0)
    monkeypatch.setattr(distillation, "RELATIVE_RATE", 10.0)
    _, kept, report = recovered(net, data[:2], data)
    assert report.distilled is not None and report.distilled.steps == 0
    assert "undone" in str(report)
    torch.testing.assert_close(kept.state_dict(), fitted.state_dict(), rtol=0, atol=0)


def test_tied_frozen_and_half_parameters_stay_what_they_are() -> None:
    torch.manual_seed(0)
    net = Tied().eval().bfloat16().requires_grad_(False)
    slim, moved, report = recovered(net, torch.randint(20, (2, 5)), torch.randint(20, (192, 5)))
    assert report.distilled is not None and report.distilled.steps > 0
    assert moved.get_parameter("out.weight") is moved.get_parameter("table.weight")
    assert all(each.dtype == torch.bfloat16 and not each.requires_grad for each in moved.parameters())
    assert moved.get_parameter("up.weight").shape == slim.get_parameter("up.weight").shape == (16, 6)


def test_numbers_are_mixed_and_tokens_are_not() -> None:
    torch.manual_seed(0)
    for name, mixes in {"images": True, "tokens": False}.items():
        build, example, draw = NETWORKS[name]
        net = build().eval()
        groups = couple(trace(net, example))
        data = draw(96)
        samples = distillation._Samples(groups, calibrate(data, groups.graph, net).fit, seed=0)
        drawn = torch.cat([samples.draw()[0][0] for _ in range(4)])
        known = (drawn[:, None] == data[None]).flatten(2).all(2).any(1)
        share = float(known.float().mean())
        assert 0.3 < share < 0.7 if mixes else share == 1.0
