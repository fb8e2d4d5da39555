"""What is told of a model that is not what a plan makes of another: other weights, changed weights, or other code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import surgeon
from surgeon.errors import NotEquivalent


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = (nn.Conv1d(4, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 32, 1), nn.ReLU(), nn.Conv1d(32, 3, 1))
    return nn.Sequential(*layers).eval()


def changed(model: nn.Module) -> nn.Module:
    model.get_parameter("3.weight").data.mul_(1.1)
    return model


def trained(model: nn.Module) -> nn.Module:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.add_(torch.randn_like(tensor).abs() * 0.1)
    return model


def rewritten(model: nn.Module) -> nn.Module:
    model.add_module("2", nn.LeakyReLU())
    return model


def narrower(model: nn.Module) -> nn.Module:
    model.add_module("5", nn.Conv1d(model.get_parameter("5.weight").shape[1], 2, 1))
    return model


# whose weights, what is done to the smaller model, what is told, what is not
TOLD: list[tuple[int, Callable[[nn.Module], nn.Module], str, str]] = [
    (1, lambda model: model, "None of its tensors is the model's .* another seed or checkpoint", "compensation"),
    (0, trained, "None of its tensors is the model's .* all of it was fitted or trained since", "compensation"),
    (0, changed, r"1 of its \d+ tensors are not .*\(3\.weight\), the others are: .*compensation", "another seed"),
    (0, rewritten, "Its tensors are the model's .*: its code or its settings differ", "compensation"),
    (0, narrower, r"in other shapes: 5\.weight, 5\.bias", "compensation"),
]


@pytest.mark.parametrize(("seed", "change", "told", "not_told"), TOLD)
@pytest.mark.parametrize("form", ["module", "graph"])
def test_what_differs_is_told_apart(
    seed: int, change: Callable[[nn.Module], nn.Module], told: str, not_told: str, form: str
) -> None:
    x = torch.randn(2, 4, 5)
    model = network(0)
    plan = surgeon.plan(model, 0.5, example_inputs=x, align=1)
    if form == "graph" and change is rewritten:
        pytest.skip("a graph's code is no submodule's")
    slim = change(plan.apply(network(seed), x, form=form))
    with pytest.raises(NotEquivalent, match=told) as caught:
        plan.verify(model, slim, x)
    assert not_told not in str(caught.value)


def test_compensation_is_told() -> None:
    x = torch.randn(2, 4, 5)
    model = network(0)
    plan = surgeon.plan(model, 0.5, example_inputs=x, align=1)
    slim = surgeon.recover(model, plan.apply(model, x), plan, torch.randn(64, 4, 5), example_inputs=x, distill=False)
    with pytest.raises(NotEquivalent, match="compensation for it"):
        plan.verify(model, slim, x)
