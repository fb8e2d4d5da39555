"""Kinds of models that ask for more than slicing: each is handled, or refused with its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import surgeon


@pytest.fixture(params=("module", "graph"))
def form(request: pytest.FixtureRequest) -> str:
    return request.param


def shrunk(model: nn.Module, inputs: Any, ratio: float = 0.5, **options: Any) -> tuple[Any, Any]:
    return surgeon.shrink(
        model, ratio, example_inputs=inputs, return_report=True, **{"align": 1, **options}, compensate=False
    )


def image() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Tied(nn.Module):
    """Embeddings that are the last layer's weight, and a module that is used twice under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.mix = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        self.again = self.mix
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.again(self.mix(x)))


def test_tied_weights_stay_tied(form: str) -> None:
    ids = torch.arange(6).reshape(2, 3)
    slim, _ = shrunk(Tied(), ids, form=form)
    names = {name for name, _ in slim.named_parameters(remove_duplicate=False)}
    parameters = list(slim.parameters())
    assert len(parameters) == 5, "each once"
    if form == "module":
        assert slim.embed.weight is slim.head.weight and slim.mix is slim.again
        assert names == {name for name, _ in Tied().named_parameters(remove_duplicate=False)}
    assert min(parameters[0].shape) < 16
    slim(ids).sum().backward()
    assert all(parameter.grad is not None for parameter in parameters)


class Unused(nn.Module):
    """A layer that forward never calls, and a parameter that it never reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 32), nn.Linear(32, 4)
        self.spare = nn.Linear(32, 32)
        self.extra = nn.Parameter(torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


def test_unused_parameters_stay(form: str) -> None:
    slim, _ = shrunk(Unused(), torch.randn(2, 6), form=form)
    assert slim.first.out_features < 32
    if form == "module":
        assert slim.spare.weight.shape == (32, 32) and slim.extra.shape == (32,)
    else:
        assert set(slim.state_dict()) == {"first.weight", "first.bias", "last.weight", "last.bias"}


def old_weight_norm(layer: nn.Module) -> nn.Module:
    return nn.utils.weight_norm(layer)


def old_spectral_norm(layer: nn.Module) -> nn.Module:
    return nn.utils.spectral_norm(layer)


PARAMETRIZED: list[Callable[[nn.Module], nn.Module]] = [
    parametrizations.weight_norm, parametrizations.spectral_norm, old_weight_norm, old_spectral_norm,
]


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("wrap", PARAMETRIZED, ids=lambda wrap: f"{wrap.__module__.rpartition('.')[2]}-{wrap.__name__}")
def test_parametrized_weights(wrap: Callable[[nn.Module], nn.Module], form: str) -> None:
    model = nn.Sequential(wrap(nn.Linear(6, 32)), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    inputs = torch.randn(2, 6)
    slim, report = shrunk(model, inputs, 0.3, form=form)
    assert report.certificate.deviation < 1e-9
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())
    slim.train()(inputs).sum().backward()
    if form == "module":
        names = [name for name, _ in model.named_parameters()]
        assert [name for name, _ in slim.named_parameters()] == names


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


def test_heads_of_multihead_attention() -> None:
    model, x = Attention().eval(), torch.randn(2, 5, 6)
    groups = surgeon.inspect(model, x)
    assert sorted(group.size for group in groups) == [4, 8, 32], "heads, the size of a head, and what is embedded"
    slim, _ = shrunk(model, x, budget="channels", form="graph")
    # half of the heads, each of half the size
    assert slim.get_parameter("attention.in_proj_weight").shape == (3 * 2 * 4, 16)
    assert slim(x).shape == (2, 5, 3)
    slim, _ = shrunk(model, x, budget="channels")
    # the class has as many channels in its heads as it embeds
    assert slim.attention.in_proj_weight.shape == (3 * 8, 8) and type(slim) is Attention
    assert slim(x).shape == (2, 5, 3)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.rnn = kind(6, 32, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_hidden_units_of_recurrent_layers(kind: type[nn.LSTM | nn.GRU], form: str) -> None:
    slim, _ = shrunk(Recurrent(kind), torch.randn(2, 5, 6), form=form)
    if form == "module":
        assert slim.rnn.hidden_size < 32
        assert slim.rnn.get_parameter("weight_hh_l0").shape[1] == slim.rnn.hidden_size
    slim.train()(torch.randn(3, 4, 6)).sum().backward()
    assert slim.get_parameter("rnn.weight_ih_l0").grad is not None


class Auxiliary(nn.Module):
    """A second head, which runs in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 1)
        self.aux, self.head = nn.Linear(32, 4), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        if self.training:
            return self.head(self.body(x).mean((2, 3))), self.aux(x.mean((2, 3)))
        return self.head(self.body(x).mean((2, 3)))


def test_a_head_that_runs_in_train_mode_only_trains_or_is_explained() -> None:
    slim, report = shrunk(Auxiliary(), image())
    if report.form == "graph":
        assert "parts that run in train mode only (aux.weight …) do not fit the smaller rest" in report.form_reason
        assert slim(image()).shape == (2, 4)
    else:
        assert [output.shape for output in slim.train()(image())] == [(2, 4), (2, 4)]
    assert slim.stem.out_channels < 32


class Counting(nn.Module):
    """Its code computes a number from sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(x) / x.numel()


def test_a_number_computed_from_sizes_makes_it_a_graph() -> None:
    model, x = Counting().eval(), torch.randn(2, 6)
    _, report = shrunk(model, x)
    assert report.form == "graph"
    assert report.form_reason.startswith("div is called with other numbers: [32], not [64]")
    with pytest.raises(surgeon.SurgeonError, match=r"div is called with other numbers: \[32\], not \[64\]"):
        shrunk(model, x, form="module")


class Functional(nn.Module):
    """Dropout as a function, a table that is not stored, and a tensor that is no buffer."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 32), nn.Linear(32, 4)
        self.register_buffer("table", torch.rand(32), persistent=False)
        self.plain = torch.rand(32)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(torch.relu(self.first(x)), 0.5, self.training)
        return self.last(x * self.table + self.plain)


def test_dropout_as_a_function_follows_the_mode(form: str) -> None:
    x = torch.randn(2, 6)
    slim, _ = shrunk(Functional(), x, form=form)
    assert not torch.equal(slim(x), slim(x))
    slim.eval()
    assert torch.equal(slim(x), slim(x))


def test_tensors_that_are_not_stored_stay_so(form: str, tmp_path: Path) -> None:
    model, x = Functional().eval(), torch.randn(2, 6)
    slim, _ = shrunk(model, x, form=form)
    assert set(slim.state_dict()) == set(model.state_dict())
    surgeon.save(slim, tmp_path)
    again = surgeon.load(tmp_path, model)
    assert isinstance(again, fx.GraphModule) == (form == "graph")
    assert torch.equal(again(x), slim(x))


class Written(nn.Module):
    """LeNet: the width of the last convolution stands in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.f1, self.f2 = nn.Linear(400, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.c1(x)), 2)
        x = F.max_pool2d(torch.relu(self.c2(x)), 2)
        return self.f2(torch.relu(self.f1(x.view(-1, 400))))


def test_a_width_written_in_the_code_stays_but_in_a_graph(capfd: pytest.CaptureFixture[str]) -> None:
    slim, report = shrunk(Written(), torch.randn(1, 1, 32, 32), budget="channels")
    assert (report.form, slim.c2.out_channels, slim.f1.in_features) == ("module", 16, 400)
    assert "view" in report.form_reason and "1 group stays whole" in report.form_reason
    slim, report = shrunk(Written(), torch.randn(1, 1, 32, 32), budget="channels", form="graph")
    assert (report.form, type(slim).__name__) == ("graph", "GraphModule")
    assert slim.f1.in_features == 25 * slim.c2.out_channels == 200
    assert slim(torch.randn(3, 1, 32, 32)).shape == (3, 10)
    assert "Traceback" not in capfd.readouterr().err, "what torch tried is not the user's concern"
