"""Blocks whose code reads sizes: (B, C, H, W) -> (B, C, H, W) and (B, L, D) -> (B, L, D), for any that they take.

Each does something that goes wrong in silence where a size of the example is taken for a constant, as users write it.
"""

from __future__ import annotations

import math
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testbed import sequence_blocks
from testbed.image_blocks import conv


class Rescaled(nn.Module):
    """Smaller by a factor and back to the size that it came from, or to twice the size and back by pooling."""

    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.up, self.mode = rng.random() < 0.5, rng.choice(["nearest", "bilinear"])
        self.body = conv(rng, c, c)

    def forward(self, x: Tensor) -> Tensor:
        options = {} if self.mode == "nearest" else {"align_corners": False}
        if self.up:
            y = self.body(F.interpolate(x, scale_factor=2, mode=self.mode, **options))
            return x + F.avg_pool2d(y, 2)
        y = self.body(F.avg_pool2d(x, 2))
        return x + F.interpolate(y, size=x.shape[-2:], mode=self.mode, **options)


class Padded(nn.Module):
    """Padded to a multiple, a convolution with a stride, brought back and cropped."""

    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        hidden = rng.randint(4, 12)
        self.multiple = rng.choice([2, 4])
        self.down = nn.Conv2d(c, hidden, self.multiple, stride=self.multiple)
        self.back = nn.ConvTranspose2d(hidden, c, self.multiple, stride=self.multiple)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        padded = F.pad(x, (0, -w % self.multiple, 0, -h % self.multiple))
        return x + self.back(F.relu(self.down(padded)))[..., :h, :w]


class Windows(nn.Module):
    """Attention within windows, taken apart and put together by sizes that are read from the input."""

    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.window, self.inner = 2, rng.randint(4, 8)
        self.pad = rng.random() < 0.5
        self.qkv, self.out = nn.Linear(c, 3 * self.inner), nn.Linear(self.inner, c)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        s = self.window
        y = F.pad(x, (0, (s - w % s) % s, 0, (s - h % s) % s)) if self.pad else x
        rows, columns = y.shape[2] // s, y.shape[3] // s
        y = y.view(b, c, rows, s, columns, s).permute(0, 2, 4, 3, 5, 1).reshape(-1, s * s, c)
        q, k, v = self.qkv(y).split(self.inner, dim=-1)
        y = self.out((q @ k.transpose(1, 2) / math.sqrt(self.inner)).softmax(-1) @ v)
        y = y.view(b, rows, columns, s, s, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, rows * s, columns * s)
        return x + y[:, :, :h, :w]


class Gate(nn.Module):
    """A gate of each channel by its mean, which the code takes itself."""

    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        hidden = rng.randint(3, 8)
        self.kind = rng.randrange(3)
        self.first, self.second = nn.Linear(c, hidden), nn.Linear(hidden, c)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == 0:
            mean = x.sum((2, 3)) / (x.shape[2] * x.shape[3])
        elif self.kind == 1:
            mean = x.flatten(2).sum(-1) / x[0, 0].numel()
        else:
            mean = F.avg_pool2d(x, x.shape[-2:])[:, :, 0, 0]
        return x * torch.sigmoid(self.second(F.relu(self.first(mean))))[..., None, None]


class Pyramid(nn.Module):
    """Pooled to fixed sizes, and brought back to the size of the input."""

    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.sizes = rng.sample([1, 2, 3], 2)
        hidden = rng.randint(3, 6)
        self.parts = nn.ModuleList(nn.Conv2d(c, hidden, 1) for _ in self.sizes)
        self.merge = nn.Conv2d(c + hidden * len(self.sizes), c, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [
            F.interpolate(part(F.adaptive_avg_pool2d(x, size)), size=(x.size(2), x.size(3)), mode="nearest")
            for part, size in zip(self.parts, self.sizes, strict=True)
        ]
        return F.relu(self.merge(torch.cat([x, *parts], dim=1)))


class Coordinates(nn.Module):
    """The place of each pixel as two more channels."""

    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.relative = rng.random() < 0.5
        self.body = nn.Conv2d(c + 2, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        if self.relative:
            ys, xs = torch.linspace(-1, 1, h, dtype=x.dtype), torch.linspace(-1, 1, w, dtype=x.dtype)
        else:
            ys, xs = torch.arange(h, dtype=x.dtype) / h, torch.arange(w, dtype=x.dtype) / w
        y, z = torch.meshgrid(ys, xs, indexing="ij")
        grid = torch.stack([y, z]).expand(b, -1, -1, -1)
        return x + F.relu(self.body(torch.cat([x, grid], dim=1)))


class Masked(nn.Module):
    """What lies right of the middle, or beyond a border, does not count."""

    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.border = rng.random() < 0.5
        self.body = conv(rng, c, c)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        if self.border:
            mask = torch.zeros(h, w, dtype=torch.bool, device=x.device)
            mask[1 : h - 1, 1 : w - 1] = True
        else:
            mask = (torch.arange(w, device=x.device) < w // 2).expand(h, w)
        return x + self.body(x).masked_fill(~mask, 0.0)


class Tokens(nn.Module):
    """Attention over all positions of an image, with heads."""

    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.heads, inner = 2, 2 * rng.randint(2, 5)
        self.qkv, self.out = nn.Conv2d(c, 3 * inner, 1), nn.Conv2d(inner, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = (part.reshape(b, self.heads, -1, h * w) for part in self.qkv(x).chunk(3, dim=1))
        weights = (q.transpose(2, 3) @ k / math.sqrt(q.shape[2])).softmax(-1)
        return x + self.out((v @ weights.transpose(2, 3)).reshape(b, -1, h, w))


class Softened(nn.Module):
    """A softmax over all positions, through a view and back."""

    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.body = conv(rng, c, c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y.view(y.size(0), y.size(1), -1).softmax(-1).view_as(y)


class Placed(nn.Module):
    """A table of positions, of one size alone or brought to the size of the input."""

    def __init__(self, rng: Random, c: int, side: tuple[int, int]) -> None:
        super().__init__()
        self.resize = rng.random() < 0.6
        self.table = nn.Parameter(torch.zeros(1, c, *((3, 3) if self.resize else side)))

    def forward(self, x: Tensor) -> Tensor:
        table: Tensor = self.table
        if self.resize:
            table = F.interpolate(table, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return x + table


class Branch(nn.Module):
    """Another path for larger images."""

    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.small, self.large, self.limit = conv(rng, c, c), conv(rng, c, c), rng.choice([7, 11, 15])

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.large(x) if x.shape[-1] > self.limit else self.small(x))


IMAGE_BLOCKS = (
    Rescaled, Rescaled, Padded, Windows, Gate, Gate, Pyramid, Coordinates, Masked, Tokens, Softened, Branch,
)


class Steps(nn.Module):
    """A recurrence that the code runs itself, step by step."""

    def __init__(self, rng: Random, d: int) -> None:
        super().__init__()
        self.hidden = rng.randint(3, 6)
        self.cell, self.out = nn.Linear(d + self.hidden, self.hidden), nn.Linear(self.hidden, d)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], self.hidden)
        states = []
        for t in range(x.shape[1]):
            state = torch.tanh(self.cell(torch.cat([x[:, t], state], dim=-1)))
            states.append(state)
        return x + self.out(torch.stack(states, dim=1))


class Causal(nn.Module):
    """Attention to what came before, with a mask made from the length."""

    def __init__(self, rng: Random, d: int) -> None:
        super().__init__()
        self.heads, self.head, self.kind = 2, rng.randint(2, 5), rng.randrange(3)
        self.qkv, self.out = nn.Linear(d, 6 * self.head), nn.Linear(2 * self.head, d)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, self.head).permute(2, 0, 3, 1, 4)
        if self.kind == 0:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.head)
            if self.kind == 1:
                scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1), -torch.inf)
            else:
                scores = scores + torch.full((n, n), -1e4, dtype=x.dtype, device=x.device).triu(1)
            y = scores.softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).reshape(b, n, -1))


class Mean(nn.Module):
    """The mean over the tokens, by a division by their number or by a running one."""

    def __init__(self, rng: Random, d: int) -> None:
        super().__init__()
        self.running = rng.random() < 0.5
        self.body = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.body(x))
        if self.running:
            counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
            return x + y.cumsum(1) / counts[:, None]
        return x + y.sum(1, keepdim=True) / x.shape[1]


class Chunks(nn.Module):
    """Neighboring tokens mixed in chunks, after padding to a multiple of their size."""

    def __init__(self, rng: Random, d: int) -> None:
        super().__init__()
        self.size = rng.choice([2, 3])
        self.mix, self.out = nn.Linear(self.size * d, rng.randint(4, 10)), nn.Linear(d, d)
        self.back = nn.Linear(self.mix.out_features, self.size * d)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        y = F.pad(x, (0, 0, 0, -n % self.size)).reshape(b, -1, self.size * d)
        return x + self.out(self.back(F.relu(self.mix(y))).reshape(b, -1, d)[:, :n])


class Shifted(nn.Module):
    """Each token with the one before it, the last with the first."""

    def __init__(self, rng: Random, d: int) -> None:
        super().__init__()
        self.kind = rng.randrange(3)
        self.body = nn.Linear(2 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == 0:
            before = torch.cat([x[:, -1:], x[:, :-1]], dim=1)
        elif self.kind == 1:
            before = x[:, torch.arange(x.shape[1] - 1, -1, -1, device=x.device)]
        else:
            before = x.roll(1, 1)
        return x + torch.tanh(self.body(torch.cat([x, before], dim=-1)))


class Waves(nn.Module):
    """Sines of the positions, or a table of them that is long enough, behind a projection."""

    def __init__(self, rng: Random, d: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(12, d)) if rng.random() < 0.5 else None
        self.body = nn.Linear(d, d)
        self.rates: Tensor
        self.register_buffer("rates", torch.linspace(0.1, 1.0, d))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        if self.table is not None:
            return self.body(x + self.table[:n])
        return self.body(x + torch.sin(torch.arange(n, dtype=x.dtype, device=x.device)[:, None] * self.rates))


SEQUENCE_BLOCKS = (Steps, Causal, Causal, Mean, Mean, Chunks, Shifted, Waves)


def feed_forward(rng: Random, d: int) -> nn.Module:
    """A block that reads no size."""
    return sequence_blocks.FeedForward(rng, d, 0)
