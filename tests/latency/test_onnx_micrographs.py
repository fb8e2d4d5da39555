"""Tiny graphs: as many copies as asked for, with weights of their own, and elementwise operators that are the real."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from surgeon.device.onnx_protobuf import parse
from surgeon.device.ort_session import open_session
from surgeon.latency.onnx_micrographs import KINDS, Tiny, masked, positions, tiny, weight_bytes
from surgeon.latency.pointwise_ops import COMMUTATIVE, POINTWISE

CONV: dict[str, Any] = {
    "kernel": [3, 3], "stride": [1, 1], "dilation": [1, 1], "pads": [1, 1, 1, 1], "spatial": [8, 8], "batch": 1,
    "bias": True, "chain": [],
}


def run(made: Tiny, *inputs: np.ndarray) -> list[np.ndarray]:
    session = open_session(made.model)
    return list(session.run(None, dict(zip(made.inputs, inputs, strict=True))))


def elementwise(*links: list[Any]) -> Tiny:
    return tiny("pointwise", {"first": "nn", "chain": list(links)}, (4, 6))


# (ATen operator, its settings, the same in torch)
UNARY: list[tuple[str, dict[str, Any], Any]] = [
    ("relu", {}, F.relu), ("relu6", {}, F.relu6), ("sigmoid", {}, torch.sigmoid),
    ("hardtanh", {"min_val": 0, "max_val": 2.0}, lambda x: x.clamp(0, 2)),
    ("clamp", {"min": -1.0, "max": 1.0}, lambda x: x.clamp(-1, 1)),
    ("clamp_min", {"min": 0.5}, lambda x: x.clamp_min(0.5)), ("clamp_max", {"max": 0.5}, lambda x: x.clamp_max(0.5)),
    ("hardsigmoid", {}, F.hardsigmoid), ("hardswish", {}, F.hardswish), ("silu", {}, F.silu), ("gelu", {}, F.gelu),
    ("gelu", {"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh")), ("tanh", {}, torch.tanh),
    ("leaky_relu", {"negative_slope": 0.2}, lambda x: F.leaky_relu(x, 0.2)), ("elu", {}, F.elu), ("celu", {}, F.celu),
    ("selu", {}, F.selu), ("mish", {}, F.mish), ("softplus", {}, F.softplus), ("exp", {}, torch.exp),
    ("erf", {}, torch.erf), ("square", {}, torch.square), ("neg", {}, torch.neg), ("abs", {}, torch.abs),
    ("pow", {}, torch.square), ("reciprocal", {}, torch.reciprocal),
]


@pytest.mark.parametrize(("name", "settings", "expected"), UNARY, ids=[row[0] for row in UNARY])
def test_elementwise_operator_is_the_real_one(name: str, settings: dict[str, Any], expected: Any) -> None:
    x = torch.randn(4, 6) * 3
    (result,) = run(elementwise([name, settings, []]), x.numpy())
    torch.testing.assert_close(torch.from_numpy(result), expected(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted({*COMMUTATIVE, "sub", "div"}))
def test_other_operands_come_after(name: str) -> None:
    x, y = torch.randn(4, 6), torch.rand(1, 6) + 1
    (result,) = run(elementwise([name, {}, ["x:1n"]]), x.numpy(), y.numpy())
    torch.testing.assert_close(torch.from_numpy(result), getattr(torch, name)(x, y))


def test_commutative_operators_are_known() -> None:
    assert set(POINTWISE) >= COMMUTATIVE


def test_each_copy_has_weights_of_its_own() -> None:
    made = tiny("conv", CONV, (4, 8), copies=3)
    outputs = run(made, np.ones((1, 4, 8, 8), np.float32))
    assert len(outputs) == 3
    assert len({float(value.sum()) for value in outputs}) == 3
    assert len(made.model) < 4000


def test_a_second_summand_is_fed_from_another_convolution() -> None:
    made = tiny("conv", CONV | {"chain": [["add", {}, ["x:1nnn"]], ["relu", {}, []]]}, (4, 8), copies=2)
    feeds = [node for node in parse(made.model).nodes if node.outputs[0].startswith("feed_")]
    assert [node.op_type for node in feeds] == ["Conv"]
    outputs = run(made, *(np.ones(shape, np.float32) for shape in made.inputs.values()))
    assert [value.shape for value in outputs] == [(1, 8, 8, 8)] * 2


# (kind, its settings, its sizes, the elements of its weights without the bias, how often each is used)
WEIGHTS: list[tuple[str, dict[str, Any], tuple[int, ...], int, int]] = [
    ("conv", CONV, (4, 8), 4 * 8 * 9, 64),
    ("conv", CONV | {"stride": [2, 2]}, (4, 8), 4 * 8 * 9, 16),
    ("depthwise", CONV | {"multiplier": 2}, (4,), 8 * 9, 64),
    ("grouped", CONV, (8, 16, 2), 16 * 2 * 9, 64),
    ("linear", {"rank": 3, "bias": True}, (5, 12, 7), 84, 5),
    ("matmul", {"weight": True}, (2, 5, 12, 7), 2 * 84, 5),
    ("matmul", {"weight": False}, (2, 5, 12, 7), 0, 5),
    ("layer_norm", {}, (5, 12), 0, 1),
]


@pytest.mark.parametrize(("kind", "static", "dims", "elements", "uses"), WEIGHTS)
def test_weights_are_counted(
    kind: str, static: dict[str, Any], dims: tuple[int, ...], elements: int, uses: int
) -> None:
    assert weight_bytes(kind, dims, static) == 4 * elements
    assert positions(kind, dims, static) == uses


@pytest.mark.parametrize("dims", [(128, 32, 2), (64, 64, 3), (6, 40, 6), (33, 33, 5), (8, 3, 2)])
def test_a_grouped_convolution_of_any_sizes_can_be_run(dims: tuple[int, ...]) -> None:
    made = tiny("grouped", CONV, dims)
    (result,) = run(made, *(np.ones(shape, np.float32) for shape in made.inputs.values()))
    assert result.size > 0


@pytest.mark.parametrize(
    ("mask", "out", "shape"),
    [("nn", (2, 3), (2, 3)), ("n", (2, 3), (3,)), ("1n11", (1, 8, 4, 4), (1, 8, 1, 1)), ("1nn", (5, 12), (5, 12)),
     ("1n1n", (5, 12), (5, 12))],
)  # fmt: skip
def test_masks_fit_the_last_axes(mask: str, out: tuple[int, ...], shape: tuple[int, ...]) -> None:
    assert masked(mask, out) == shape


def test_every_kind_has_a_graph() -> None:
    assert {"conv", "depthwise", "grouped", "linear", "attention", "pool", "pointwise", "copy", "work"} <= KINDS.keys()
