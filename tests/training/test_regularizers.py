"""The gradients that regularizers add, against autograd's of the penalty itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import InvalidArgument
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Groups, couple
from surgeon.training.regularizers import Regularizer, batch_norm_l1, group_lasso, l1, l2


class Small(nn.Module):
    """A residual convolution, a batch norm, and a flatten that gives a unit several columns."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.a(x)))
        return self.head((x + self.b(x)).flatten(1))


def lasso(model: Small) -> Tensor:
    """All that belongs to a channel, written out."""
    assert model.a.bias is not None
    total = torch.zeros((), dtype=torch.float64)
    for unit in range(4):
        mine = [model.a.weight[unit], model.a.bias[unit], model.bn.weight[unit], model.bn.bias[unit],
                model.b.weight[unit], model.b.weight[:, unit], model.head.weight[:, 4 * unit : 4 * unit + 4]]
        total = total + torch.cat([part.flatten() for part in mine]).square().sum().sqrt()
    return total


def weights(model: Small) -> list[Tensor]:
    return [model.a.weight, model.b.weight, model.head.weight]


PENALTIES: list[tuple[Regularizer, Callable[[Small], Tensor]]] = [
    (l1(0.1), lambda model: 0.1 * torch.stack([w.abs().sum() for w in weights(model)]).sum()),
    (l2(0.1), lambda model: 0.05 * torch.stack([w.square().sum() for w in weights(model)]).sum()),
    (batch_norm_l1(0.1), lambda model: 0.1 * model.bn.weight.abs().sum()),
    (group_lasso(0.1), lambda model: 0.1 * lasso(model)),
]


def prepared() -> tuple[Small, Groups, Tensor]:
    model = Small().double().eval()
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    return model, couple(trace(model, x)), x


@pytest.mark.parametrize(("regularizer", "penalty"), PENALTIES, ids=["l1", "l2", "batch_norm_l1", "group_lasso"])
def test_the_gradient_of_the_penalty_is_added(regularizer: Regularizer, penalty: Callable[[Small], Tensor]) -> None:
    model, groups, x = prepared()
    (model(x).square().sum() + penalty(model)).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model(x).square().sum().backward()
    regularizer(groups)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("regularizer", [r for r, _ in PENALTIES], ids=["l1", "l2", "batch_norm_l1", "group_lasso"])
def test_what_is_frozen_stays_without_a_gradient(regularizer: Regularizer) -> None:
    model, groups, _ = prepared()
    model.requires_grad_(False)
    regularizer(groups)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_unit_that_is_gone_is_not_pulled() -> None:
    model, groups, x = prepared()
    assert model.a.bias is not None
    with torch.no_grad():
        for tensor in (model.a.weight, model.a.bias, model.bn.weight, model.bn.bias, model.b.weight):
            tensor[1] = 0
        model.b.weight[:, 1] = 0
        model.head.weight[:, 4:8] = 0
    model(x).sum().mul(0).backward()
    group_lasso(0.1)(groups)
    assert model.a.weight.grad is not None
    assert model.a.weight.grad[1].eq(0).all() and model.a.weight.grad[0].ne(0).any()


def test_refused() -> None:
    with pytest.raises(InvalidArgument, match="strength=-1"):
        l1(-1)
    with pytest.raises(InvalidArgument, match="strength=nan"):
        group_lasso(float("nan"))
    groups = couple(trace(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), torch.zeros(2, 2)))
    with pytest.raises(InvalidArgument, match="no batch norm with a scale; take group_lasso"):
        batch_norm_l1(0.1)(groups)
