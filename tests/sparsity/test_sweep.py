"""Sweeps: every dead unit goes, and nothing else changes."""

import copy
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import InvalidArgument, InvalidModel
from surgeon.sparsity.connections import prune_connections
from surgeon.sparsity.sweep import sweep
from surgeon.verification.check import relative
from testbed.networks import random_network, tensors


def mlp(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def dead_neurons(model: nn.Module) -> list[set[int]]:
    """By hand: hidden neurons that no path of connections leads to from an input, or from which none to an output."""
    weights = [layer.weight.detach().ne(0).tolist() for layer in linears(model)]
    reached = [set(range(len(weights[0][0])))]
    for rows in weights:
        reached.append({o for o, row in enumerate(rows) if any(row[i] for i in reached[-1])})
    reaching = [set(range(len(weights[-1])))]
    for rows in reversed(weights):
        reaching.append({i for i in range(len(rows[0])) if any(rows[o][i] for o in reaching[-1])})
    reaching.reverse()
    hidden = zip(reached[1:-1], reaching[1:-1], (len(rows) for rows in weights[:-1]), strict=True)
    return [set(range(width)) - (a & b) for a, b, width in hidden]


def same(model: nn.Module, slim: nn.Module, *inputs: Tensor) -> float:
    with torch.no_grad():
        pairs = zip(tensors(model(*inputs)), tensors(slim(*inputs)), strict=True)
        return max(relative(a, b) for a, b in pairs)


@pytest.mark.parametrize("amount", [0.9, 0.94, 0.96])
def test_every_dead_neuron_of_a_pruned_perceptron_goes_by_independent_count(amount: float) -> None:
    sparse = prune_connections(mlp(30, 60, 60, 40, 5), amount, scope="local")
    dead = dead_neurons(sparse)
    assert sum(map(len, dead)) > 0
    slim, report = sweep(sparse, return_report=True)
    widths = [layer.out_features for layer in linears(slim)]
    assert widths == [max(1, width - len(gone)) for width, gone in zip((60, 60, 40), dead, strict=True)] + [5]
    assert report.removed == sum(map(len, dead)) and report.form == "module"
    assert same(sparse, slim, torch.randn(64, 30, dtype=torch.float64)) < 1e-9


def zero_at_random(network: nn.Module, rng: Random) -> None:
    """Rows and columns of weights, and entries of scales and biases."""
    with torch.no_grad():
        for parameter in network.parameters():
            for dim in range(min(parameter.dim(), 2)):
                if rng.random() < (0.6 if parameter.dim() > 1 else 0.3):
                    gone = [i for i in range(parameter.shape[dim]) if rng.random() < 0.4]
                    parameter.index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0)


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_random_networks_with_dead_units_compute_the_same(first: int) -> None:
    removed = 0
    for seed in range(first, first + 10):
        network, inputs = random_network(seed)
        network = network.double()
        inputs = tuple(t.double() if t.is_floating_point() else t for t in inputs)
        zero_at_random(network, Random(seed))
        slim, report = sweep(network, inputs, return_report=True)
        assert report.deviation < 1e-9
        # other inputs, and another batch, than those that the sweep has seen
        wide = [torch.cat([t, t[:1]]) for t in inputs]
        others = [torch.randn_like(t) if t.is_floating_point() else torch.randint_like(t, 7) for t in wide]
        assert same(network, slim, *others) < 1e-9, f"seed {seed}: {report}"
        removed += report.removed
    assert removed > 10


def kill(model: nn.Module, name: str, dim: int, *units: int) -> None:
    with torch.no_grad():
        model.get_parameter(name).index_fill_(dim, torch.tensor(units), 0)


def test_what_dies_with_a_dead_unit_goes_too_both_ways() -> None:
    model = mlp(4, 6, 6, 6, 2)
    with torch.no_grad():
        second, third = (model.get_parameter(f"{i}.weight") for i in (2, 4))
        second[3].zero_()
        second[3, 1] = 1.0  # neuron 3 of the second layer reads neuron 1 alone
        third[:, 2].zero_()
        third[5, 2] = 1.0  # its neuron 2 is read by neuron 5 of the third layer alone
    kill(model, "0.weight", 0, 1)
    kill(model, "6.weight", 1, 5)
    assert dead_neurons(model) == [{1}, {2, 3}, {5}]
    slim, report = sweep(model, return_report=True)
    assert [layer.out_features for layer in linears(slim)] == [5, 4, 5, 2]
    assert (report.constant, report.unread) == (2, 2)
    assert same(model, slim, torch.randn(9, 4, dtype=torch.float64)) < 1e-12


def convolutions(padding: int, bias: bool = True) -> nn.Sequential:
    layers = (
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Conv2d(8, 6, 3, padding=padding, bias=bias),
        nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )
    model = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    kill(model, "0.weight", 0, 2, 5)  # both are the sigmoid of a constant
    return model


@pytest.mark.parametrize("bias", [True, False])
def test_constants_go_into_biases_or_into_the_batch_norm_behind(bias: bool) -> None:
    model = convolutions(0, bias)
    slim, report = sweep(model, torch.randn(2, 3, 9, 9, dtype=torch.float64), return_report=True)
    assert (slim[0].out_channels, report.constant, report.left) == (6, 2, {})
    assert same(model, slim, torch.randn(3, 3, 9, 9, dtype=torch.float64)) < 1e-12
    assert same(model, slim, torch.randn(3, 3, 12, 10, dtype=torch.float64)) < 1e-12
    assert slim.state_dict().keys() == model.state_dict().keys()


def test_of_constants_under_padding_one_is_left_unless_they_are_zero() -> None:
    model = convolutions(1)
    slim, report = sweep(model, torch.randn(2, 3, 9, 9, dtype=torch.float64), return_report=True)
    assert slim[0].out_channels == 7 and report.constant == 1
    assert [(reason.split(":")[0], count) for reason, count in report.left.items()] == [("conv2d in 3", 1)]
    assert "a convolution with padding" in str(report)
    assert same(model, slim, torch.randn(3, 3, 12, 10, dtype=torch.float64)) < 1e-12
    model[2] = nn.ReLU()
    with torch.no_grad():
        model.get_parameter("0.bias")[[2, 5]] = -99.0
    slim = sweep(model, torch.randn(2, 3, 9, 9, dtype=torch.float64))
    assert slim[0].out_channels == 6
    assert same(model, slim, torch.randn(3, 3, 9, 9, dtype=torch.float64)) < 1e-12


def test_a_channel_whose_scale_is_zero_dies_whatever_it_is_computed_from() -> None:
    model = convolutions(0)
    kill(model, "4.weight", 0, 0, 1, 2)
    slim, report = sweep(model, torch.randn(2, 3, 9, 9, dtype=torch.float64), return_report=True)
    assert slim[3].out_channels == 3 and report.constant == 5
    assert same(model, slim, torch.randn(3, 3, 9, 9, dtype=torch.float64)) < 1e-12


class Residual(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.branch, self.norm, self.last = nn.Linear(4, 8), nn.Linear(8, 8), norm, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last(self.norm(x + self.branch(x).relu()))


def test_coupled_units_go_when_all_of_them_are_dead() -> None:
    model = Residual(nn.Identity()).double()
    kill(model, "first.weight", 0, 1, 2)
    kill(model, "branch.weight", 0, 2, 3)
    kill(model, "last.weight", 1, 5, 6)
    kill(model, "branch.weight", 1, 6)
    slim, report = sweep(model, return_report=True)
    assert slim.first.out_features == 6 and (report.constant, report.unread) == (1, 1)  # units 2 and 6
    assert same(model, slim, torch.randn(5, 4, dtype=torch.float64)) < 1e-12


def test_a_norm_over_units_keeps_them_and_says_so() -> None:
    model = Residual(nn.LayerNorm(8)).double()
    kill(model, "first.weight", 0, 2)
    kill(model, "branch.weight", 0, 2)
    slim, report = sweep(model, return_report=True)
    assert slim.first.out_features == 8
    assert report.left == {"layer_norm in norm: a statistic is taken over the unit and others": 1}


def test_a_layer_that_is_dead_as_a_whole_keeps_one_unit() -> None:
    model = mlp(4, 6, 2)
    kill(model, "2.weight", 0, 0, 1)
    slim, report = sweep(model, return_report=True)
    assert slim[0].out_features == 1 and report.left == {"a layer can't be empty": 1}
    assert same(model, slim, torch.randn(5, 4, dtype=torch.float64)) == 0


def test_nothing_dead_gives_a_copy() -> None:
    model = mlp(4, 6, 2)
    slim, report = sweep(model, return_report=True)
    assert slim is not model and slim[0].weight is not model[0].weight and report.removed == 0
    assert torch.equal(slim[0].weight, model.get_parameter("0.weight"))
    assert str(report).splitlines()[0] == "Sequential: no unit is dead; this is a copy"


def test_the_model_is_left_as_it_is_and_modes_stay() -> None:
    model = convolutions(0).train()
    before = copy.deepcopy(model.state_dict())
    slim = sweep(model, torch.randn(2, 3, 9, 9, dtype=torch.float64))
    assert slim.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_near_zero_units_die_with_a_threshold() -> None:
    model = mlp(4, 6, 2)
    with torch.no_grad():
        model.get_parameter("0.weight")[:3] *= 1e-6
        model.get_parameter("0.bias")[:3] *= 1e-6
    assert sweep(model)[0].out_features == 6
    slim, report = sweep(model, threshold=1e-4, return_report=True)
    assert slim[0].out_features == 3 and report.constant == 3
    assert 0 < same(model, slim, torch.randn(5, 4, dtype=torch.float64)) < 1e-4
    assert model.get_parameter("0.weight").ne(0).all()


def test_a_swept_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model = prune_connections(mlp(10, 40, 40, 3), 0.95)
    slim = sweep(model)
    surgeon.save(slim, tmp_path / "slim")
    loaded = surgeon.load(tmp_path / "slim", mlp(10, 40, 40, 3))
    x = torch.randn(5, 10, dtype=torch.float64)
    assert torch.equal(loaded(x), slim(x))
    assert slim.surgeon_plan.settings["sweep"] is True


def test_single_precision_takes_constants_over_as_well_as_it_can() -> None:
    model = convolutions(0).float()
    x = torch.randn(2, 3, 9, 9)
    slim, report = sweep(model, x, return_report=True)
    assert report.deviation < 1e-9 and same(model, slim, x) < 1e-5


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no model": (3, {}, "model is a int"),
    "negative": (mlp(2, 3, 2), {"threshold": -1.0}, "threshold=-1.0"),
    "text": (mlp(2, 3, 2), {"threshold": "small"}, "threshold='small'"),
    "truth": (mlp(2, 3, 2), {"threshold": True}, "threshold=True"),
    "infinite": (mlp(2, 3, 2), {"threshold": float("inf")}, "threshold=inf"),
}


@pytest.mark.parametrize("name", BAD)
def test_careless_arguments_are_refused(name: str) -> None:
    model, arguments, message = BAD[name]
    with pytest.raises(InvalidArgument, match=message):
        sweep(model, **arguments)


def test_nan_is_refused() -> None:
    model = mlp(2, 3, 2)
    with torch.no_grad():
        model.get_parameter("0.weight")[0, 0] = float("nan")
    with pytest.raises(InvalidModel, match=r"0\.weight"):
        sweep(model)


class Gram(nn.Module):
    """Products of activations, one of them of a tensor with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x).relu()
        square = x.transpose(1, 2) @ x
        return self.down(self.mid(square @ square))


def test_products_of_activations_are_not_mistaken() -> None:
    model, x = Gram().double(), torch.randn(2, 6, 4, dtype=torch.float64)
    kill(model, "mid.weight", 0, 1, 2)
    kill(model, "mid.weight", 1, 3)
    kill(model, "down.weight", 1, 4)
    slim = sweep(model, x)
    assert slim.mid.out_features == 3
    assert same(model, slim, torch.randn(3, 6, 4, dtype=torch.float64)) < 1e-12


class Total(nn.Module):
    """The sum of a matrix whose rows and columns are the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mix = nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x).relu()
        y = x + self.mix(x)
        return (y[:, :, None] * x[:, None, :]).sum((1, 2))


def test_a_unit_that_is_summed_over_twice_goes_where_it_adds_nothing_either_way() -> None:
    model, x = Total().double(), torch.randn(2, 4, dtype=torch.float64)
    kill(model, "up.weight", 0, 2)
    kill(model, "up.bias", 0, 2)  # x is zero there, but y is not
    slim = sweep(model, x)
    assert slim.up.out_features == 6 and same(model, slim, torch.randn(3, 4, dtype=torch.float64)) == 0
    kill(model, "mix.weight", 0, 2)
    kill(model, "mix.bias", 0, 2)
    slim = sweep(model, x)
    assert slim.up.out_features == 5 and same(model, slim, torch.randn(3, 4, dtype=torch.float64)) < 1e-12
