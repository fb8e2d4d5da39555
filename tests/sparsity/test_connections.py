"""Unstructured pruning: which connections go, which parameters have any, and that they stay away."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.errors import InvalidArgument, InvalidModel, NothingToPrune
from surgeon.groups.analyze import analyze
from surgeon.sparsity.connection_weights import connection_weights
from surgeon.sparsity.connections import prune_connections
from surgeon.training.weight_masks import Masks


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))


def zeros(model: nn.Module) -> dict[str, int]:
    return {name: int(parameter.eq(0).sum()) for name, parameter in model.named_parameters()}


class Everything(nn.Module):
    """Weights that are factors in several ways, and parameters that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(11, 8), nn.Parameter(torch.zeros(1, 5, 8))
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.norm, self.scale = nn.LayerNorm([5, 8]), nn.Parameter(torch.ones(1, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.matrix = nn.Parameter(torch.randn(8, 6))
        self.tied = nn.Linear(6, 8)
        self.depthwise = nn.Conv1d(8, 8, 3, groups=8)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.recurrent(self.embed(tokens) + self.positions)
        x = self.norm(x) * self.scale
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.tied(x @ self.matrix)
        return F.linear(self.depthwise(x.transpose(1, 2)).transpose(1, 2), self.embed.weight)


def test_connections_are_what_inputs_are_multiplied_with() -> None:
    model = Everything().eval()
    found = connection_weights(analyze(model, torch.randint(11, (2, 5))))
    assert set(found) == {
        "embed.weight",  # also the weight of the last product
        "recurrent.weight_ih_l0", "recurrent.weight_hh_l0",
        "attention.in_proj_weight", "attention.out_proj.weight",
        "matrix", "tied.weight", "depthwise.weight",
    }
    assert all(found[name] is model.get_parameter(name) for name in found)


@pytest.mark.parametrize("amount", [0, 0.1, 0.5, 0.9])
def test_shares_are_met_to_the_entry(amount: float) -> None:
    model = mlp()
    everywhere, each = (zeros(prune_connections(model, amount, scope=scope)) for scope in ("global", "local"))
    assert everywhere["0.weight"] + everywhere["2.weight"] == round(amount * 750)
    assert (each["0.weight"], each["2.weight"]) == (round(amount * 600), round(amount * 150))
    assert everywhere["0.bias"] == everywhere["2.bias"] == each["0.bias"] == 0
    assert not any(zeros(model).values())


def test_the_least_go_by_rank_over_all_or_by_weight() -> None:
    model = mlp()
    with torch.no_grad():
        model.get_parameter("2.weight").mul_(100)
    sparse = prune_connections(model, 0.5)
    weights = [sparse.get_parameter(f"{i}.weight") for i in (0, 2)]
    old = [model.get_parameter(f"{i}.weight") for i in (0, 2)]
    assert weights[1].eq(0).sum() < 5
    gone = old[0][weights[0] == 0].abs().max()
    assert gone <= old[0][weights[0] != 0].abs().min()
    assert all(torch.equal(new[new != 0], before[new != 0]) for new, before in zip(weights, old, strict=True))
    assert zeros(prune_connections(model, 0.5, scope="local"))["2.weight"] == 75


def test_of_equal_magnitudes_as_many_go_as_were_asked_for() -> None:
    model = nn.Linear(10, 10, bias=False)
    nn.init.ones_(model.weight)
    assert zeros(prune_connections(model, 0.37)) == {"weight": 37}


def test_a_threshold_cuts_what_is_below_it() -> None:
    model = mlp()
    sparse = prune_connections(model, threshold=0.1)
    for i in (0, 2):
        old, new = model.get_parameter(f"{i}.weight"), sparse.get_parameter(f"{i}.weight")
        assert torch.equal(new, torch.where(old.abs() < 0.1, 0, old)) and new.eq(0).any()


def test_what_is_ignored_and_what_is_tied_stays() -> None:
    sparse = prune_connections(mlp(), 0.5, ignore="2")
    assert zeros(sparse) == {"0.weight": 300, "0.bias": 0, "2.weight": 0, "2.bias": 0}
    model = Everything().eval()
    model.tied.weight = nn.Parameter(model.matrix.detach().clone())
    model.matrix = model.tied.weight
    pruned: Any = prune_connections(model, 0.5, example_inputs=torch.randint(11, (2, 5)))
    assert pruned.matrix is pruned.tied.weight and pruned.matrix.eq(0).any() and model.matrix.ne(0).all()
    assert pruned.positions.eq(0).all()


def test_connections_stay_zero_in_training() -> None:
    sparse = prune_connections(mlp(), 0.8)
    with torch.no_grad():
        sparse.get_parameter("0.bias").zero_()
    pattern = {name: value.clone().eq(0) for name, value in sparse.named_parameters()}
    masks, optimizer = Masks.of_zeros(sparse), torch.optim.AdamW(sparse.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sparse(torch.randn(8, 20)).square().sum().backward()
        optimizer.step()
        masks.enforce()
    for name in ("0.weight", "2.weight"):
        assert torch.equal(sparse.get_parameter(name).eq(0), pattern[name])
    assert sparse.get_parameter("0.bias").ne(0).any()


def test_the_model_is_left_as_it_is_and_the_copy_is_of_its_class() -> None:
    model = mlp().train()
    before = copy.deepcopy(model.state_dict())
    sparse = prune_connections(model, 0.5)
    assert type(sparse) is nn.Sequential and sparse.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "give either amount="),
    "both": ({"amount": 0.5, "threshold": 0.1}, "give either amount="),
    "all": ({"amount": 1}, "at least 0 and less than 1"),
    "percent": ({"amount": 90}, "amount=90"),
    "negative": ({"threshold": -1}, "threshold=-1: give a number of at least 0"),
    "nan": ({"threshold": math.nan}, "threshold=nan"),
    "text": ({"amount": "0.5"}, "amount='0.5'"),
    "truth": ({"amount": True}, "amount=True"),
    "scope": ({"amount": 0.5, "scope": "layer"}, "scope='layer'"),
    "ignore": ({"amount": 0.5, "ignore": "nowhere"}, "nowhere"),
}


@pytest.mark.parametrize("name", BAD)
def test_careless_arguments_are_refused(name: str) -> None:
    arguments, message = BAD[name]
    with pytest.raises(InvalidArgument, match=message):
        prune_connections(mlp(), **arguments)


def test_models_without_connections_and_with_nan_are_refused() -> None:
    with pytest.raises(NothingToPrune, match="LayerNorm has no weight"):
        prune_connections(nn.LayerNorm(4), 0.5, example_inputs=torch.randn(2, 4))
    with pytest.raises(NothingToPrune):
        prune_connections(mlp(), 0.5, ignore="*")
    model = mlp()
    with torch.no_grad():
        model.get_parameter("0.weight")[0, 0] = math.nan
    with pytest.raises(InvalidModel, match=r"0\.weight"):
        prune_connections(model, 0.5)
    with pytest.raises(InvalidArgument, match="model is a str"):
        prune_connections("model", 0.5)  # type: ignore[arg-type]
