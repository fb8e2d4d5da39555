"""Heads that run in train mode alone: project and recover leave them computing what they computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from surgeon.plans.basis import basis_of


class Bottleneck(nn.Module):
    """A linear bottleneck, and a head of its own that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mid, self.hidden = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 9)
        self.out, self.aux = nn.Linear(9, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.up(x)
        out = self.out(F.relu(self.hidden(self.mid(y))))
        return (out, self.aux(y)) if self.training else out


class Attention(nn.Module):
    """One head of attention, and a train-only head that reads what it gathers, queries too."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.aux = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        q, k, v = (layer(x)[:, None] for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)[:, 0]
        out = self.out(y)
        return (out, self.aux(y) + self.aux(q[:, 0])) if self.training else out


class Grouped(nn.Module):
    """A grouped convolution, whose channels a train-only head reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=3)
        self.out, self.aux = nn.Conv2d(12, 4, 1), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.middle(F.relu(self.first(x))))
        out = self.out(y).mean((2, 3))
        return (out, F.dropout(self.aux(y), 0.5, self.training)) if self.training else out


CASES = {
    "bottleneck": (Bottleneck, (6,)), "attention": (Attention, (5, 6)), "grouped": (Grouped, (3, 4, 4)),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, shape = CASES[name]
    return build().double().eval(), torch.randn(96, *shape, dtype=torch.float64)


def outputs(model: nn.Module, x: Tensor, train: bool) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        return model.train(train)(x)


@pytest.mark.parametrize("name", CASES)
def test_a_projected_model_computes_the_same_in_both_modes(name: str) -> None:
    net, x = made(name)
    rotated = surgeon.project(net, x, example_inputs=x[:2])
    for train in (False, True):
        torch.testing.assert_close(outputs(rotated, x, train), outputs(net, x, train), rtol=1e-9, atol=1e-9)


def test_what_the_train_only_head_does_not_read_is_rotated() -> None:
    net, x = made("bottleneck")
    basis = basis_of(surgeon.project(net, x, example_inputs=x[:2]))
    assert basis is not None and basis.groups == ("mid",)


@pytest.mark.parametrize("form", ["auto", "graph"])
@pytest.mark.parametrize("name", CASES)
def test_recovery_takes_a_plan_of_a_model_with_a_train_only_head(name: str, form: str) -> None:
    net, x = made(name)
    plan = surgeon.plan(net, 0.5, example_inputs=x[:2], budget="channels", align=1)
    slim = plan.apply(net, form=form)
    better, report = surgeon.recover(net, slim, plan, x, return_report=True)
    assert report.after < report.before
    with torch.no_grad():
        assert (better(x) - net(x)).norm() < (slim(x) - net(x)).norm()


@pytest.mark.parametrize("form", ["auto", "graph"])
def test_shrink_with_data_takes_it_too(form: Any) -> None:
    net, x = made("bottleneck")
    slim, report = surgeon.shrink(net, 0.4, data=x, example_inputs=x[:2], align=1, form=form, return_report=True)
    assert report.certificate.deviation < 1e-9 and slim(x).shape == (96, 4)
