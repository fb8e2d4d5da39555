"""Slots inside of groups: units change places within each group, and the model computes the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surgeon.frontend.trace import trace
from surgeon.groups.coupling import couple
from surgeon.plans.basis import basis_of
from surgeon.plans.plan import Plan
from surgeon.projection.project import project


class Grouped(nn.Module):
    """A grouped convolution between two that mix all channels, with norms over channels and over groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12)
        self.middle, self.norm = nn.Conv2d(12, 15, 3, padding=1, groups=3), nn.GroupNorm(3, 15)
        self.last = nn.Conv2d(15, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.first(x)).relu()
        return self.last(self.norm(self.middle(x)).relu()).mean((2, 3))


def test_channels_change_places_in_each_group() -> None:
    torch.manual_seed(0)
    net, x = Grouped().double().eval(), torch.randn(32, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        for start, channel in ((0, 2), (5, 1), (10, 0)):  # another slot in each of the three groups
            net.middle.weight[start : start + 5, channel] = 0
    rotated = project(net, x, example_inputs=x)
    basis = basis_of(rotated)
    assert basis is not None
    assert len(basis.groups) == 2
    torch.testing.assert_close(rotated(x), net(x), rtol=1e-9, atol=1e-9)
    groups = couple(trace(rotated, x))
    slots = next(group for group in groups if group.size == 4)
    plan = Plan.of(groups, {slots.leaf.id: range(3)}, model=rotated)
    torch.testing.assert_close(plan.apply(rotated, x)(x), net(x), rtol=1e-9, atol=1e-9)


def test_norms_go_along() -> None:
    torch.manual_seed(0)
    net, x = Grouped().double().train(), torch.randn(32, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        net(x)
        for norm in (net.bn, net.norm):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    net.eval()
    rotated = project(net, x, example_inputs=x)
    torch.testing.assert_close(rotated(x), net(x), rtol=1e-9, atol=1e-9)
    assert isinstance(rotated, Grouped)
    for old, new in ((net.bn, rotated.bn), (net.norm, rotated.norm)):
        assert not torch.equal(old.weight, new.weight)
        for group, sorted_ in zip(old.weight.unflatten(0, (3, -1)), new.weight.unflatten(0, (3, -1)), strict=True):
            assert torch.equal(group.sort().values, sorted_.sort().values)
