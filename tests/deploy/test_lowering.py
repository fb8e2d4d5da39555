"""Attention and global pools in an exported file: written out where that is better."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from surgeon.deploy.export import export
from surgeon.deploy.lowering import write_out_attention
from tests.deploy_nets import Attention, operators, run

attend = nn.functional.scaled_dot_product_attention


class Attending(nn.Module):
    """`function` of queries, keys, values `(batch, 4, 5 or 6, 8)` and scores `(batch, 1, 5, 6)`."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scores: Tensor) -> Tensor:
        return self.function(q, k, v, scores) + 0 * scores.sum()


def split(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.unflatten(1, (2, 2)), k.unflatten(1, (2, 2)), v.unflatten(1, (2, 2))


def in_another_mode(q: Tensor, k: Tensor, v: Tensor, scores: Tensor) -> Tensor:
    with torch.enable_grad():
        return attend(*split(q, k, v))


# What attends, and how many of these operators its file holds.
PLAIN = {"MatMul": 2, "Softmax": 1}
MASKED = PLAIN | {"ReduceMax": 1}
ATTENTIONS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], dict[str, int]]] = {
    "2 axes": (lambda q, k, v, s: attend(q[0, 0], k[0, 0], v[0, 0]).sum() + q, PLAIN),
    "3 axes": (lambda q, k, v, s: attend(q[:, 0], k[:, 0], v[:, 0]), PLAIN),
    "4 axes": (lambda q, k, v, s: attend(q, k, v), PLAIN),
    "5 axes": (lambda q, k, v, s: attend(*split(q, k, v)), PLAIN),
    "5 axes, a mask of 4": (lambda q, k, v, s: attend(*split(q, k, v), s[:1] > -9), MASKED),
    "5 axes of grouped queries": (
        lambda q, k, v, s: attend(q[None], k[None, :, :2], v[None, :, :2], enable_gqa=True)[0],
        PLAIN | {"Expand": 2},
    ),
    "fewer axes of keys": (lambda q, k, v, s: attend(q, k[0], v[0]), PLAIN),
    "one key for all heads": (lambda q, k, v, s: attend(q, k[:, :1], v[:, :1]), PLAIN),
    "values of another width": (lambda q, k, v, s: attend(q, k, v[..., :3]), PLAIN),
    "scale": (lambda q, k, v, s: attend(q, k, v, scale=0.7), PLAIN),
    "negative scale": (lambda q, k, v, s: attend(q, k, v, scale=-0.7), PLAIN),
    "a scale of the batch": (lambda q, k, v, s: attend(q.transpose(0, 3), k.transpose(0, 3), v.transpose(0, 3)), PLAIN),
    "causal": (lambda q, k, v, s: attend(q, k, v, is_causal=True), PLAIN | {"Add": 2}),
    "causal over the batch": (lambda q, k, v, s: attend(q[:, 0, 0], k[:, 0, 0], v[:, 0, 0], is_causal=True), PLAIN),
    "boolean mask": (lambda q, k, v, s: attend(q, k, v, s > -9), MASKED),
    "mask of keys": (lambda q, k, v, s: attend(q, k, v, s[..., :1, :] > 0), MASKED),
    "additive mask": (lambda q, k, v, s: attend(q, k, v, s.masked_fill(s < -9, -torch.inf)), MASKED),
    "grouped queries": (
        lambda q, k, v, s: attend(q, k[:, :2], v[:, :2], s > -9, scale=0.3, enable_gqa=True),
        MASKED | {"Expand": 2},
    ),
    "in another gradient mode": (in_another_mode, PLAIN),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(tmp_path: Path, name: str) -> None:
    function, expected = ATTENTIONS[name]
    torch.manual_seed(0)
    inputs = tuple(torch.randn(2, *shape) for shape in ((4, 5, 8), (4, 6, 8), (4, 6, 8), (1, 5, 6)))
    inputs[-1][0, 0, 0] = -10  # all keys of the first query
    report = export(Attending(function), tmp_path / "m.onnx", example_inputs=inputs)
    assert report.dynamic_batch and report.deviation < 1e-5
    found = operators(tmp_path / "m.onnx")
    assert {operator: found[operator] for operator in expected} == expected
    batch = [torch.cat([tensor, tensor.flip(0)]) for tensor in inputs]
    wanted = Attending(function)(*batch)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", *batch)[0], wanted, rtol=1e-4, atol=1e-5)


def test_attention_written_out_is_a_program_like_any_other() -> None:
    net, inputs = Attention(), (torch.randn(3, 5, 32), torch.randn(1, 4, 5, 5))
    shapes = ({0: torch.export.Dim.AUTO}, None)
    program = torch.export.export(net, inputs, dynamic_shapes=shapes, strict=False)
    attention = next(node for node in program.graph.nodes if "scaled_dot_product" in str(node.target))
    (reader,), fake = attention.users, attention.meta["val"]
    assert write_out_attention(program) == 1
    assert write_out_attention(program) == 0
    written = reader.all_input_nodes[0].meta["val"]
    assert (written.shape, written.dtype) == (fake.shape, fake.dtype)
    assert written.fake_mode is fake.fake_mode
    torch.testing.assert_close(program.module()(*inputs), net(*inputs))


class Pooled(nn.Module):
    """A global pool of channels that are last in memory, and what reads them as the last axis."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.conv = getattr(nn, f"Conv{rank}d")(3, 8, 1)
        self.pool = getattr(nn, f"AdaptiveAvgPool{rank}d")(1)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).movedim(1, -1).contiguous().movedim(-1, 1)
        return self.norm(self.pool(y).movedim(1, -1))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_global_pool_is_a_mean(rank: int, tmp_path: Path) -> None:
    net, x = Pooled(rank), torch.randn(2, 3, *[5] * rank)
    export(net, tmp_path / "m.onnx", example_inputs=x)
    found = operators(tmp_path / "m.onnx")
    assert found["ReduceMean"] == 1 and not found["Gather"] + found["GatherND"]
