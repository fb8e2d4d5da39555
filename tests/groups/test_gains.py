"""Norms of weights: what is left of a weight is the same numbers, because its gain is rescaled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import surgeon
from surgeon.errors import NothingToPrune
from surgeon.plans.carried import plan_of

Wrap = Callable[[nn.Module], nn.Module]
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.* is deprecated:FutureWarning")


def masked(layer: nn.Module) -> nn.Module:
    prune.ln_structured(layer, "weight", 0.25, 2, 0)
    return layer


WRAPS: dict[str, Wrap] = {
    "weight norm": parametrizations.weight_norm,
    "weight norm of columns": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight norm of all": lambda layer: parametrizations.weight_norm(layer, dim=None),  # type: ignore[arg-type]
    "old weight norm": nn.utils.weight_norm,
    "old weight norm of all": lambda layer: nn.utils.weight_norm(layer, dim=None),  # type: ignore[arg-type]
    "spectral norm": parametrizations.spectral_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "both": lambda layer: parametrizations.spectral_norm(parametrizations.weight_norm(layer)),
    "mask": masked,
}
wraps = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS.keys())


def stack(wrap: Wrap, layer: Any = nn.Linear, *size: int) -> nn.Sequential:
    return nn.Sequential(
        wrap(layer(6, 32, *size)), nn.ReLU(), wrap(layer(32, 32, *size)), nn.ReLU(), wrap(layer(32, 4, *size))
    ).eval()


def trained(model: nn.Module, x: Tensor) -> nn.Module:
    """After a step of training, in eval mode."""
    model.train()(x).square().mean().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    return model.eval()


def kept_weight(model: Any, slim: nn.Module, layer: int) -> Tensor:
    """The original's effective weight at the positions that the smaller one has."""
    plan: Any = plan_of(slim, None)
    rows = plan.tensor(f"{layer}.bias").get(0, range(model[layer].bias.shape[0]))
    columns = plan.tensor(f"{layer - 2}.bias").get(0) if layer else None
    weight: Tensor = model[layer].weight
    weight = weight[list(rows)]
    return weight[:, list(columns)] if columns is not None else weight


@wraps
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_the_weights_that_are_left_are_the_same_numbers(wrap: Wrap, kind: str) -> None:
    model = stack(wrap) if kind == "linear" else stack(wrap, nn.Conv1d, 3)
    x = torch.randn(3, 6) if kind == "linear" else torch.randn(3, 6, 9)
    trained(model, x)
    slim, report = surgeon.shrink(model, 0.5, example_inputs=x, return_report=True)
    assert type(slim[2]) is type(model[2]) and report.form == "module"
    assert report.certificate.deviation < 1e-9
    assert report.certificate.end_to_end is not None
    model(x), slim(x)  # old norms compute their weights when they are called
    for layer in (0, 2, 4):
        torch.testing.assert_close(slim[layer].weight, kept_weight(model, slim, layer))
    before = slim(x).detach()
    trained(slim, x)
    assert not torch.equal(slim(x), before)


@wraps
def test_each_public_function_takes_them(wrap: Wrap, tmp_path: Path) -> None:
    x = torch.randn(3, 6)
    model: Any = trained(stack(wrap), x)
    assert surgeon.plan(model, 0.5, example_inputs=x).apply(model)(x).shape == (3, 4)
    swept = surgeon.sweep(model, example_inputs=x)
    torch.testing.assert_close(swept(x), model(x))
    sparse: Any = surgeon.prune_connections(model, 0.5, example_inputs=x)
    sparse(x)
    zeros = [(layer.weight == 0).float().mean() for layer in (sparse[0], sparse[2], sparse[4])]
    assert max(zeros) > 0.3 and sparse(x).isfinite().all()
    slim = trained(surgeon.shrink(model, 0.5, example_inputs=x), x)
    surgeon.export(slim, tmp_path / "slim.onnx", example_inputs=x)
    surgeon.save(slim, tmp_path / "saved")
    assert torch.equal(surgeon.load(tmp_path / "saved", stack(wrap))(x), slim(x))
    trained(surgeon.shrink(slim, 0.2, example_inputs=x), x)


@wraps
def test_they_are_pruned_while_they_train(wrap: Wrap) -> None:
    x = torch.randn(3, 6)
    model = trained(stack(wrap), x)
    pruner = surgeon.Pruner(model, 0.5, schedule=surgeon.schedules.steps(1, 3, 2), example_inputs=x, align=1)
    for _ in range(5):
        trained(model, x)
        pruner.step()
    slim = pruner.commit().eval()
    assert slim(x).isfinite().all()
    torch.testing.assert_close(slim(x), model.eval()(x))


def test_dead_units_under_masks_and_norms_are_swept() -> None:
    model: Any = stack(lambda layer: layer)
    prune.ln_structured(model[0], "weight", 0.25, 2, 0)
    parametrizations.weight_norm(model[2])
    with torch.no_grad():
        model[2].parametrizations.weight.original0[:4] = 0
    swept = surgeon.sweep(model, example_inputs=torch.randn(3, 6))
    assert (swept[0].out_features, swept[2].out_features) == (24, 28)
    x = torch.randn(3, 6)
    torch.testing.assert_close(swept(x), model(x))


def test_units_are_scored_by_the_weights_that_a_norm_computes() -> None:
    model: Any = stack(parametrizations.weight_norm)
    with torch.no_grad():
        model[0].parametrizations.weight.original1[:4] *= 100
    groups = surgeon.inspect(model, torch.randn(3, 6))
    before = surgeon.scoring.score(groups)
    plain = stack(lambda layer: layer)
    for layer in (0, 2, 4):
        plain[layer].load_state_dict({"weight": model[layer].weight, "bias": model[layer].bias})
    for found, wanted in zip(before.values(), surgeon.scoring.score(surgeon.inspect(plain, torch.randn(3, 6))).values(),
                             strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-5, atol=1e-5)


class ByHand(nn.Module):
    """A layer whose weight a function of other tensors computes."""

    a: Tensor
    b: Tensor

    def __init__(self, compute: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 32), nn.Linear(32, 4)
        self.v, self.g = nn.Parameter(torch.randn(32, 32)), nn.Parameter(torch.rand(32, 1))
        self.made = nn.Linear(6, 32 * 32)
        self.register_buffer("a", F.normalize(torch.randn(32), dim=0))
        self.register_buffer("b", F.normalize(torch.randn(32), dim=0))
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(self.first(x), self.compute(self, x)).relu())


def test_a_spectral_norm_that_is_written_by_hand() -> None:
    model = ByHand(lambda m, x: m.v / m.a.dot(m.v.mv(m.b)).expand_as(m.v)).eval()
    x = torch.randn(3, 6)
    slim, report = surgeon.shrink(model, 0.5, example_inputs=x, return_report=True)
    sigma, left = (m.a.dot(m.v.mv(m.b)) for m in (model, slim))
    torch.testing.assert_close(sigma, left)
    assert slim.v.shape != model.v.shape and len(report.certificate.rescaled) == 1
    assert "rescaled, so that the weights that are left are the same: dot" in str(report.certificate)


def computed(m: Any, x: Tensor) -> Tensor:
    return torch._weight_norm(m.made(x).mean(0).unflatten(0, (32, 32)), m.g, 0)


def scaled_twice(m: Any, x: Tensor) -> Tensor:
    return torch._weight_norm(m.v, m.g, 0) * m.g.sigmoid()


@pytest.mark.parametrize(("compute", "why"), [
    (computed, "a norm of computed weights is taken over this axis"),
    (scaled_twice, "the scale of a norm over this axis is read elsewhere too"),
])
def test_what_no_gain_can_make_up_for_is_pinned(compute: Callable[[Any, Tensor], Tensor], why: str) -> None:
    groups = surgeon.inspect(ByHand(compute).eval(), torch.randn(3, 6))
    assert next(pin.reason for pin in groups.pinned if pin.tensor == "first.bias").endswith(why)


def test_a_parametrization_that_mixes_the_units_is_pinned_with_its_operator() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), parametrizations.orthogonal(nn.Linear(16, 16)))
    with pytest.raises(NothingToPrune, match=r"2.parametrizations.weight.0: surgeon has no rule for this operator"):
        surgeon.shrink(model, 0.5, example_inputs=torch.randn(3, 6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gains_of_other_types(dtype: torch.dtype) -> None:
    model, x = stack(parametrizations.weight_norm).to(dtype), torch.randn(3, 6, dtype=dtype)
    slim, report = surgeon.shrink(model, 0.5, example_inputs=x, return_report=True)
    assert report.certificate.deviation < 1e-9
    assert slim[2].weight.dtype == dtype


def test_a_weight_under_a_norm_of_a_recurrent_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.utils.weight_norm(nn.LSTM(6, 32, batch_first=True), "weight_hh_l0")
            self.last = nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.rnn(x)[0])

    x = torch.randn(2, 5, 6)
    slim = surgeon.shrink(Net().eval(), 0.5, example_inputs=x)
    assert slim.rnn.hidden_size < 32 and slim(x).shape == (2, 5, 4)


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, parametrizations.spectral_norm])
def test_a_layer_of_one_unit_under_a_spectral_norm(norm: Wrap) -> None:
    x = torch.randn(3, 6)
    model = trained(nn.Sequential(norm(nn.Linear(6, 32)), nn.ReLU(), norm(nn.Linear(32, 1))), x)
    model(x)
    slim, report = surgeon.shrink(model, 0.5, example_inputs=x, align=1, return_report=True)
    assert report.certificate.deviation < 1e-6
    assert torch.allclose(slim[2].weight, kept_weight(model, slim, 2), atol=1e-6)
