"""Blocks of random sequence networks: (2, L, D) -> (2, L, D), written as users write them.

A block draws its variant from `rng` when it is made; every block adds to its input.
"""

from __future__ import annotations

import math
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HandRMSNorm(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def norm(rng: Random, d: int) -> nn.Module:
    return rng.choice([nn.LayerNorm(d), nn.RMSNorm(d), HandRMSNorm(d), nn.Identity()])


class FeedForward(nn.Module):
    """A perceptron of one hidden layer, plain or gated in one of three ways."""

    def __init__(self, rng: Random, d: int, length: int) -> None:
        super().__init__()
        hidden = rng.randint(5, 12)
        self.kind, self.hidden = rng.randrange(4), hidden
        self.norm = norm(rng, d)
        self.up = nn.Linear(d, hidden * (2 if self.kind in (1, 2) else 1), bias=rng.random() < 0.6)
        self.gate = nn.Linear(d, hidden) if self.kind == 3 else None
        self.inner = nn.LayerNorm(hidden) if rng.random() < 0.2 else nn.Identity()
        self.down = nn.Linear(hidden, d)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.norm(x))
        if self.kind == 1:
            y = F.glu(y, dim=-1)
        elif self.kind == 2:
            a, b = y[..., : self.hidden], y[..., self.hidden :]
            y = F.silu(a) * b
        elif self.gate is not None:
            y = F.silu(self.gate(x)) * y
        else:
            y = F.gelu(y)
        return x + self.drop(self.down(self.inner(y)))


class Attention(nn.Module):
    """Attention with one weight for query, key and value, taken apart in one of four ways."""

    def __init__(self, rng: Random, d: int, length: int) -> None:
        super().__init__()
        self.heads, self.dim, self.kind = rng.choice([1, 2, 3]), rng.randint(2, 5), rng.randrange(4)
        inner = self.heads * self.dim
        self.norm, self.qkv, self.proj = norm(rng, d), nn.Linear(d, 3 * inner), nn.Linear(inner, d)
        self.bias = nn.Parameter(torch.zeros(self.heads, length, length)) if rng.random() < 0.3 else None
        self.fused, self.computed = rng.random() < 0.5, rng.random() < 0.3

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.qkv(self.norm(x))
        if self.kind == 0:
            q, k, v = y.reshape(b, n, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.kind == 1:
            q, k, v = (t.view(b, n, self.heads, -1).transpose(1, 2) for t in y.chunk(3, dim=-1))
        elif self.kind == 2:
            q, k, v = y.view(b, n, self.heads, 3 * self.dim).transpose(1, 2).split(self.dim, dim=-1)
        else:
            y = y.reshape(b, n, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
            q, k, v = y[0], y[1], y[2]
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        else:
            scale = q.shape[-1] ** -0.5 if self.computed else 1 / math.sqrt(self.dim)
            weights = q @ k.transpose(-2, -1) * scale
            weights = weights if self.bias is None else weights + self.bias
            y = weights.softmax(dim=-1) @ v
        return x + self.proj(y.transpose(1, 2).reshape(b, n, -1))


def rotate(x: Tensor, interleaved: bool) -> Tensor:
    """The rotation by a right angle of the pairs of a head: halves, or neighbors."""
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


class GroupedQuery(nn.Module):
    """Grouped-query attention with rotary embeddings, as language models have it."""

    def __init__(self, rng: Random, d: int, length: int) -> None:
        super().__init__()
        self.kv, self.group, self.dim = rng.choice([1, 2]), rng.choice([1, 2]), 2 * rng.randint(1, 3)
        self.kind, self.rotary, self.interleaved = rng.randrange(3), rng.random() < 0.7, rng.random() < 0.5
        self.norm = norm(rng, d)
        self.q = nn.Linear(d, self.kv * self.group * self.dim, bias=False)
        self.k = nn.Linear(d, self.kv * self.dim, bias=rng.random() < 0.5)
        self.v = nn.Linear(d, self.kv * self.dim, bias=False)
        self.o = nn.Linear(self.kv * self.group * self.dim, d, bias=False)
        self.q_norm = nn.RMSNorm(self.dim) if rng.random() < 0.3 else nn.Identity()
        angles = torch.arange(length)[:, None] / 100 ** (torch.arange(0, self.dim, 2) / self.dim)
        angles = angles.repeat_interleave(2, -1) if self.interleaved else torch.cat([angles, angles], -1)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.norm(x)
        q = self.q_norm(self.q(y).view(b, n, -1, self.dim).transpose(1, 2))
        k = self.k(y).view(b, n, -1, self.dim).transpose(1, 2)
        v = self.v(y).view(b, n, self.kv, self.dim).transpose(1, 2)
        if self.rotary:
            q = q * self.cos + rotate(q, self.interleaved) * self.sin
            k = k * self.cos + rotate(k, self.interleaved) * self.sin
        if self.kind == 0:
            k, v = k.repeat_interleave(self.group, dim=1), v.repeat_interleave(self.group, dim=1)
        elif self.kind == 1 and self.group > 1:
            k = k[:, :, None].expand(b, self.kv, self.group, n, self.dim).reshape(b, -1, n, self.dim)
            v = v[:, :, None].expand(b, self.kv, self.group, n, self.dim).reshape(b, -1, n, self.dim)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.kind == 2)
        return x + self.o(y.transpose(1, 2).contiguous().view(b, n, -1))


class Separate(nn.Module):
    """Attention by einsum, with separate weights."""

    def __init__(self, rng: Random, d: int, length: int) -> None:
        super().__init__()
        self.heads, dim = rng.choice([1, 2, 3]), rng.randint(2, 4)
        self.norm = norm(rng, d)
        self.q, self.k, self.v = (nn.Linear(d, self.heads * dim) for _ in range(3))
        self.o = nn.Linear(self.heads * dim, d)
        self.scale = nn.Parameter(torch.ones(self.heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)) for f in (self.q, self.k, self.v))
        weights = torch.softmax(torch.einsum("bnhd,bmhd->bhnm", q, k) * self.scale, -1)
        return x + self.o(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))


class Torch(nn.Module):
    """PyTorch's own attention, or its whole encoder layer."""

    def __init__(self, rng: Random, d: int, length: int) -> None:
        super().__init__()
        heads = rng.choice([h for h in (1, 2, 3, 4) if d % h == 0])
        self.layer = rng.random() < 0.4
        self.body: nn.Module = nn.TransformerEncoderLayer(
            d, heads, rng.randint(5, 9), batch_first=True, norm_first=rng.random() < 0.5
        ) if self.layer else nn.MultiheadAttention(d, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.layer:
            return self.body(x)
        return x + self.body(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, rng: Random, d: int, length: int) -> None:
        super().__init__()
        hidden, both = rng.randint(4, 8), rng.random() < 0.4
        kind = rng.choice([nn.LSTM, nn.GRU, nn.RNN])
        self.body = kind(d, hidden, num_layers=rng.choice([1, 2]), bidirectional=both, batch_first=True,
                         bias=rng.random() < 0.7)
        self.out = nn.Linear(hidden * (1 + both), d)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.body(x)[0])


class Convolution(nn.Module):
    """Conformer's convolution: pointwise and gated, depthwise over time (causal or not), pointwise."""

    def __init__(self, rng: Random, d: int, length: int) -> None:
        super().__init__()
        hidden = rng.randint(4, 9)
        self.causal = rng.random() < 0.5
        self.norm = norm(rng, d)
        self.up, self.down = nn.Conv1d(d, 2 * hidden, 1), nn.Conv1d(hidden, d, 1)
        self.depthwise = nn.Conv1d(hidden, hidden, 3, padding=0 if self.causal else 1, groups=hidden)
        self.inner = rng.choice([nn.BatchNorm1d(hidden), nn.GroupNorm(1, hidden), nn.Identity()])

    def forward(self, x: Tensor) -> Tensor:
        y = F.glu(self.up(self.norm(x).transpose(1, 2)), dim=1)
        y = self.depthwise(F.pad(y, (2, 0)) if self.causal else y)
        return x + self.down(F.silu(self.inner(y))).mT


class SpatialGating(nn.Module):
    """gMLP: half of the hidden units gate the other half, after a linear layer over positions."""

    def __init__(self, rng: Random, d: int, length: int) -> None:
        super().__init__()
        half = rng.randint(3, 6)
        self.norm, self.up, self.down = norm(rng, d), nn.Linear(d, 2 * half), nn.Linear(half, d)
        self.inner, self.time = norm(rng, half), nn.Linear(length, length)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.gelu(self.up(self.norm(x))).chunk(2, dim=-1)
        b = self.time(self.inner(b).transpose(1, 2)).transpose(1, 2)
        return x + self.down(a * b)


class TokenMixing(nn.Module):
    def __init__(self, rng: Random, d: int, length: int) -> None:
        super().__init__()
        hidden = rng.randint(4, 9)
        self.norm, self.up, self.down = norm(rng, d), nn.Linear(length, hidden), nn.Linear(hidden, length)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(self.norm(x).transpose(1, 2)))).permute(0, 2, 1)


class Latent(nn.Module):
    """Learned queries attend to the sequence, and the sequence to what they found."""

    def __init__(self, rng: Random, d: int, length: int) -> None:
        super().__init__()
        self.dim, count = rng.randint(3, 6), rng.randint(2, 4)
        self.latents = nn.Parameter(torch.zeros(1, count, self.dim))
        self.k, self.v = nn.Linear(d, self.dim), nn.Linear(d, self.dim)
        self.q, self.o = nn.Linear(d, self.dim), nn.Linear(self.dim, d)

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents.expand(x.shape[0], -1, -1)
        found = F.scaled_dot_product_attention(latents, self.k(x), self.v(x))
        found = torch.cat([latents, found], dim=1)
        return x + self.o(F.scaled_dot_product_attention(self.q(x), found, found))


class Experts(nn.Module):
    """A dense mixture: every expert on every position, weighed by a softmax over experts."""

    def __init__(self, rng: Random, d: int, length: int) -> None:
        super().__init__()
        count, hidden = rng.choice([2, 3]), rng.randint(3, 6)
        self.router = nn.Linear(d, count)
        self.up, self.down = nn.Parameter(torch.zeros(count, d, hidden)), nn.Parameter(torch.zeros(count, hidden, d))

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        y = F.gelu(torch.matmul(x.reshape(1, b * n, d), self.up)) @ self.down
        weights = self.router(x).softmax(-1).reshape(b * n, -1)
        return x + (y * weights.t().unsqueeze(-1)).sum(0).view(b, n, d)


class Twice(nn.Module):
    """One block used twice."""

    def __init__(self, rng: Random, d: int, length: int) -> None:
        super().__init__()
        self.body = rng.choice([FeedForward, Attention, Convolution])(rng, d, length)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.body(x))


BLOCKS = (FeedForward, FeedForward, Attention, Attention, GroupedQuery, GroupedQuery, Separate, Torch, Recurrent,
          Convolution, SpatialGating, TokenMixing, Latent, Experts, Twice)
