"""What each ATen operator is to the clock: its kind, its sizes, and a tiny graph that computes as much."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.cost.cost import Cost
from surgeon.device.ort_session import make_feeds, open_session
from surgeon.ir.polynomial import evaluate
from surgeon.latency.operators import Operator, operators
from surgeon.latency.sample_points import CURVE_OF, point, sizes_at
from testbed.latency_tools import coupled


class Applied(nn.Module):
    """A function of one tensor, with the layers that it needs."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def _through(x: Tensor, layer: nn.Module) -> Tensor:
    return layer(x)


def _first(x: Tensor, layer: nn.Module) -> Tensor:
    return layer(x)[0]


def _attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


def _masked(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, is_causal=True)


IMAGES, TOKENS, LINE, VIDEO, HEADS = (8, 6, 6), (5, 12), (8, 10), (8, 4, 6, 6), (2, 5, 4)

# (what, a network, its input without the batch, the kinds of its operators, the sizes of the first one at batch one)
CASES: list[tuple[str, nn.Module, tuple[int, ...], list[str], tuple[int, ...]]] = [
    ("conv1d", nn.Conv1d(8, 4, 3), LINE, ["conv"], (8, 4)),
    ("conv2d", nn.Conv2d(8, 4, 3, 2, 1, dilation=2), IMAGES, ["conv"], (8, 4)),
    ("conv3d", nn.Conv3d(8, 4, 3, padding=(0, 1, 1)), VIDEO, ["conv"], (8, 4)),
    ("same padding", nn.Conv2d(8, 4, 4, padding="same"), IMAGES, ["conv"], (8, 4)),
    ("depthwise", nn.Conv2d(8, 16, 3, groups=8), IMAGES, ["depthwise"], (8,)),
    ("depthwise 1-D", nn.Conv1d(8, 8, 3, groups=8), LINE, ["depthwise"], (8,)),
    ("grouped", nn.Conv2d(8, 12, 3, groups=4), IMAGES, ["grouped"], (8, 12, 2)),
    ("transposed", nn.ConvTranspose2d(8, 4, 3, 2, 1, output_padding=1), IMAGES, ["conv_transpose"], (8, 4)),
    ("transposed in groups", nn.ConvTranspose2d(8, 4, 2, groups=2), IMAGES, ["work"], (2,)),
    ("linear", nn.Linear(12, 7), TOKENS, ["linear"], (5, 12, 7)),
    ("linear of rows", nn.Linear(12, 7), (12,), ["linear"], (1, 12, 7)),
    ("matmul", Applied(lambda x: x @ x.transpose(1, 2)), TOKENS, ["matmul"], (1, 5, 12, 5)),
    ("attention", Applied(_attention), HEADS, ["attention"], (2, 5, 5, 4, 4)),
    ("masked attention", Applied(_masked), HEADS, ["attention"], (2, 5, 5, 4, 4)),
    ("layer norm", nn.LayerNorm(12), TOKENS, ["layer_norm"], (5, 12)),
    ("rms norm", nn.RMSNorm(12), TOKENS, ["layer_norm"], (5, 12)),
    ("batch norm", nn.BatchNorm2d(8), IMAGES, ["batch_norm"], (1, 8, 6, 6)),
    ("group norm", nn.GroupNorm(4, 8), IMAGES, ["layer_norm"], (4, 72)),
    ("instance norm", nn.InstanceNorm2d(8), IMAGES, ["layer_norm"], (8, 36)),
    ("softmax", nn.Softmax(-1), TOKENS, ["softmax"], (1, 5, 12)),
    ("permute", Applied(lambda x: x.permute(0, 2, 3, 1) + 1), IMAGES, ["transpose", "pointwise"], (1, 8, 6, 6)),
    ("max pool", nn.MaxPool2d(3, 2, ceil_mode=True), IMAGES, ["pool"], (8,)),
    ("average pool", nn.AvgPool1d(2), LINE, ["pool"], (8,)),
    ("max pool 3-D", nn.MaxPool3d(2), VIDEO, ["pool"], (8,)),
    ("global pool", nn.AdaptiveAvgPool2d(1), IMAGES, ["reduce"], (1, 8, 6, 6)),
    ("adaptive pool", nn.AdaptiveAvgPool2d(2), IMAGES, ["pool"], (8,)),
    ("uneven adaptive pool", nn.AdaptiveAvgPool2d(4), IMAGES, ["copy"], (128,)),
    ("mean", Applied(lambda x: x.mean((2, 3))), IMAGES, ["reduce"], (1, 8, 6, 6)),
    ("maximum over an axis", Applied(lambda x: x.amax(1)), TOKENS, ["reduce"], (1, 5, 12)),
    ("norm over an axis", Applied(lambda x: x.norm(dim=-1)), TOKENS, ["reduce"], (1, 5, 12)),
    ("images side by side", Applied(lambda x: torch.cat([x, x + 1], 1)), IMAGES, ["pointwise", "concat"], (1, 8, 6, 6)),
    ("tokens side by side", Applied(lambda x: torch.cat([x, x], 1)), TOKENS, ["copy"], (120,)),
    ("part", Applied(lambda x: x[:, 1:]), TOKENS, ["copy"], (48,)),
    ("all of it", Applied(lambda x: x[:, 0:] + 1), TOKENS, ["pointwise"], (1, 5, 12)),
    ("view", Applied(lambda x: x.flatten(2) + 1), IMAGES, ["view", "pointwise"], ()),
    ("up", nn.Upsample(scale_factor=2), IMAGES, ["copy"], (1152,)),
    ("recurrence", Applied(_first, nn.LSTM(12, 4, batch_first=True)), TOKENS, ["work"], (1,)),
    ("gated", Applied(lambda x, gate: x * gate(x).sigmoid(), nn.Conv2d(8, 1, 1)), IMAGES,
     ["conv", "pointwise"], (8, 1)),
    ("a number to the power", Applied(lambda x: x**3), TOKENS, ["pointwise"], (1, 5, 12)),
    ("unknown to the clock", Applied(lambda x: x.cumsum(1)), TOKENS, ["copy"], (60,)),
]


def described(net: nn.Module, *shape: int) -> tuple[list[Operator], Cost]:
    groups = coupled(net, *shape)
    cost = Cost(groups)
    return operators(groups, cost), cost


@pytest.mark.parametrize(("net", "shape", "kinds", "sizes"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_operator_has_kind_and_sizes_and_a_tiny_graph_that_computes_as_much(
    net: nn.Module, shape: tuple[int, ...], kinds: list[str], sizes: tuple[int, ...]
) -> None:
    found, cost = described(net, *shape)
    assert [operator.kind for operator in found] == kinds
    assert sizes_at(found[0], cost.sizes) == sizes
    for operator in found:
        elements = math.prod(float(evaluate(terms, cost.sizes)) for terms in operator.result)
        if operator.kind in CURVE_OF or operator.kind == "view":
            continue
        made = point(operator.kind, operator.key, operator.static, sizes_at(operator, cost.sizes))
        session = open_session(made.model)
        outputs = session.run(None, make_feeds(session))
        assert [value.size for value in outputs] == [round(elements)] * made.copies


def test_embedding_moves_what_it_hands_out() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.table((x.abs() * 10).long()))

    found, cost = described(Embedded(), 7)
    (embedding,) = [operator for operator in found if operator.label == "embedding in table"]
    assert (embedding.kind, sizes_at(embedding, cost.sizes)) == ("copy", (7 * 16,))
