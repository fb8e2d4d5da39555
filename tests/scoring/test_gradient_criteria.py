"""Criteria made of gradients, against derivatives taken another way, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import InvalidArgument
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Groups, couple
from surgeon.scoring import GRADIENT_CRITERIA, Gradients
from tests.scoring.test_weight_criteria import Attention, Residual


def observed(model: nn.Module, x: Tensor, times: int = 1) -> tuple[Groups, Gradients]:
    """The model's groups, and observations of a loss that no unit is symmetric in."""
    groups = couple(trace(model.eval(), x))
    gradients = Gradients(groups)
    for index in range(times):
        model.zero_grad()
        loss(model, x, index).backward()
        assert gradients.add()
    return groups, gradients


def loss(model: nn.Module, x: Tensor, index: int) -> Tensor:
    y = model(x * (index + 1))
    return (y * torch.arange(1.0, y.numel() + 1, dtype=y.dtype).view_as(y)).sum().square()


def scaled(model: nn.Module, groups: Groups, leaf: int, unit: int, factor: float) -> dict[str, Tensor]:
    """The state in which all that belongs to a unit is multiplied by `factor`."""
    state = {name: value.detach().clone() for name, value in model.named_parameters()}
    group = next(group for group in groups if group.leaf.id == leaf)
    for member in group.members:
        if member.tensor not in state:
            continue
        for units in groups.space.units(groups.tensors[member.tensor][member.axis], group.leaf):
            (positions,) = np.nonzero(units == unit)
            state[member.tensor].index_copy_(
                member.axis, torch.from_numpy(positions),
                state[member.tensor].index_select(member.axis, torch.from_numpy(positions)) * factor,
            )
    return state


@pytest.mark.parametrize(
    ("model", "shape"),
    [(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)), (2, 3, 4, 4)),
     (Attention(), (2, 5, 16))],
)
def test_taylor_is_the_squared_derivative_by_all_that_belongs_to_the_unit(model: nn.Module, shape: tuple[int]) -> None:
    model, x = model.double().eval(), torch.randn(*shape, dtype=torch.float64)
    groups, gradients = observed(model, x)
    step = 1e-5
    for leaf, scores in gradients.scores("taylor").items():
        for unit, score in enumerate(scores):
            ends = []
            for factor in (1 + step, 1 - step):
                def run(y: Tensor, factor: float = factor, unit: int = unit, leaf: int = leaf) -> Tensor:
                    return torch.func.functional_call(model, scaled(model, groups, leaf, unit, factor), (y,))
                y = run(x)
                ends.append((y * torch.arange(1.0, y.numel() + 1).double().view_as(y)).sum().square())
            derivative = float(ends[0] - ends[1]) / (2 * step)
            assert score == pytest.approx(derivative**2, rel=1e-5, abs=1e-9)


def test_fisher_sums_squares_entry_by_entry() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    _, gradients = observed(model, x, 3)
    expected = torch.zeros(4, dtype=torch.float64)
    for index in range(3):
        model.zero_grad()
        loss(model, x, index).backward()
        products = [(p * p.grad).detach().square() for p in model.parameters() if p.grad is not None]
        expected += products[0].sum(1) + products[1] + products[2].sum(0)
    (found,) = gradients.scores("fisher").values()
    np.testing.assert_allclose(found, (expected / 6).numpy(), rtol=1e-12)


def test_gradient_is_the_mean_of_relative_sums_over_members() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    _, gradients = observed(model, torch.randn(5, 3))
    (found,) = gradients.scores("gradient").values()
    assert isinstance(model[0].weight, Tensor) and isinstance(model[2].weight, Tensor)
    assert model[0].weight.grad is not None and model[2].weight.grad is not None
    rows = [model[0].weight.grad.abs().sum(1), model[2].weight.grad.abs().sum(0)]
    expected = sum(row / row.mean() for row in rows) / 2
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-5)


def test_named_gradients_are_those_of_backward() -> None:
    model, x = Residual().eval(), torch.randn(2, 3, 6, 6)
    groups, own = observed(model, x)
    given = Gradients(groups)
    assert given.add({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for criterion in GRADIENT_CRITERIA:
        for leaf, scores in own.scores(criterion).items():
            np.testing.assert_array_equal(scores, given.scores(criterion)[leaf])


def test_a_state_goes_on_where_the_other_stopped() -> None:
    model, x = Residual().eval(), torch.randn(2, 3, 6, 6)
    groups, first = observed(model, x)
    second = Gradients(groups)
    second.load_state_dict(first.state_dict())
    model.zero_grad()
    loss(model, x, 4).backward()
    assert first.add() and second.add()
    for criterion in GRADIENT_CRITERIA:
        for a, b in zip(first.scores(criterion).values(), second.scores(criterion).values(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_overflows_is_no_observation() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    _, gradients = observed(model, torch.randn(5, 3))
    before = gradients.scores("taylor")
    gradient = torch.full((4, 3), float("inf"))
    assert not gradients.add({"0.weight": gradient})
    assert gradients.count == 1
    for leaf, scores in gradients.scores("taylor").items():
        np.testing.assert_array_equal(scores, before[leaf])


def test_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    gradients = Gradients(couple(trace(model, torch.randn(2, 3))))
    with pytest.raises(InvalidArgument, match=r"after loss\.backward"):
        gradients.add()
    with pytest.raises(InvalidArgument, match=r"0\.weight has shape \(4, 3\), its gradient \(3, 4\)"):
        gradients.add({"0.weight": torch.zeros(3, 4)})
    with pytest.raises(InvalidArgument, match="call add after"):
        gradients.scores("taylor")
    with pytest.raises(InvalidArgument, match="'magnitude' is not based on gradients"):
        gradients.scores("magnitude")
    with pytest.raises(InvalidArgument, match="another model's groups"):
        gradients.load_state_dict({"count": torch.tensor(1)})
