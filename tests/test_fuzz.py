"""Random networks under random plans against the oracle, and the oracle and the generator themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testbed import oracle, sized_trial, trial
from testbed.networks import random_network, tensors

NETWORKS, SHARE, SIZED = 300, 10, 40


@pytest.mark.parametrize("first", range(0, NETWORKS, SHARE))
def test_pruned_networks_compute_what_is_left_of_the_original(first: int) -> None:
    outcomes = [outcome for seed in range(first, first + SHARE) for outcome in trial.examine(seed)]
    failures = [o for o in outcomes if o.verdict != "right"]
    lines = [f"seed {o.seed} ({o.network}): {o.verdict} {o.deviation:.2g} {o.message}" for o in failures]
    assert not failures, "\n".join(lines)
    assert sum(o.removed for o in outcomes) > 0


@pytest.mark.parametrize("first", range(0, SIZED, SHARE))
def test_pruned_networks_are_right_or_refuse_at_every_size(first: int) -> None:
    outcomes = [outcome for seed in range(first, first + SHARE) for outcome in sized_trial.examine_sizes(seed)]
    failures = [o for o in outcomes if o.verdict not in ("right", "refused")]
    lines = [f"seed {o.seed} ({o.network} {o.form}): {o.verdict} {o.deviation:.2g} {o.message}" for o in failures]
    assert not failures, "\n".join(lines)
    at_others = [o for o in outcomes if o.plan > 0]
    assert sum(o.verdict == "right" for o in at_others) > 0.7 * len(at_others)
    assert all(o.form == "graph" and "this graph takes" in o.message for o in outcomes if o.verdict == "refused")


def test_networks_are_a_function_of_the_seed() -> None:
    (a, x), (b, y) = random_network(7), random_network(7)
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(x, y, strict=True))


def test_networks_have_outputs_of_ordinary_size() -> None:
    for seed in range(NETWORKS):
        network, inputs = random_network(seed)
        with torch.no_grad():
            largest = [float(t.abs().max()) for t in tensors(network(*inputs))]
        assert all(1e-3 < value < 1e3 for value in largest), f"seed {seed}: {largest}"


class Perceptron(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.up, self.middle, self.down = nn.Linear(4, 6), middle, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.middle(self.up(x)))


KEPT = [0, 2, 5]
CUTS = {("up.weight", 0): KEPT, ("up.bias", 0): KEPT, ("down.weight", 1): KEPT}


def by_hand(model: Perceptron, x: Tensor, middle: nn.Module) -> Tensor:
    """The smaller perceptron, written out."""
    hidden = F.linear(x, model.up.weight[KEPT], model.up.bias[KEPT])
    return F.linear(middle(hidden), model.down.weight[:, KEPT], model.down.bias)


@pytest.mark.parametrize(("middle", "smaller"), [
    (nn.Sigmoid(), nn.Sigmoid()),
    (nn.Softmax(-1), nn.Softmax(-1)),
    (nn.LayerNorm(6), nn.LayerNorm(3)),
    (nn.RMSNorm(6), nn.RMSNorm(3)),
    (nn.GroupNorm(1, 6), nn.GroupNorm(1, 3)),
])
def test_oracle_agrees_with_a_smaller_network_written_by_hand(middle: nn.Module, smaller: nn.Module) -> None:
    model, x = Perceptron(middle).double(), torch.randn(5, 4, dtype=torch.float64)
    cuts = {**CUTS, **{(f"middle.{name}", 0): KEPT for name, _ in middle.named_parameters()}}
    expected = by_hand(model, x, smaller.double())
    assert oracle.deviation(oracle.masked(model, cuts, (x,)), [expected]) < 1e-12


def test_oracle_tells_a_wrong_network_from_a_right_one() -> None:
    model, x = Perceptron(nn.Tanh()).double(), torch.randn(5, 4, dtype=torch.float64)
    expected = oracle.masked(model, CUTS, (x,))
    assert oracle.deviation([by_hand(model, x, nn.Tanh())], expected) < 1e-12
    with torch.no_grad():
        model.down.weight[:, KEPT] = model.down.weight[:, KEPT[::-1]].clone()
    assert oracle.deviation([by_hand(model, x, nn.Tanh())], expected) > 1e-3


def test_masks_and_zeros_are_the_same_where_zero_stays_zero() -> None:
    layers = (nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GELU(), nn.Conv2d(6, 4, 3))
    model = nn.Sequential(*layers).double().eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    cuts = {("0.weight", 0): KEPT, ("0.bias", 0): KEPT, ("1.weight", 0): KEPT, ("1.bias", 0): KEPT,
            ("1.running_mean", 0): KEPT, ("1.running_var", 0): KEPT, ("3.weight", 1): KEPT}
    masked, zeroed = oracle.masked(model, cuts, (x,)), oracle.zeroed(model, cuts, (x,))
    assert oracle.deviation(masked, zeroed) < 1e-12
    assert oracle.deviation(masked, list(tensors(model(x)))) > 1e-3


def test_oracle_refuses_cuts_that_reach_an_output() -> None:
    with pytest.raises(AssertionError, match="elements of an output"):
        oracle.masked(nn.Linear(3, 4), {("weight", 0): [0, 1], ("bias", 0): [0, 1]}, (torch.randn(2, 3),))


def test_oracle_refuses_an_operator_that_it_does_not_know() -> None:
    with pytest.raises(NotImplementedError, match=r"no rule for aten\.cumprod"):
        oracle.masked(Perceptron(Cumulative()), CUTS, (torch.randn(2, 4),))


class Cumulative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumprod(x, -1)
