"""What people write in models: each in the smallest network that shows it, cut in half and certified."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from surgeon.errors import InvalidModel, NothingToPrune, TraceError


class Written(nn.Module):
    """Layers by name, and what is done with them."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **layers: nn.Module | Tensor) -> None:
        super().__init__()
        self.run = run
        for name, value in layers.items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def halved(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    slim, report = surgeon.shrink(model, 0.5, example_inputs=inputs, align=1, return_report=True)
    assert report.reached > 0.4
    return slim, report


UNWEIGHTED = [
    (lambda: nn.LayerNorm(16, elementwise_affine=False), "normalized_shape", ()),
    (lambda: nn.RMSNorm(16, elementwise_affine=False), "normalized_shape", ()),
    (lambda: nn.LayerNorm([16, 3], elementwise_affine=False), "normalized_shape", (3,)),
    (lambda: nn.GroupNorm(4, 16, affine=False), "num_groups", (3,)),
    (lambda: nn.BatchNorm1d(16, affine=False), "num_features", (3,)),
    (lambda: nn.BatchNorm1d(16, affine=False, track_running_stats=False), "momentum", (3,)),
]


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize(("norm", "attribute", "more"), UNWEIGHTED)
def test_a_norm_without_weights_follows_its_units(
    norm: Callable[[], nn.Module], attribute: str, more: tuple[int, ...], form: Any
) -> None:
    if more:
        layers = [nn.Conv1d(4, 16, 1), norm(), nn.ReLU(), nn.Conv1d(16, 2, 1)]
    else:
        layers = [nn.Linear(4, 16), norm(), nn.ReLU(), nn.Linear(16, 2)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(2, 4, *more)
    slim = surgeon.shrink(model, 0.5, example_inputs=x, align=1, form=form)
    assert slim(x).shape == model(x).shape
    kept = slim.get_submodule("1")
    assert getattr(kept, attribute) is not None
    if attribute == "normalized_shape":
        assert kept.normalized_shape == (slim.get_submodule("0").weight.shape[0], *more)


def test_a_norm_without_weights_that_is_called_at_two_widths_stays_an_operator() -> None:
    def run(m: Any, x: Tensor) -> Any:
        return m.c(F.relu(m.norm(m.b(F.relu(m.norm(m.a(x)))))))

    norm = nn.LayerNorm(16, elementwise_affine=False)
    model = Written(run, a=nn.Linear(4, 16), b=nn.Linear(16, 16), c=nn.Linear(16, 2), norm=norm)
    x = torch.randn(2, 4)
    scores = {"a": 0.5, "b": 0.25}
    plan = surgeon.plan(model, 0.5, example_inputs=x, align=1, min_width=scores)
    slim = plan.apply(model, x, form="graph")
    assert slim(x).shape == (2, 2)


def by_repeats(m: Any, x: Tensor) -> Any:
    return m.b(F.relu(torch.repeat_interleave(m.a(x), m.times, dim=1)))


def by_mask(m: Any, x: Tensor) -> Any:
    h = F.relu(m.a(x))
    return m.b(h[x.sum(-1) > 0])


def drawn(m: Any, x: Tensor) -> Any:
    h = F.relu(m.a(x))
    return m.b(h + torch.randn_like(h) * 0.1)


def counted(m: Any, x: Tensor) -> Any:
    h = F.relu(m.a(x))
    m.times += 1
    m.mean.lerp_(h.detach().mean((0, 1)), 0.1)
    return m.b(h - m.mean)


def dropped(m: Any, x: Tensor) -> Any:
    return m.b(F.dropout(F.relu(m.a(x)), 0.5))


@pytest.mark.parametrize("run", [by_repeats, by_mask, drawn, counted, dropped])
def test_sizes_and_numbers_that_no_shape_tells(run: Callable[[Any, Tensor], Any]) -> None:
    x = torch.randn(2, 3, 4)
    more = {"times": torch.tensor([2, 0, 1]), "mean": torch.randn(16)}
    model = Written(run, a=nn.Linear(4, 16), b=nn.Linear(16, 2), **more)
    state = torch.random.get_rng_state()
    slim, _ = halved(model, x)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert slim(x).shape == model(x).shape


@pytest.mark.parametrize("form", ["module", "graph"])
def test_what_a_model_writes_into_its_own_tensors_it_goes_on_writing(form: Any) -> None:
    layers = {"a": nn.Linear(4, 16), "b": nn.Linear(16, 2)}
    model = Written(counted, **layers, times=torch.tensor(0), mean=torch.randn(16))
    x = torch.randn(2, 3, 4)
    slim = surgeon.shrink(model, 0.5, example_inputs=x, align=1, form=form).requires_grad_(False)
    before = slim.get_buffer("mean").clone()
    slim(x)
    assert model.get_buffer("times") == 0
    assert slim.get_buffer("times") == 1
    assert before.shape == (8,)
    assert not torch.equal(slim.get_buffer("mean"), before)


def experts(m: Any, x: Tensor) -> Any:
    """Rows of an input, sorted by the expert that each goes to."""
    ends = torch.tensor([1, 3, 6], dtype=torch.int32)
    multiply = torch.ops.transformers.grouped_mm_fallback
    return m.b(multiply(F.relu(multiply(x, m.up, ends)), m.down, ends))


def test_experts_whose_rows_are_dealt_out() -> None:
    pytest.importorskip("transformers.integrations.moe")  # registers the operator
    weights = {"up": torch.randn(3, 8, 32), "down": torch.randn(3, 32, 8)}
    model = Written(experts, b=nn.Linear(8, 2))
    for name, value in weights.items():
        model.register_parameter(name, nn.Parameter(value))
    _, report = halved(model, torch.randn(6, 8))
    assert report.groups["up"].after < 32


def stretched(m: Any, x: Tensor) -> Any:
    """Heads in the batch, where the number of both is computed."""
    h = m.a(x).unflatten(-1, (4, 4)).transpose(1, 2).flatten(0, 1)
    return m.b((h * m.scale.expand(h.shape[0], -1, -1)).unflatten(0, (-1, 4)).transpose(1, 2).flatten(2))


def each(m: Any, x: Tensor) -> Any:
    return m.b(F.relu(m.a(x)).repeat_interleave(2, dim=2, output_size=32))


@pytest.mark.parametrize(("run", "width"), [(stretched, 16), (each, 32)])
def test_sizes_that_are_computed_or_written_beside(run: Callable[[Any, Tensor], Any], width: int) -> None:
    model = Written(run, a=nn.Linear(4, 16), b=nn.Linear(width, 2), scale=torch.randn(1, 3, 4))
    halved(model, torch.randn(2, 3, 4))


def test_a_parameter_that_the_first_call_makes_is_told() -> None:
    def normed(module: nn.Module, _: Any) -> None:
        if not hasattr(module, "parametrizations"):
            torch.nn.utils.parametrizations.weight_norm(module)

    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    model[0].register_forward_pre_hook(normed)
    x = torch.randn(2, 4)
    with pytest.raises(TraceError, match="run the model once"):
        surgeon.shrink(model, 0.5, example_inputs=x)
    model(x)
    halved(model, x)


def test_a_function_without_a_rule_is_named() -> None:
    model = Written(lambda m, x: m.b(torch.vmap(m.a)(x)), a=nn.Linear(4, 16), b=nn.Linear(16, 2))
    with pytest.raises(NothingToPrune, match="_remove_batch_dim: surgeon has no rule"):
        surgeon.shrink(model, 0.5, example_inputs=torch.randn(2, 3, 4))


def test_a_dropout_that_is_always_active_stays_so_in_a_graph() -> None:
    model = Written(dropped, a=nn.Linear(4, 16), b=nn.Linear(16, 2)).eval()
    x = torch.randn(2, 4)
    slim = surgeon.shrink(model, 0.5, example_inputs=x, form="graph").eval()
    assert not torch.equal(slim(x), slim(x))


@pytest.mark.parametrize("masked", ["encoder", "both"])
def test_masks_of_torchs_own_transformer(masked: str) -> None:
    mask = nn.Transformer.generate_square_subsequent_mask(3)
    if masked == "encoder":
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        model = Written(lambda m, x: m.o(m.t(m.i(x), mask=m.mask)), i=nn.Linear(4, 16), o=nn.Linear(16, 2),
                        t=nn.TransformerEncoder(layer, 1), mask=mask)
    else:
        model = Written(lambda m, x: m.o(m.t(m.i(x), m.i(x), tgt_mask=m.mask)), i=nn.Linear(4, 16), o=nn.Linear(16, 2),
                        t=nn.Transformer(16, 2, 1, 1, 32, batch_first=True), mask=mask)
    halved(model.eval(), torch.randn(2, 3, 4))


def test_what_hooks_remember_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    seen: dict[str, Tensor] = {}
    setattr(model, "seen", seen)  # noqa: B010  (as a user's own attribute)
    model[1].register_forward_hook(lambda _, inputs, output: seen.__setitem__("hidden", output))
    model[1].register_forward_hook(lambda _, inputs, output: setattr(model, "last", output))
    halved(model, torch.randn(2, 4))
    assert seen == {}
    assert not hasattr(model, "last")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_models_whose_code_or_weights_are_gone_are_refused_with_the_remedy() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.randn(2, 4)
    with pytest.raises(InvalidModel, match="ScriptModule"):
        surgeon.shrink(torch.jit.script(model), 0.5, example_inputs=x)


def test_rotary_embeddings_by_complex_numbers() -> None:
    def rotated(t: Tensor, angles: Tensor) -> Tensor:
        turn = torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (2, 2))) * turn).flatten(-2)

    def run(m: Any, x: Tensor) -> Any:
        q, k, v = (part.unflatten(-1, (8, 4)) for part in m.qkv(x).chunk(3, -1))
        return m.o(F.scaled_dot_product_attention(rotated(q, m.angles), rotated(k, m.angles), v).flatten(-2))

    model = Written(run, qkv=nn.Linear(4, 96), o=nn.Linear(32, 2), angles=torch.randn(3, 1, 2))
    halved(model, torch.randn(2, 3, 4))


NORMED = [
    torch.nn.utils.parametrizations.weight_norm,
    torch.nn.utils.parametrizations.spectral_norm,
    torch.nn.utils.parametrizations.orthogonal,
]


@pytest.mark.parametrize("norm", NORMED)
def test_plans_go_through_parametrized_weights(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    norm(model[0])
    x = torch.randn(2, 4)
    plan = surgeon.plan(model, 0.3, example_inputs=x, align=1)
    slim = plan.apply(model)
    assert plan.verify(model, slim).deviation < 1e-9
    assert surgeon.plan(model, 0.3, example_inputs=x, align=1) == plan
