"""Without data and batch norms: what goes is merged into what stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import surgeon

TEST = torch.randn(64, 6, generator=torch.Generator().manual_seed(1)) + 1


def redundant(activation: nn.Module) -> Any:
    """Of 32 hidden units, the second half are the first half's, halved."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(6, 32), activation, nn.Linear(32, 3))
    with torch.no_grad():
        net[0].weight[16:] = net[0].weight[:16] / 2
        net[0].bias[16:] = net[0].bias[:16] / 2
    return net.eval()


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.2)])
def test_units_that_repeat_others_are_merged_into_them(activation: nn.Module) -> None:
    net = redundant(activation)
    options: dict[str, Any] = {"example_inputs": torch.zeros(2, 6), "importance": "magnitude", "data": "synthetic"}
    merged, report = surgeon.shrink(net, 0.5, return_report=True, **options)
    cut = surgeon.shrink(net, 0.5, compensate=False, **options)
    with torch.no_grad():
        want = net(TEST)
        after, before = (float((slim(TEST) - want).norm() / want.norm()) for slim in (merged, cut))
    assert after < 0.4 * before
    assert report.recovery.after < report.recovery.before
    assert any("at random" in note for note in report.recovery.notes)
    assert torch.equal(merged[2].bias, net[2].bias), "noise says nothing of the mean"


def test_a_plan_is_merged_later_too() -> None:
    net = redundant(nn.ReLU())
    plan = surgeon.plan(net, 0.5, example_inputs=torch.zeros(2, 6))
    slim = plan.apply(net)
    merged = surgeon.recover(net, slim, plan, "synthetic")
    with torch.no_grad():
        want = net(TEST)
        assert float((merged(TEST) - want).norm()) < 0.4 * float((slim(TEST) - want).norm())
