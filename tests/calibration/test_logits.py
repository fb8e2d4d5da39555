"""A model that ends in a softmax or a sigmoid is judged, and trained, as the same model without it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import surgeon
from surgeon.calibration.data import calibrate
from surgeon.calibration.fisher import measure
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import couple


def body() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 5))


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.Sigmoid()])
def test_gradients_are_those_of_logits(end: nn.Module) -> None:
    x = torch.randn(64, 6)
    found = []
    for net in (body(), nn.Sequential(*body(), end)):
        groups = couple(trace(net.eval(), x[:2]))
        sensitivity = measure(groups, calibrate(x, groups.graph, net))
        found.append([reader.gradients.products for reader in sensitivity.readers])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.Sigmoid()])
def test_the_smaller_model_has_the_same_weights(end: nn.Module) -> None:
    x = torch.randn(192, 6, generator=torch.Generator().manual_seed(1)) * 3
    plain = surgeon.shrink(body(), 0.5, data=x, align=1)
    squashed = surgeon.shrink(nn.Sequential(*body(), copy.deepcopy(end)), 0.5, data=x, align=1)
    for ours, theirs in zip(squashed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
