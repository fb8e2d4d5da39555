"""`shrink` with data in a rotated basis, and plans that are of that basis alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import PlanError
from surgeon.plans.basis import basis_of


class Linked(nn.Module):
    """A hidden layer that a linear bottleneck of few directions leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up = nn.Linear(6, 3), nn.Linear(3, 16)
        self.hidden, self.out = nn.Linear(16, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.hidden(self.up(self.first(x).relu())).relu())
        return y


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Linked().eval()


@pytest.fixture
def data() -> Tensor:
    return torch.randn(256, 6, generator=torch.Generator().manual_seed(0))


def test_project_can_be_switched_off(net: nn.Module, data: Tensor) -> None:
    turned, told = surgeon.shrink(net, 0.5, data=data, example_inputs=data[:2], align=1, return_report=True)
    straight, other = surgeon.shrink(
        net, 0.5, data=data, example_inputs=data[:2], align=1, project=False, return_report=True
    )
    assert told.basis.groups == ("up",)
    assert told.basis.deviation < 1e-4
    assert "1 group rotated before the cut (up)" in str(told)
    assert other.basis is None
    assert "rotated" not in str(other)
    assert told.certificate.deviation < 1e-9
    assert told.recovery.after <= other.recovery.after + 1e-3
    assert basis_of(turned) is basis_of(straight) is None


def test_without_guided_selection_nothing_is_rotated(net: nn.Module, data: Tensor) -> None:
    _, told = surgeon.shrink(
        net, 0.5, data=data, example_inputs=data[:2], importance="magnitude", return_report=True
    )
    assert told.basis is None


def test_what_is_ignored_stays(net: nn.Module, data: Tensor) -> None:
    assert isinstance(net, Linked)
    slim, told = surgeon.shrink(
        net, 0.3, data=data, example_inputs=data[:2], ignore=[net.up], align=1, return_report=True
    )
    assert told.basis is None
    assert torch.equal(slim.up.weight[:, :3], net.up.weight)


def test_a_plan_of_a_rotated_model_is_of_no_other(net: nn.Module, data: Tensor) -> None:
    rotated = surgeon.project(net, data, example_inputs=data[:2])
    plan = surgeon.plan(rotated, 0.5, data=data, example_inputs=data[:2], align=1)
    slim = plan.apply(rotated)
    assert surgeon.verify(rotated, slim, plan).deviation < 1e-9
    for act in (
        lambda: plan.apply(net), lambda: surgeon.verify(net, slim, plan), lambda: surgeon.recover(net, slim, plan, data)
    ):
        with pytest.raises(PlanError, match=r"surgeon\.project rotated"):
            act()
    with pytest.raises(PlanError, match=r"before surgeon\.project rotated it"):
        surgeon.plan(net, 0.5, example_inputs=data[:2]).apply(rotated)


def test_the_result_carries_the_plan_of_the_rotated_model(net: nn.Module, data: Tensor) -> None:
    slim = surgeon.shrink(net, 0.5, data=data, example_inputs=data[:2], align=1)
    with pytest.raises(PlanError, match="project=False"):
        slim.surgeon_plan.apply(net)
    rotated = surgeon.project(net, data, example_inputs=data[:2])
    same = slim.surgeon_plan.apply(rotated)
    assert [tuple(p.shape) for p in same.parameters()] == [tuple(p.shape) for p in slim.parameters()]


def test_the_result_is_saved_and_loaded(net: nn.Module, data: Tensor, tmp_path: Path) -> None:
    slim = surgeon.shrink(net, 0.5, data=data, example_inputs=data[:2], align=1)
    surgeon.save(slim, tmp_path / "slim")
    torch.testing.assert_close(surgeon.load(tmp_path / "slim", Linked().eval())(data), slim(data))


def test_a_result_is_shrunk_again(net: nn.Module, data: Tensor) -> None:
    slim = surgeon.shrink(net, 0.3, data=data, example_inputs=data[:2], align=1)
    again, told = surgeon.shrink(slim, 0.3, data=data, example_inputs=data[:2], align=1, return_report=True)
    assert told.basis.groups == ("up",)
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in slim.parameters())


def test_the_model_is_left_as_it_is(net: nn.Module, data: Tensor) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    surgeon.shrink(net, 0.5, data=data, example_inputs=data[:2])
    assert basis_of(net) is None
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
