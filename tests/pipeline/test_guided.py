"""Unlabeled data as a guide: what is cut, and what makes up for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import InvalidArgument, InvalidInputs


class Redundant(nn.Module):
    """A convolutional network whose second half of hidden channels repeats the first, in other proportions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 32, 3)
        self.second = nn.Conv2d(32, 32, 3)
        self.norm = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 5)
        with torch.no_grad():
            for value in self.first.parameters():
                value[16:] = 3 * value[:16]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.second(self.first(x).relu())).relu().mean((2, 3)))


DATA = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(1))
TEST = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def deviation(net: nn.Module, slim: nn.Module) -> float:
    with torch.no_grad():
        want = net.eval()(TEST)
        return float((slim.eval()(TEST) - want).norm() / want.norm())


def test_data_restore_what_can_be_restored() -> None:
    net = Redundant().eval()
    options: dict[str, Any] = {"example_inputs": TEST[:2], "min_width": {"second": 1.0}, "align": 1}
    blind = surgeon.shrink(net, 0.4, compensate=False, **options)
    slim, report = surgeon.shrink(net, 0.4, data=DATA, return_report=True, **options)
    assert report.recovery is not None and report.recovery.after < report.recovery.before
    assert deviation(net, slim) < 0.1 * deviation(net, blind)
    assert abs(report.reached - 0.4) <= 0.02
    assert "reconstruction" in str(slim.surgeon_plan.settings["importance"])


def test_every_part_can_be_switched_off() -> None:
    net = Redundant().eval()
    inputs = TEST[:2]
    whole = surgeon.shrink(net, 0.5, example_inputs=inputs, data=DATA)
    cut = surgeon.shrink(net, 0.5, example_inputs=inputs, data=DATA, compensate=False)
    ranked = surgeon.shrink(net, 0.5, example_inputs=inputs, data=DATA, importance="magnitude")
    plain = surgeon.shrink(net, 0.5, example_inputs=inputs, compensate=False)
    assert deviation(net, whole) < deviation(net, cut)
    assert deviation(net, ranked) < deviation(net, plain)


def test_a_plan_is_guided_too_and_recovered_later() -> None:
    net = Redundant().eval()
    plan = surgeon.plan(net, 0.5, example_inputs=TEST[:2], data=DATA)
    slim = plan.apply(net)
    better = surgeon.recover(net, slim, plan, DATA)
    assert deviation(net, better) < deviation(net, slim)


@pytest.mark.parametrize("budget", ["params", "channels"])
def test_other_budgets(budget: str) -> None:
    net = Redundant().eval()
    _, report = surgeon.shrink(
        net, 0.5, example_inputs=TEST[:2], data=DATA, budget=budget, align=1, return_report=True
    )
    assert abs(report.reached - 0.5) <= 0.03


def test_bad_data() -> None:
    net = Redundant().eval()
    with pytest.raises(InvalidArgument, match="data="):
        surgeon.shrink(net, 0.5, example_inputs=TEST[:2], importance="reconstruction")
    bad: list[Any] = [[], torch.full((8, 3, 8, 8), float("nan")), torch.zeros(8, 4, 8, 8)]
    for data in bad:
        with pytest.raises(InvalidInputs):
            surgeon.shrink(net, 0.5, example_inputs=TEST[:2], data=data)
