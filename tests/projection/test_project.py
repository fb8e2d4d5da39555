"""Projection: a linear stream in another basis is the same model, of which less is lost by a cut."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.calibration.data import calibrate
from surgeon.calibration.fisher import measure
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import couple
from surgeon.plans.basis import basis_of
from surgeon.plans.plan import Plan
from surgeon.projection.project import project
from surgeon.recovery.recover import recover


class Inverted(nn.Module):
    """A linear bottleneck between blocks that expand it, with batch norms and a shortcut."""

    def __init__(self, norms: bool = True) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, bias=not norms), self.norm(norms, 8)
        self.expand, self.project = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1, bias=False)
        self.bn2, self.read = self.norm(norms, 8), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    @staticmethod
    def norm(norms: bool, channels: int) -> nn.Module:
        if not norms:
            return nn.Identity()
        norm = nn.BatchNorm2d(channels)
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            assert tensor is not None
            nn.init.uniform_(tensor, 0.5, 1.5)
        return norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x))
        x = x + self.bn2(self.project(F.relu(self.expand(x))))
        return self.head(F.relu(self.read(x)).mean((2, 3)))


class Bent(nn.Module):
    """Streams that something other than addition happens to."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.up, self.down, self.norm = nn.Linear(3, 8), nn.Linear(8, 4), nn.LayerNorm(8)
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        match self.how:
            case "activation":
                x = x.relu()
            case "norm":
                x = self.norm(x)
            case "scale":
                x = x * self.scale
            case "position":
                x = x + self.scale
            case "maximum":
                x = x.amax(1, keepdim=True)
            case _:
                x = x.unflatten(2, (2, 4)).flip(2).flatten(2)
        return self.down(x)


def groups_of(model: nn.Module) -> tuple[str, ...]:
    basis = basis_of(model)
    assert basis is not None
    return basis.groups


def images() -> Tensor:
    return torch.randn(64, 3, 7, 7, dtype=torch.float64)


@pytest.mark.parametrize("norms", [True, False])
def test_the_rotated_model_computes_the_same(norms: bool) -> None:
    net = Inverted(norms).double().eval()
    before, x = copy.deepcopy(net), images()
    rotated = project(net, x, example_inputs=x)
    assert groups_of(rotated) == ("stem",)
    torch.testing.assert_close(rotated(x), net(x))
    state = net.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in before.state_dict().items())
    assert not torch.allclose(rotated.state_dict()["read.weight"], state["read.weight"])


def test_the_rotated_norms_hold_the_statistics_of_what_they_read() -> None:
    net = Inverted().double().eval()
    x = images()
    rotated = project(net, x, example_inputs=x)
    assert isinstance(rotated, Inverted)
    with torch.no_grad():
        read = rotated.stem(x)
    state = rotated.state_dict()
    torch.testing.assert_close(state["bn.running_mean"], read.mean((0, 2, 3)))
    torch.testing.assert_close(state["bn.running_var"], read.var((0, 2, 3), correction=0))


def test_what_a_stream_does_not_use_is_cut_without_loss() -> None:
    # Eight units that span three directions: any three of them will do in the new basis, five of them are nothing.
    up = nn.Linear(3, 8)
    net = nn.Sequential(up, nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).double().eval()
    x = torch.randn(256, 3, dtype=torch.float64)
    rotated = project(net, x, example_inputs=x)
    assert groups_of(rotated) == ("0",)
    groups = couple(trace(rotated, x))
    group = next(group for group in groups if group.size == 8)
    plan = Plan.of(groups, {group.leaf.id: range(3)}, model=rotated)
    slim = recover(rotated, plan.apply(rotated, x), plan, x, ridge=1e-9)
    torch.testing.assert_close(slim(x), net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["activation", "scale", "maximum", "halves"])
def test_other_streams_are_left_alone(how: str) -> None:
    net, x = Bent(how).eval(), torch.randn(64, 5, 3)
    assert project(net, x, example_inputs=x) is net


@pytest.mark.parametrize("how", ["norm", "position"])
def test_a_norm_and_a_parameter_that_is_added_are_part_of_a_stream(how: str) -> None:
    net, x = Bent(how).double().eval(), torch.randn(64, 5, 3, dtype=torch.float64)
    rotated = project(net, x, example_inputs=x)
    assert len(groups_of(rotated)) == 1
    torch.testing.assert_close(rotated(x), net(x), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(rotated.state_dict()["up.weight"], net.up.weight)


class Attended(nn.Module):
    """A linear stream that one head of attention reads, whose values and queries are rotated too."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.out = nn.Linear(6, 8), nn.Linear(4, 5)
        self.q, self.k, self.v = (nn.Linear(8, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        q, k, v = (layer(y)[:, None] for layer in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v)[:, 0])


class Chained(nn.Module):
    """Two linear streams, one behind the other, the second found before the first."""

    def __init__(self) -> None:
        super().__init__()
        self.mid, self.up, self.out = nn.Linear(8, 5), nn.Linear(6, 8), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mid(self.up(x)))


class Sorted(nn.Module):
    """A linear stream, read by a layer whose outputs change places in the groups of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mid = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1)
        self.grouped, self.out = nn.Conv2d(12, 12, 3, groups=3), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.grouped(F.relu(self.mid(self.up(x)))))).mean((2, 3))


TURNED = {"attended": (Attended, (5, 6)), "chained": (Chained, (6,)), "sorted": (Sorted, (3, 5, 5))}


@pytest.mark.parametrize("name", TURNED)
def test_a_streams_directions_are_ordered_by_what_the_output_makes_of_them(name: str) -> None:
    """Whatever else is rotated: measured anew, their costs are apart from one another, and fall."""
    torch.manual_seed(0)
    build, shape = TURNED[name]
    net, x = build().double().eval(), torch.randn(96, *shape, dtype=torch.float64)
    rotated = project(net, x, example_inputs=x[:2])
    assert len(groups_of(rotated)) > 1
    groups = couple(trace(rotated, x[:2]))
    leaf = next(group.leaf.id for group in groups if group.size == 8)
    costs = torch.zeros(8, 8, dtype=torch.float64)
    for reader in measure(groups, calibrate(x, groups.graph, rotated)).readers:
        if leaf in reader.units:
            matrix = reader.layer.matrix(reader.layer.weight.read())[0]
            costs += matrix @ reader.metric[0] @ matrix.t()
    diagonal = costs.diagonal()
    assert bool((diagonal.diff() <= 1e-9 * diagonal[0]).all())
    torch.testing.assert_close(costs, diagonal.diag(), rtol=0, atol=1e-4 * float(diagonal[0]))
