"""A table of operators, each in the smallest network whose units pass through it.

`up` makes the units, on axis 1 of `(2, units, *spatial)`; the operator of the row follows; `down` sums over the axis on
which the units stand afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Operator = Callable[[Tensor, Any], Tensor]


class Row(NamedTuple):
    """`aten` occurs in the traced graph, `axis` is where the units stand after `run`.

    `more` are parameters, given by their shapes, buffers and modules that `run` finds on its second argument.
    """

    name: str
    aten: str
    run: Operator
    units: int = 8
    spatial: tuple[int, ...] = (4,)
    axis: int = 1
    more: dict[str, Any] = {}  # noqa: RUF012 - never written to

    def __str__(self) -> str:
        return self.name


class Around(nn.Module):
    """A layer that makes units, an operator, and a layer that sums over them."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.row = row
        convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        rank = len(row.spatial)
        self.up: nn.Module = convolutions[rank - 1](3, row.units, 1) if rank else nn.Linear(3, row.units)
        for name, value in row.more.items():
            if isinstance(value, tuple):
                setattr(self, name, nn.Parameter(torch.randn(value)))
            elif isinstance(value, Tensor):
                self.register_buffer(name, value.clone())
            else:
                setattr(self, name, copy.deepcopy(value))
        with torch.no_grad():
            y = row.run(self.up(torch.randn(2, 3, *row.spatial)), self)
        self.down = nn.Linear(y.shape[row.axis], 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.row.run(self.up(x), self)
        return self.down(y.movedim(self.row.axis, -1))


def pads(x: Tensor, amounts: list[int], mode: str = "constant") -> Tensor:
    return F.pad(x, amounts, mode=mode)


def grid(x: Tensor) -> Tensor:
    steps = torch.linspace(-0.9, 0.9, 3, dtype=x.dtype)
    return torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).expand(x.shape[0], 3, 3, 2)


def heads(x: Tensor, count: int) -> Tensor:
    """(N, count · size, L) -> (N, count, L, size)."""
    return x.unflatten(1, (count, -1)).transpose(2, 3)


def fused(x: Tensor, **options: Any) -> Tensor:
    """Attention of queries, keys and values in one axis; (N, 3 · 2 · size, L) -> (N, 2 · size, L)."""
    q, k, v = x.unflatten(1, (3, 2, -1)).transpose(3, 4).unbind(1)
    y = F.scaled_dot_product_attention(q, k, v, **options)
    return y.transpose(2, 3).flatten(1, 2)


def shared_heads(x: Tensor) -> Tensor:
    """Four heads of queries, two of keys and values; (N, 8 · size, L) -> (N, 4 · size, L)."""
    size = x.shape[1] // 8
    q, k, v = torch.split(x, [4 * size, 2 * size, 2 * size], 1)
    y = F.scaled_dot_product_attention(heads(q, 4), heads(k, 2), heads(v, 2), enable_gqa=True)
    return y.transpose(2, 3).flatten(1, 2)


def scattered(x: Tensor, p: Any) -> Tensor:
    return torch.scatter(x, 2, p.index.expand(x.shape[0], x.shape[1], 2), 1.0)


def written(x: Tensor, p: Any) -> Tensor:
    y = x.clone()
    y[:, :, p.ids] = p.values
    return y


POINTWISE = [
    Row("relu", "relu", lambda x, p: F.relu(x)),
    Row("gelu", "gelu", lambda x, p: F.gelu(x)),
    Row("exp, which makes a constant of zero", "exp", lambda x, p: torch.exp(x)),
    Row("clamp", "clamp", lambda x, p: x.clamp(-0.5, 0.5)),
    Row("add of a residual", "add", lambda x, p: x + p.conv(x), more={"conv": nn.Conv1d(8, 8, 1)}),
    Row("mul by a parameter", "mul", lambda x, p: x * p.scale, more={"scale": (8, 1)}),
    Row("where", "where", lambda x, p: torch.where(x > 0, x, p.slope * x), more={"slope": (1, 8, 1)}),
    Row("masked_fill by a buffer", "masked_fill", lambda x, p: x.masked_fill(p.mask, 0.0),
        more={"mask": torch.arange(8)[:, None] % 3 == 0}),
    Row("maximum", "maximum", lambda x, p: torch.maximum(x, p.least), more={"least": (8, 1)}),
    Row("lerp", "lerp", lambda x, p: torch.lerp(x, p.end, 0.3), more={"end": (8, 1)}),
    Row("addcmul", "addcmul", lambda x, p: torch.addcmul(p.bias, x, p.scale), more={"bias": (8, 1), "scale": (8, 1)}),
    Row("pow", "pow", lambda x, p: x.pow(2)),
    Row("prelu", "prelu", lambda x, p: F.prelu(x, p.slope), more={"slope": (8,)}),
    Row("atan2", "atan2", lambda x, p: torch.atan2(x, p.other), more={"other": (8, 1)}),
    Row("dropout", "dropout", lambda x, p: F.dropout(x, 0.5, False)),
]

CONTRACTION = [
    Row("linear", "linear", lambda x, p: F.linear(x, p.w, p.b), spatial=(), more={"w": (6, 8), "b": (6,)}),
    Row("conv1d", "conv1d", lambda x, p: F.conv1d(x, p.w), more={"w": (6, 8, 3)}),
    Row("conv2d", "conv2d", lambda x, p: F.conv2d(x, p.w, p.b), spatial=(4, 4), more={"w": (6, 8, 3, 3), "b": (6,)}),
    Row("conv3d", "conv3d", lambda x, p: F.conv3d(x, p.w), spatial=(2, 2, 2), more={"w": (6, 8, 2, 1, 1)}),
    Row("conv2d in groups", "conv2d", lambda x, p: F.conv2d(x, p.w, p.b, groups=2), spatial=(3, 3),
        more={"w": (12, 4, 3, 3), "b": (12,)}),
    Row("conv2d depthwise", "conv2d", lambda x, p: F.conv2d(x, p.w, p.b, groups=8), spatial=(3, 3),
        more={"w": (8, 1, 3, 3), "b": (8,)}),
    Row("conv1d depthwise, two of each", "conv1d", lambda x, p: F.conv1d(x, p.w, groups=8), more={"w": (16, 1, 3)}),
    Row("conv_transpose1d", "conv_transpose1d", lambda x, p: F.conv_transpose1d(x, p.w, p.b),
        more={"w": (8, 6, 3), "b": (6,)}),
    Row("conv_transpose2d", "conv_transpose2d", lambda x, p: F.conv_transpose2d(x, p.w, stride=2), spatial=(2, 2),
        more={"w": (8, 6, 2, 2)}),
    Row("conv_transpose2d in groups", "conv_transpose2d", lambda x, p: F.conv_transpose2d(x, p.w, p.b, groups=2),
        spatial=(2, 2), more={"w": (8, 3, 2, 2), "b": (6,)}),
    Row("conv_transpose3d", "conv_transpose3d", lambda x, p: F.conv_transpose3d(x, p.w), spatial=(2, 1, 1),
        more={"w": (8, 4, 2, 1, 1)}),
    Row("matmul", "matmul", lambda x, p: p.w @ x, more={"w": (6, 8)}),
    Row("bmm", "bmm", lambda x, p: torch.bmm(x.mT, x)),
    Row("mm", "mm", lambda x, p: torch.mm(x, p.w), spatial=(), more={"w": (8, 6)}),
    Row("mv", "mv", lambda x, p: torch.mv(x, p.w)[:, None] * p.v, spatial=(), more={"w": (8,), "v": (1, 6)}),
    Row("addmm, with a weight of (in, out)", "addmm", lambda x, p: torch.addmm(p.b, x, p.w), spatial=(),
        more={"w": (8, 6), "b": (6,)}),
    Row("baddbmm", "baddbmm", lambda x, p: torch.baddbmm(p.b, p.w.expand(2, 6, 8), x), more={"w": (6, 8), "b": (6, 1)}),
    Row("einsum", "einsum", lambda x, p: torch.einsum("bcl,cd->bdl", x, p.w), more={"w": (8, 6)}),
    Row("einsum of an outer product", "einsum", lambda x, p: torch.einsum("bc,bd->bcd", x, p.up(x[:, :3])).flatten(1),
        spatial=()),
    Row("einsum with an ellipsis", "einsum", lambda x, p: torch.einsum("...cl,cd->...dl", x, p.w), more={"w": (8, 6)}),
    Row("einsum without an arrow", "einsum", lambda x, p: torch.einsum("bcl,cd", x, p.w), more={"w": (8, 6)}, axis=2),
    Row("bilinear", "bilinear", lambda x, p: F.bilinear(x, p.other(x), p.w), spatial=(),
        more={"other": nn.Linear(8, 5), "w": (6, 8, 5)}),
    Row("vdot", "vdot", lambda x, p: x * torch.vdot(x[0], p.w), spatial=(), more={"w": (8,)}),
    Row("attention", "scaled_dot_product_attention", lambda x, p: fused(x), units=24),
    Row("attention with a mask", "scaled_dot_product_attention", lambda x, p: fused(x, attn_mask=p.bias), units=24,
        more={"bias": (1, 2, 4, 4)}),
    Row("attention with a mask of truths", "scaled_dot_product_attention", lambda x, p: fused(x, attn_mask=p.mask),
        units=24, more={"mask": torch.ones(4, 4).tril().bool()}),
    Row("causal attention", "scaled_dot_product_attention", lambda x, p: fused(x, is_causal=True), units=24),
    Row("attention with its own scale", "scaled_dot_product_attention", lambda x, p: fused(x, scale=0.3), units=24),
    Row("attention with keys for two heads", "scaled_dot_product_attention", lambda x, p: shared_heads(x), units=32),
]

LAYOUT = [
    Row("view", "view", lambda x, p: x.view(2, 2, 4, 4).flatten(1, 2)),
    Row("reshape to one axis", "reshape", lambda x, p: x.reshape(x.shape[0], -1)),
    Row("flatten", "flatten", lambda x, p: x.flatten(1)),
    Row("unflatten", "unflatten", lambda x, p: x.unflatten(1, (4, 2)), axis=1),
    Row("permute", "permute", lambda x, p: x.permute(2, 1, 0)),
    Row("transpose", "transpose", lambda x, p: x.transpose(1, 2), axis=2),
    Row("t", "t", lambda x, p: x.t(), spatial=(), axis=0),
    Row("movedim", "movedim", lambda x, p: x.movedim((0, 1), (2, 0)), axis=0),
    Row("squeeze of a number", "squeeze", lambda x, p: x + x.sum().squeeze(0)),
    Row("max of a number", "max", lambda x, p: x + x.sum().max(0).values),
    Row("squeeze", "squeeze", lambda x, p: x.squeeze(-1), spatial=(1,)),
    Row("unsqueeze", "unsqueeze", lambda x, p: x.unsqueeze(1), axis=2),
    Row("unbind of another axis", "unbind", lambda x, p: torch.add(*x[:, :, :2].unbind(2))),
    Row("select", "select", lambda x, p: x[:, :, 1]),
    Row("pixel_shuffle", "pixel_shuffle", lambda x, p: F.pixel_shuffle(x, 2), units=16, spatial=(2, 2)),
    Row("pixel_unshuffle", "pixel_unshuffle", lambda x, p: F.pixel_unshuffle(x, 2), spatial=(4, 2)),
    Row("channel_shuffle", "channel_shuffle", lambda x, p: F.channel_shuffle(x, 2), spatial=(2, 2)),
    Row("unfold", "unfold", lambda x, p: x.unfold(2, 2, 1).flatten(2)),
    Row("im2col", "im2col", lambda x, p: F.unfold(x, 2), spatial=(3, 3)),
    Row("col2im", "col2im", lambda x, p: F.fold(F.unfold(x, 2), (3, 3), 2), spatial=(3, 3)),
    Row("tril of other axes", "tril", lambda x, p: x * torch.tril(p.w), spatial=(4, 4), more={"w": (4, 4)}),
]

SEGMENTS = [
    Row("cat", "cat", lambda x, p: torch.cat([x, p.conv(x), x], 1), more={"conv": nn.Conv1d(8, 5, 1)}),
    Row("stack", "stack", lambda x, p: torch.stack([x, 2 * x], 1).sum(1)),
    Row("hstack", "hstack", lambda x, p: torch.hstack([x, p.conv(x)]), more={"conv": nn.Conv1d(8, 5, 1)}),
    Row("vstack", "vstack", lambda x, p: torch.vstack([x, 2 * x])),
    Row("repeat_interleave of positions by numbers of their own", "repeat_interleave",
        lambda x, p: torch.repeat_interleave(x, p.times, 2), more={"times": torch.tensor([1, 0, 2, 3])}),
    Row("split", "split", lambda x, p: torch.cat([part * (i + 1) for i, part in enumerate(x.split(3, 1))], 1)),
    Row("split_with_sizes", "split_with_sizes", lambda x, p: torch.cat(x.split([5, 3], 1)[::-1], 1)),
    Row("chunk", "chunk", lambda x, p: torch.mul(*x.chunk(2, 1))),
    Row("tensor_split by sections", "tensor_split", lambda x, p: torch.cat(torch.tensor_split(x, 3, 1)[::-1], 1)),
    Row("tensor_split by indices", "tensor_split", lambda x, p: torch.cat(torch.tensor_split(x, (2, 5), 1)[1:], 1)),
    Row("slice", "slice", lambda x, p: x[:, 2:-1]),
    Row("strided slice", "slice", lambda x, p: x[:, ::2] + x[:, 1::2]),
    Row("narrow", "narrow", lambda x, p: x.narrow(1, 2, 5)),
    Row("slice_scatter", "slice_scatter", lambda x, p: torch.slice_scatter(x, p.conv(x), 1, 2, 5),
        more={"conv": nn.Conv1d(8, 3, 1)}),
    Row("select_scatter", "select_scatter", lambda x, p: torch.select_scatter(x, p.value.expand(2, 8), 2, 1),
        more={"value": (8,)}),
    Row("expand", "expand", lambda x, p: x[:, :, None].expand(-1, -1, 3, -1).flatten(1, 2)),
    Row("repeat", "repeat", lambda x, p: x.repeat(1, 3, 1)),
    Row("tile", "tile", lambda x, p: x.tile(1, 2, 2)),
    Row("repeat_interleave", "repeat_interleave", lambda x, p: x.repeat_interleave(3, 1)),
    Row("roll", "roll", lambda x, p: torch.roll(x, 3, 1)),
    Row("roll of two axes", "roll", lambda x, p: torch.roll(x, (-2, 1), (1, 2))),
    Row("pad of the units", "pad", lambda x, p: pads(x, [0, 0, 1, 2])),
    Row("pad of positions", "pad", lambda x, p: pads(x, [1, 2])),
    Row("reflected pad of positions", "pad", lambda x, p: pads(x, [1, 2], "reflect")),
    Row("replicated pad of positions", "pad", lambda x, p: pads(x, [1, 0, 2, 1], "replicate"), spatial=(3, 3)),
]

STATISTICS = [
    Row("batch_norm", "batch_norm", lambda x, p: F.batch_norm(x, p.m, p.v, p.w, p.b),
        more={"m": torch.randn(8), "v": torch.rand(8) + 0.5, "w": (8,), "b": (8,)}),
    Row("batch_norm of the batch", "batch_norm", lambda x, p: F.batch_norm(x, None, None, p.w, p.b, True),
        more={"w": (8,), "b": (8,)}),
    Row("instance_norm", "instance_norm", lambda x, p: F.instance_norm(x, weight=p.w, bias=p.b),
        more={"w": (8,), "b": (8,)}),
    Row("layer_norm", "layer_norm", lambda x, p: F.layer_norm(x, (8,), p.w, p.b), spatial=(),
        more={"w": (8,), "b": (8,)}),
    Row("layer_norm of two axes", "layer_norm", lambda x, p: F.layer_norm(x, (8, 4), p.w), more={"w": (8, 4)}),
    Row("rms_norm", "rms_norm", lambda x, p: F.rms_norm(x, (8,), p.w), spatial=(), more={"w": (8,)}),
    Row("group_norm", "group_norm", lambda x, p: F.group_norm(x, 2, p.w, p.b), more={"w": (8,), "b": (8,)}),
    Row("softmax", "softmax", lambda x, p: F.softmax(x, 1)),
    Row("log_softmax", "log_softmax", lambda x, p: F.log_softmax(x, 1)),
    Row("mean", "mean", lambda x, p: x.mean(1, keepdim=True) * x),
    Row("var", "var", lambda x, p: x / (1 + x.var(1, keepdim=True))),
    Row("var without a correction", "var", lambda x, p: x / (1 + x.var(1, unbiased=False, keepdim=True))),
    Row("std", "std", lambda x, p: x / (1 + x.std(1, keepdim=True))),
    Row("var_mean", "var_mean", lambda x, p: x * sum(torch.var_mean(x, 1, keepdim=True))),
    Row("std_mean", "std_mean", lambda x, p: x * sum(torch.std_mean(x, 1, keepdim=True))),
    Row("amax", "amax", lambda x, p: x - x.amax(1, keepdim=True)),
    Row("amin", "amin", lambda x, p: x - x.amin((1, 2), keepdim=True)),
    Row("logsumexp", "logsumexp", lambda x, p: x - x.logsumexp(1, keepdim=True)),
    Row("prod", "prod", lambda x, p: x * x.prod(1, keepdim=True)),
    Row("any", "any", lambda x, p: x * (x > 1).any(1, keepdim=True)),
    Row("all", "all", lambda x, p: x * (x > -1).all(1, keepdim=True)),
    Row("softmax of another axis", "softmax", lambda x, p: F.softmax(x, 2)),
    Row("sum", "sum", lambda x, p: x * x.sum(1, keepdim=True)),
    Row("norm", "linalg_vector_norm", lambda x, p: x * torch.linalg.vector_norm(x, dim=1, keepdim=True)),
    Row("normalize", "div", lambda x, p: F.normalize(x, dim=1)),
    Row("cosine_similarity", "cosine_similarity", lambda x, p: x * F.cosine_similarity(x, p.w, 1)[:, None],
        more={"w": (1, 8, 1)}),
    Row("cumsum of the units", "cumsum", lambda x, p: torch.cumsum(x, 1)),
    Row("cumprod of positions", "cumprod", lambda x, p: torch.cumprod(x, 2)),
    Row("cdist", "cdist", lambda x, p: torch.cdist(x.mT, p.w.mT).mT * p.v, more={"w": (8, 5), "v": (5, 1)}),
    Row("cumsum of positions", "cumsum", lambda x, p: torch.cumsum(x, 2)),
    Row("glu", "glu", lambda x, p: F.glu(x, 1)),
]

INDEXING = [
    Row("embedding of other rows", "embedding", lambda x, p: x + F.embedding(p.ids, p.w)[..., None],
        more={"ids": torch.tensor([3, 0]), "w": (5, 8)}),
    Row("index of positions by a buffer", "index", lambda x, p: x[:, :, p.ids], more={"ids": torch.tensor([2, 0, 0])}),
    Row("index of positions by a mask", "index", lambda x, p: x[:, :, p.mask],
        more={"mask": torch.tensor([True, False, True, True])}),
    Row("index_put to positions", "index_put", written,
        more={"ids": torch.tensor([2, 0]), "values": (8, 1)}),
    Row("index_put to a mask of positions", "index_put", lambda x, p: x.mT.index_put((p.mask,), p.value).mT,
        more={"mask": torch.tensor([[True, False, True, True]] * 2), "value": (8,)}),
    Row("embedding_bag", "embedding_bag", lambda x, p: x * F.embedding_bag(p.ids, p.w),
        spatial=(), more={"ids": torch.tensor([[3, 0], [1, 1]]), "w": (5, 8)}),
    Row("index_select of positions", "index_select", lambda x, p: torch.index_select(x, 2, p.ids),
        more={"ids": torch.tensor([2, 0])}),
    Row("gather of positions", "gather", lambda x, p: torch.gather(x, 2, p.ids.expand(2, 8, 3)),
        more={"ids": torch.tensor([[[2, 0, 1]]])}),
    Row("scatter to positions", "scatter", lambda x, p: scattered(x, p), more={"index": torch.tensor([[[2, 0]]])}),
    Row("topk of positions", "topk", lambda x, p: x.topk(2, 2)[0]),
    Row("sort of positions", "sort", lambda x, p: x.sort(2)[0]),
    Row("max of positions", "max", lambda x, p: x.max(2)[0]),
    Row("new_zeros of the units", "new_zeros", lambda x, p: torch.cat([x, x.new_zeros(2, 3, 4)], 1)),
]

WINDOWS = [
    Row("max_pool1d", "max_pool1d", lambda x, p: F.max_pool1d(x, 2)),
    Row("max_pool2d", "max_pool2d", lambda x, p: F.max_pool2d(x, 2), spatial=(4, 4)),
    Row("max_pool3d", "max_pool3d", lambda x, p: F.max_pool3d(x, 2), spatial=(2, 2, 2)),
    Row("max_pool2d with indices", "max_pool2d_with_indices",
        lambda x, p: F.max_pool2d_with_indices(x, [2, 2])[0], spatial=(4, 4)),
    Row("avg_pool1d", "avg_pool1d", lambda x, p: F.avg_pool1d(x, 2)),
    Row("avg_pool2d", "avg_pool2d", lambda x, p: F.avg_pool2d(x, 2, padding=1), spatial=(4, 4)),
    Row("adaptive_avg_pool2d", "adaptive_avg_pool2d", lambda x, p: F.adaptive_avg_pool2d(x, 1), spatial=(3, 3)),
    Row("adaptive_max_pool2d", "adaptive_max_pool2d", lambda x, p: F.adaptive_max_pool2d(x, 2), spatial=(3, 3)),
    Row("interpolate to the nearest", "upsample_nearest2d", lambda x, p: F.interpolate(x, scale_factor=2),
        spatial=(2, 2)),
    Row("interpolate bilinearly", "upsample_bilinear2d",
        lambda x, p: F.interpolate(x, size=(3, 5), mode="bilinear"), spatial=(2, 2)),
    Row("interpolate bicubically", "upsample_bicubic2d",
        lambda x, p: F.interpolate(x, size=(4, 4), mode="bicubic"), spatial=(3, 3)),
    Row("interpolate linearly", "upsample_linear1d", lambda x, p: F.interpolate(x, size=7, mode="linear")),
    Row("max_unpool2d", "max_unpool2d", lambda x, p: F.max_unpool2d(*F.max_pool2d_with_indices(x, [2, 2]), [2, 2]),
        spatial=(4, 4)),
    Row("grid_sample", "grid_sampler", lambda x, p: F.grid_sample(x, grid(x), align_corners=False), spatial=(3, 3)),
]

RECURRENCE = [
    Row("lstm", "lstm", lambda x, p: p.rnn(x.mT)[0].mT, more={"rnn": nn.LSTM(8, 6, batch_first=True)}),
    Row("lstm of two layers and directions", "lstm", lambda x, p: p.rnn(x.mT)[0].mT,
        more={"rnn": nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)}),
    Row("lstm, time first", "lstm", lambda x, p: p.rnn(x.permute(2, 0, 1))[0].permute(1, 2, 0),
        more={"rnn": nn.LSTM(8, 6, bias=False)}),
    Row("lstm with projections", "lstm", lambda x, p: p.rnn(x.mT)[0].mT,
        more={"rnn": nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True, proj_size=4)}),
    Row("gru", "gru", lambda x, p: p.rnn(x.mT)[0].mT, more={"rnn": nn.GRU(8, 6, batch_first=True)}),
    Row("the last state of a gru", "gru", lambda x, p: p.rnn(x.mT)[1][0],
        more={"rnn": nn.GRU(8, 6, batch_first=True)}),
    Row("lstm_cell", "lstm_cell", lambda x, p: torch.cat(p.cell(x), 1), spatial=(), more={"cell": nn.LSTMCell(8, 6)}),
    Row("gru_cell, twice", "gru_cell", lambda x, p: p.cell(x, p.cell(x)), spatial=(), more={"cell": nn.GRUCell(8, 6)}),
    Row("rnn_cell", "rnn_relu_cell", lambda x, p: p.cell(x), spatial=(),
        more={"cell": nn.RNNCell(8, 6, bias=False, nonlinearity="relu")}),
    Row("rnn", "rnn_tanh", lambda x, p: p.rnn(x.mT)[0].mT, more={"rnn": nn.RNN(8, 6, batch_first=True)}),
]

SPECTRAL = [
    Row("fft of positions", "fft_rfft", lambda x, p: torch.fft.irfft(torch.fft.rfft(x) * p.w, 4), more={"w": (8, 3)}),
    Row("fft of two axes of positions", "fft_fft2", lambda x, p: torch.fft.fft2(x).real, spatial=(2, 3)),
    Row("view_as_complex", "view_as_complex",
        lambda x, p: torch.view_as_real(torch.view_as_complex(x.unflatten(2, (2, 2))) * 1j).flatten(2)),
    Row("complex", "complex", lambda x, p: torch.complex(x, p.w * x).conj().abs(), more={"w": (8, 1)}),
]

ROWS = [*POINTWISE, *CONTRACTION, *LAYOUT, *SEGMENTS, *STATISTICS, *INDEXING, *WINDOWS, *RECURRENCE, *SPECTRAL]

# What a removed unit's parameters, set to zero, still have a part in: the reference is a mask.
MASKED = {
    "conv_transpose2d in groups", "layer_norm", "layer_norm of two axes", "rms_norm", "group_norm", "softmax", "mean",
    "amax",
}
# Statistics that the oracle has no masks for: their references are held against the operators in test_verify.py.
CERTIFIED_ONLY = {
    "log_softmax", "var", "var without a correction", "std", "var_mean", "std_mean", "amin", "logsumexp", "prod",
    "any", "all",
}

# What holds the units of `up`, and the reason that is given.
PINNED = [
    (Row("flip", "flip", lambda x, p: x.flip(1)), "flip: the order of the units is reversed"),
    (Row("topk", "topk", lambda x, p: x.topk(8, 1)[0]), "topk: positions along the axis are ordered by value"),
    (Row("sort", "sort", lambda x, p: x.sort(1)[0]), "sort: positions along the axis are ordered by value"),
    (Row("argmax", "argmax", lambda x, p: x + x.argmax(1, keepdim=True)), "argmax: positions along the axis are"),
    (Row("max", "max", lambda x, p: x * x.max(1, keepdim=True)[0]), "max: positions along the axis are returned"),
    (Row("unbind", "unbind", lambda x, p: torch.stack(x.unbind(1)[::-1], 1)), "unbind: every position is taken apart"),
    (Row("select", "select", lambda x, p: x + x[:, 3:4] + x[:, 3, None]), "select: one position is taken by its"),
    (Row("index by a buffer", "index", lambda x, p: x[:, p.ids], more={"ids": torch.tensor([2, 0, 0])}),
     "index: positions are read by number"),
    (Row("index_select", "index_select", lambda x, p: x.index_select(1, p.ids), more={"ids": torch.tensor([2, 0])}),
     "index_select: positions are read by number"),
    (Row("scatter", "scatter", lambda x, p: x.scatter(1, p.ids.expand(2, 1, 4), 1.0),
         more={"ids": torch.tensor([[[2]]])}), "scatter: positions are read or written by number"),
    (Row("tril", "tril", lambda x, p: x.tril()), "tril: depends on positions"),
    (Row("reflected pad", "pad", lambda x, p: pads(x.mT, [1, 2], "reflect").mT), "pad: padded by its neighbors"),
    (Row("hstack of vectors", "hstack", lambda x, p: torch.hstack([x[0], x[1]]).unflatten(0, (2, 8)), spatial=()),
     "hstack: use cat, for which surgeon has a rule"),
    (Row("einsum of a diagonal", "einsum", lambda x, p: torch.einsum("bii->bi", x), spatial=(8,)),
     "einsum: surgeon has no rule for the equation"),
    (Row("norm of order 0", "linalg_vector_norm",
         lambda x, p: x * torch.linalg.vector_norm(x, 0, 1, keepdim=True)), "a norm of order 0"),
    (Row("pixel_shuffle of too few", "pixel_shuffle", lambda x, p: F.pixel_shuffle(x, 2), units=4, spatial=(2, 2)),
     "pixel_shuffle: positions within a block"),
    (Row("cumprod", "cumprod", lambda x, p: torch.cumprod(x, 1)), "cumprod: every position contributes to those that"),
    (Row("reshape of nothing", "reshape", lambda x, p: x + x[:, :, :0].reshape(len(x), 0, 5).sum()),
     "reshape: the rule does not cover these arguments (a tensor without elements)"),
    (Row("renorm", "renorm", lambda x, p: torch.renorm(x, 2, 1, 1.0)), "renorm: surgeon has no rule for this operator"),
    (Row("fft", "fft_rfft", lambda x, p: torch.fft.rfft(x, dim=1).abs()), "fft_rfft: frequencies"),
    (Row("repeat_interleave by numbers", "repeat_interleave", lambda x, p: x.repeat_interleave(p.times, 1),
         more={"times": torch.arange(8)}), "repeat_interleave: every position has a number of repetitions"),
    (Row("index by a mask", "index", lambda x, p: x[:, p.mask], more={"mask": torch.arange(8) > 2}),
     "index: positions are read by number"),
]
