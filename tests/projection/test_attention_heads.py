"""Projection inside of attention heads: the same function, each head in a basis of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.frontend.trace import trace
from surgeon.groups.coupling import couple
from surgeon.plans.basis import Basis, basis_of
from surgeon.plans.plan import Plan
from surgeon.projection.project import project
from testbed.networks import random_network

KINDS = ("fused", "chunks", "separate", "products", "expanded", "grouped", "module")


class Attention(nn.Module):
    """Two heads of four channels over six features, written in one of several ways; no norm, no shortcut."""

    def __init__(self, kind: str, rotary: bool = False) -> None:
        super().__init__()
        self.kind, self.rotary = kind, rotary
        self.few = 1 if kind in ("expanded", "grouped") else 2
        if kind == "module":
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.up = nn.Linear(6, 8)
        elif kind in ("fused", "chunks"):
            self.qkv = nn.Linear(6, 24)
        else:
            self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 4 * self.few), nn.Linear(6, 4 * self.few)
        self.out = nn.Linear(8, 5)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        if self.kind == "fused":
            q, k, v = self.qkv(x).reshape(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.kind == "chunks":
            q, k, v = (part.view(b, n, 2, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        else:
            q = self.q(x).view(b, n, 2, 4).transpose(1, 2)
            k, v = (layer(x).view(b, n, self.few, 4).transpose(1, 2) for layer in (self.k, self.v))
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "module":
            x = self.up(x)
            return self.out(self.attention(x, x, x, need_weights=False)[0])
        q, k, v = self.heads(x)
        if self.rotary:
            angle = torch.arange(q.shape[2], dtype=q.dtype)[:, None]
            q, k = q * angle.cos(), k * angle.sin()
        if self.kind == "expanded":
            k, v = (part.expand(-1, 2, -1, -1) for part in (k, v))
        if self.kind == "products":
            y = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.kind == "grouped")
        return self.out(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], 8))


def tokens() -> Tensor:
    return torch.randn(48, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def basis(model: nn.Module) -> Basis:
    found = basis_of(model)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_rotated_model_computes_the_same(kind: str) -> None:
    net, x = Attention(kind).double().eval(), tokens()
    rotated = project(net, x, example_inputs=x)
    torch.testing.assert_close(rotated(x), net(x), rtol=1e-9, atol=1e-9)
    changed = {name for name, value in rotated.state_dict().items() if not torch.equal(value, net.state_dict()[name])}
    expected = {
        "fused": {"qkv.weight", "qkv.bias", "out.weight"}, "chunks": {"qkv.weight", "qkv.bias", "out.weight"},
        "module": {"attention.in_proj_weight", "attention.out_proj.weight"},
    }.get(kind, {f"{layer}.{part}" for layer in "qkv" for part in ("weight", "bias")} | {"out.weight"})
    assert expected <= changed


@pytest.mark.parametrize("kind", ["fused", "separate", "products", "grouped"])
def test_each_head_loses_directions_of_its_own(kind: str) -> None:
    """Values, and keys, of two dimensions in each head, not the same ones: two of four channels will do."""
    torch.manual_seed(0)
    net, x = Attention(kind).double().eval(), tokens()
    with torch.no_grad():
        for name, layer in net.named_children():
            assert isinstance(layer, nn.Linear)
            heads = range(0, layer.out_features if name != "out" else 0, 4)
            for rows in (slice(start, start + 4) for start in heads):
                span = torch.randn(4, 2, dtype=torch.float64) @ torch.randn(2, 4, dtype=torch.float64)
                layer.weight[rows] = span @ layer.weight[rows]
                layer.bias[rows] = span @ layer.bias[rows]
    rotated = project(net, x, example_inputs=x)
    apart = [_apart(net, model, x) for model in (rotated, net)]
    assert apart[0] < 2e-3 < 0.05 < apart[1]


def _apart(net: nn.Module, model: nn.Module, x: Tensor) -> float:
    """How far the outputs are from the network's when a model keeps the first two channels of each head."""
    groups = couple(trace(model, x))
    inner = [group for group in groups if group.size == 4]
    assert inner
    plan = Plan.of(groups, {group.leaf.id: range(2) for group in inner}, model=model)
    with torch.no_grad():
        return float((plan.apply(model, x)(x) - net(x)).norm() / net(x).norm())


def test_queries_and_keys_that_positions_turn_are_left_alone() -> None:
    net, x = Attention("separate", rotary=True).double().eval(), tokens()
    rotated = project(net, x, example_inputs=x)
    torch.testing.assert_close(rotated(x), net(x), rtol=1e-9, atol=1e-9)
    state = rotated.state_dict()
    assert torch.equal(state["q.weight"], net.q.weight)
    assert not torch.equal(state["v.weight"], net.v.weight)


@pytest.mark.parametrize("seed", range(40))
def test_random_networks_compute_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgeon.projection.project.TOLERANCE", float("inf"))
    net, inputs = random_network(seed)
    net, inputs = net.double(), tuple(x.double() if x.is_floating_point() else x for x in inputs)
    batch = tuple(
        torch.randn(8, *x.shape[1:], dtype=x.dtype) if x.is_floating_point() else x.repeat(4, *[1] * (x.dim() - 1))
        for x in inputs
    )
    rotated = project(net, [batch], example_inputs=inputs)
    wanted, found = net(*inputs), rotated(*inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
    assert rotated is net or basis(rotated).deviation < 1e-8
