"""A smaller model at other sizes of its inputs: it computes what the original does, or refuses; it never errs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from surgeon.plans.carried import attached
from surgeon.surgery import ladder

Shape = tuple[int, ...]
Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """Two layers with something between them: convolutions, or linear layers on the last axis."""

    def __init__(self, between: Forward, kind: str) -> None:
        super().__init__()
        if kind == "image":
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        else:
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)  # type: ignore[assignment]
        self.middle, self.head = nn.Linear(8, 8), nn.Linear(2, 2)
        self.table, self.cell = nn.Embedding(12, 8), nn.GRUCell(8, 8)
        self.whole = nn.Parameter(torch.randn(5, 8))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.second(self.between(self, self.first(x))))


def _windows(net: Any, y: Tensor) -> Tensor:
    """Windows of 4 by 4, after padding to a multiple of 4."""
    b, c, h, w = y.shape
    y = F.pad(y, (0, (4 - w % 4) % 4, 0, (4 - h % 4) % 4))
    high, wide = y.shape[2] // 4, y.shape[3] // 4
    z = y.view(b, c, high, 4, wide, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    z = net.middle(z).view(b, high, wide, 4, 4, c).permute(0, 5, 1, 3, 2, 4)
    return z.reshape(b, c, 4 * high, 4 * wide)[:, :, :h, :w]


def _over_time(net: Any, y: Tensor) -> Tensor:
    state = y.new_zeros(y.shape[0], y.shape[2])
    for step in range(y.shape[1]):
        state = net.cell(y[:, step], state)
    return state


def _causal(net: Any, y: Tensor) -> Tensor:
    scores = net.middle(y) @ y.transpose(1, 2)
    mask = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool, device=y.device).tril()
    return scores.masked_fill(~mask, -1e9).softmax(-1) @ y


IMAGE, OTHERS = (2, 3, 8, 8), ((1, 3, 8, 8), (5, 3, 12, 8), (2, 3, 9, 11))
STEPS, LENGTHS = (2, 5, 6), ((1, 5, 6), (9, 5, 6), (2, 8, 6), (3, 3, 6))

# What stands between the layers, the example's shape, and others, at all of which the smaller model is right.
FREE: dict[str, tuple[Forward, Shape, tuple[Shape, ...]]] = {
    "nothing": (lambda net, y: y.relu(), IMAGE, OTHERS),
    "interpolated by size": (lambda net, y: F.interpolate(y.relu()[..., ::2, ::2], size=y.shape[2:]), IMAGE, OTHERS),
    "interpolated by factor": (lambda net, y: F.interpolate(y.relu(), scale_factor=2), IMAGE, OTHERS),
    "pooled to a size": (lambda net, y: F.adaptive_avg_pool2d(y.relu(), 2), IMAGE, OTHERS),
    "tokens": (
        lambda net, y: net.middle(y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(
            len(y), -1, y.shape[2], y.shape[3]), IMAGE, OTHERS,
    ),
    "windows": (_windows, IMAGE, OTHERS),
    "mean over tokens": (lambda net, y: y.relu().sum(1) / y.shape[1], STEPS, LENGTHS),
    "number of tokens": (lambda net, y: y.relu().flatten(1).view(y.shape[0], y.shape[1], -1), STEPS, LENGTHS),
    "table of positions": (
        lambda net, y: (y + net.table(torch.arange(y.shape[1], device=y.device))).relu(), STEPS, LENGTHS,
    ),
    "causal mask": (_causal, STEPS, LENGTHS),
    "made from a size": (lambda net, y: torch.cat([y.relu(), y.new_ones(y.shape)], 1), STEPS, LENGTHS),
    "pooled whole": (
        lambda net, y: F.avg_pool2d(y.relu(), y.shape[2:]) + F.max_pool2d(y, kernel_size=y.shape[-2:]), IMAGE, OTHERS,
    ),
    "spaced evenly": (lambda net, y: y.relu() * torch.linspace(-1, 1, y.shape[3]), IMAGE, OTHERS),
    "all of units and samples": (
        lambda net, y: y.transpose(1, 2).reshape(-1, y.shape[1])[:, :, None].relu().reshape(
            len(y), y.shape[2], y.shape[1]).transpose(1, 2), STEPS, LENGTHS,
    ),
    "every second, of units and samples": (
        lambda net, y: y.transpose(1, 2).reshape(-1, y.shape[1])[::2].relu().reshape(
            len(y), -1, y.shape[1]).transpose(1, 2).repeat_interleave(2, 2), STEPS, LENGTHS,
    ),
    "reversed": (lambda net, y: y.relu().flip(1), STEPS, LENGTHS),
}
# As above, with what is refused at which shape; there the original is right, or refuses too.
FIXED: dict[str, tuple[Forward, Shape, Shape, str]] = {
    "loop over time": (_over_time, STEPS, (2, 7, 6), "x has size 7 at axis 1, and this graph takes 5: its code"),
    "a size as a number": (
        lambda net, y: y.relu().sum(1) / int(y.shape[1]), STEPS, (2, 7, 6), "x has size 7 at axis 1, and this graph",
    ),
    "a table of all positions": (
        lambda net, y: (y + net.whole).relu(), STEPS, (2, 7, 6), "x has size 7 at axis 1, .* must match the size",
    ),
    "the end of a table": (
        lambda net, y: (y + net.table(torch.arange(y.shape[1]))).relu(), STEPS, (2, 13, 6), "index out of range",
    ),
    "a branch with parameters of its own": (
        lambda net, y: (y if y.shape[1] < 6 else net.middle(y)).relu(), STEPS, (2, 7, 6), "this graph takes",
    ),
    "channels": (lambda net, y: y.relu(), IMAGE, (2, 4, 8, 8), "x has size 4 at axis 1, and this graph takes 3"),
    "axes": (lambda net, y: y.relu(), IMAGE, (3, 8, 8), "x has 3 axes, and this graph takes 4"),
}


def made(between: Forward, shape: Shape, form: Any) -> tuple[nn.Module, nn.Module]:
    """The smaller model, and the original with zeros where units are removed."""
    net = Net(between, "image" if len(shape) == 4 else "steps").eval()
    slim = surgeon.shrink(
        net, 0.4, example_inputs=torch.randn(shape), form=form, scope="local", budget="channels", compensate=False
    )
    zeroed = copy.deepcopy(net)
    plan = attached(slim)
    assert plan is not None and plan.cuts
    for cut in plan.cuts:
        tensor = zeroed.get_parameter(cut.tensor).data
        gone = sorted(set(range(tensor.shape[cut.axis])) - set(cut.keep))
        tensor.index_fill_(cut.axis, torch.tensor(gone), 0)
    return slim, zeroed


@pytest.mark.parametrize(("between", "shape", "others"), FREE.values(), ids=FREE)
@pytest.mark.parametrize("form", ["graph", "auto"])
def test_it_is_right_at_every_size(between: Forward, shape: Shape, others: tuple[Shape, ...], form: str) -> None:
    slim, zeroed = made(between, shape, form)
    for other in (shape, *others):
        x = torch.randn(other)
        torch.testing.assert_close(slim(x), zeroed(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("between", "shape", "other", "told"), FIXED.values(), ids=FIXED)
def test_a_graph_refuses_what_it_was_not_made_for(between: Forward, shape: Shape, other: Shape, told: str) -> None:
    slim, zeroed = made(between, shape, "graph")
    x = torch.randn(shape)
    torch.testing.assert_close(slim(x), zeroed(x), atol=1e-5, rtol=1e-4)
    x = torch.randn(3, *shape[1:])
    torch.testing.assert_close(slim(x), zeroed(x), atol=1e-5, rtol=1e-4)
    with pytest.raises((surgeon.SurgeonError, IndexError), match=told):
        slim(torch.randn(other))


@pytest.mark.parametrize(("between", "shape", "other", "told"), FIXED.values(), ids=FIXED)
def test_the_users_own_class_does_what_its_code_does(
    between: Forward, shape: Shape, other: Shape, told: str
) -> None:
    slim, zeroed = made(between, shape, "auto")
    x = torch.randn(other)
    try:
        expected = zeroed(x)
    except (RuntimeError, IndexError):
        with pytest.raises((RuntimeError, IndexError, surgeon.SurgeonError)):
            slim(x)
    else:
        try:
            found = slim(x)
        except surgeon.SurgeonError:
            assert isinstance(slim, torch.fx.GraphModule)
        else:
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_branch_keeps_all_sizes_that_take_it() -> None:
    slim, zeroed = made(lambda net, y: y.relu() if 14 <= y.shape[1] <= 16 else -y, (2, 15, 6), "graph")
    for length in (14, 16):
        x = torch.randn(3, length, 6)
        torch.testing.assert_close(slim(x), zeroed(x))
    for length in (13, 17):
        with pytest.raises(surgeon.SurgeonError, match="branches on these sizes"):
            slim(torch.randn(3, length, 6))


@pytest.mark.parametrize("form", ["graph", "module"])
def test_what_is_free_is_told_and_proved_at_a_second_size(form: Any) -> None:
    net = Net(lambda net, y: y.relu(), "image")
    _, report = surgeon.shrink(
        net, 0.4, example_inputs=torch.randn(IMAGE), form=form, return_report=True, compensate=False
    )
    assert report.inputs[0].startswith("x (*, 3, *, *): axes 0, 2, 3 free, axis 1 fixed (")
    second = report.certificate.second_size
    assert second.deviation < 1e-12 and second.shapes == ("x (3, 3, 24, 16)",)
    assert "at a second size, x (3, 3, 24, 16)" in str(report)


def test_a_wrong_second_size_is_not_certified() -> None:
    net = Net(lambda net, y: y.relu() * (1 if y.shape[2] == 8 else net.middle.bias.shape[0]), "image")
    slim = surgeon.shrink(
        net, 0.4, example_inputs=torch.randn(IMAGE), ignore=["middle"], form="graph", compensate=False
    )
    with pytest.raises(surgeon.SurgeonError):
        slim(torch.randn(2, 3, 16, 16))  # the branch of another size is not in the graph


def test_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "LIMIT", 0.0)
    net = Net(_windows, "image")
    slim, report = surgeon.shrink(
        net, 0.4, example_inputs=torch.randn(IMAGE), form="graph", return_report=True, compensate=False
    )
    assert "did not end within 0 s" in report.inputs[0]
    assert slim(torch.randn(7, 3, 8, 8)).shape == (7, 2, 8, 8)
    with pytest.raises(surgeon.SurgeonError, match="did not end"):
        slim(torch.randn(2, 3, 12, 12))


class Made(nn.Module):
    """Makes tensors of its input's type and device, and names single precision once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = (self.norm(self.first(x).relu()).float() / 3).to(x.dtype)
        least = torch.full((len(y), 1), torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device)
        y = torch.maximum(y, least) * torch.arange(1, 2, dtype=x.dtype, device=x.device)
        return cast(Tensor, self.second(torch.cat([y, torch.ones(len(y), 1, dtype=x.dtype, device=x.device)], 1)))


@pytest.mark.parametrize("form", ["graph", "auto"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_it_follows_its_type(kind: torch.dtype, form: Any) -> None:
    net, x = Made().eval(), torch.randn(2, 6)
    slim = surgeon.shrink(net, 0.4, example_inputs=x, form=form, compensate=False)
    expected = slim(x)
    found = copy.deepcopy(slim).to(kind)(x.to(kind))
    assert found.dtype is kind
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("form", ["graph", "auto"])
def test_it_follows_its_device(form: Any) -> None:
    net = Made()
    slim = surgeon.shrink(net, 0.4, example_inputs=torch.randn(2, 6), form=form, compensate=False).to("meta")
    assert slim(torch.randn(2, 6, device="meta")).device.type == "meta"


def test_a_named_type_stays() -> None:
    graph = surgeon.shrink(Made(), 0.4, example_inputs=torch.randn(2, 6), form="graph", compensate=False)
    assert graph.code.count("torch.float32") == 1


def test_autocast_and_compile() -> None:
    net, x = Made().eval(), torch.randn(2, 6)
    graph = surgeon.shrink(net, 0.4, example_inputs=x, form="graph", compensate=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert graph(x).dtype == net(x).dtype == torch.bfloat16
    compiled = torch.compile(graph, backend="eager", fullgraph=True)
    for size in (2, 3, 4):
        x = torch.randn(size, 6)
        torch.testing.assert_close(compiled(x), graph(x))


def test_memory_format_is_kept() -> None:
    net, x = Net(lambda net, y: y.relu(), "image"), torch.randn(IMAGE).to(memory_format=torch.channels_last)
    graph = surgeon.shrink(net, 0.4, example_inputs=torch.randn(IMAGE), form="graph", compensate=False)
    assert graph(x).is_contiguous(memory_format=torch.channels_last)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 64, padding_idx=0)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2)
        self.second = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.second(self.encoder(self.embedding(x), src_key_padding_mask=x == 0).mean(1)))


def test_an_encoder_with_odd_heads_runs_in_inference() -> None:
    slim = surgeon.shrink(Encoder().eval(), 0.45, example_inputs=torch.randint(1, 50, (2, 7)), compensate=False)
    assert isinstance(slim, Encoder)
    layer = slim.encoder.layers[0]
    assert isinstance(layer, nn.TransformerEncoderLayer) and layer.self_attn.num_heads % 2 == 1
    x = torch.randint(1, 50, (2, 6))
    x[0, 3:] = 0
    with torch.no_grad():
        assert slim(x).shape == (2, 3) and slim(x[1:, :4]).shape == (1, 3)
