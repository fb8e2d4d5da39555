"""What a graph consists of once it runs: which operators run along with which, and their sizes at other widths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from surgeon.cost.cost import Cost
from surgeon.latency.operators import Operator, operators
from surgeon.latency.sample_points import sizes_at
from testbed.latency_tools import Dense, Excited, Residual, Transformer, coupled


class Branches(nn.Module):
    """A convolution whose value is used twice, and one that is scaled by a table computed from constants alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.table = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x.relu() + x.sigmoid()) * (self.table.exp() + 1)


def described(net: nn.Module, *shape: int) -> tuple[list[Operator], Cost]:
    groups = coupled(net, *shape)
    cost = Cost(groups)
    return operators(groups, cost), cost


def chains(found: list[Operator]) -> list[tuple[str, list[str]]]:
    return [(o.kind, [name for name, _, _ in o.static.get("chain", [])]) for o in found]


# (a network, its input, its operators' kinds with what runs along with each)
NETWORKS: list[tuple[nn.Module, tuple[int, ...], list[tuple[str, list[str]]]]] = [
    (Residual(8), (3, 8, 8), [
        ("conv", ["relu"]), ("conv", ["relu"]), ("conv", ["add", "relu"]), ("conv", ["relu"]), ("reduce", []),
        ("linear", []),
    ]),
    (Excited(), (3, 9, 9), [
        ("conv", ["relu"]), ("conv", ["hardswish"]), ("depthwise", ["hardtanh"]), ("reduce", []), ("conv", ["relu"]),
        ("conv", ["sigmoid"]), ("pointwise", ["mul"]), ("conv", ["add"]), ("reduce", []), ("linear", []),
    ]),
    (Dense(), (3, 8, 8), [
        ("conv", []), ("batch_norm", ["relu"]), ("conv", []), ("concat", []), ("batch_norm", ["relu"]), ("conv", []),
        ("concat", []), ("pool", []), ("conv", []), ("reduce", []),
    ]),
    (Branches(), (3, 8, 8), [
        ("conv", []), ("pointwise", ["relu"]), ("pointwise", ["sigmoid", "add"]), ("conv", ["mul"]),
    ]),
]


@pytest.mark.parametrize(("net", "shape", "expected"), NETWORKS, ids=[type(row[0]).__name__ for row in NETWORKS])
def test_elementwise_operators_run_along(
    net: nn.Module, shape: tuple[int, ...], expected: list[tuple[str, list[str]]]
) -> None:
    assert chains(described(net, *shape)[0]) == expected


def test_the_tensors_that_come_in_are_the_ones_that_other_operators_write() -> None:
    found, _ = described(Residual(8), 3, 8, 8)
    stem, first, second, *_ = found
    assert second.reads == (first.writes, stem.writes)
    assert stem.static["input"] and "input" not in first.static


def test_a_tensor_is_the_same_behind_a_dropout() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 4, 1))
    (first, second), _ = described(net, 3, 8, 8)
    assert second.reads == (first.writes,)


# (a network of some width, its input, its leaves' sizes at half of that)
HALVED: list[tuple[Callable[[int], nn.Module], tuple[int, ...], dict[int, int]]] = [
    (lambda part: Residual(32 // part), (3, 8, 8), {32: 16, 64: 32}),
    (lambda part: Transformer(64 // part, 4 // part), (3, 16, 16), {64: 32, 256: 128, 4: 2, 16: 16}),
]


@pytest.mark.parametrize(("build", "shape", "half"), HALVED, ids=["residual", "transformer"])
def test_sizes_at_other_widths_are_those_of_the_smaller_network(
    build: Callable[[int], nn.Module], shape: tuple[int, ...], half: dict[int, int]
) -> None:
    large, cost = described(build(1), *shape)
    small, small_cost = described(build(2), *shape)
    widths = {leaf: half[size] for leaf, size in cost.sizes.items()}
    assert [(o.key, sizes_at(o, widths)) for o in large] == [(o.key, sizes_at(o, small_cost.sizes)) for o in small]
    assert widths != dict(cost.sizes)
