"""Blocks of random image networks: (2, C, H, W) -> (2, C', H, W), written as users write them.

A block draws its variant from `rng` when it is made. `width` is the number of channels it returns.
"""

from __future__ import annotations

import math
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.Identity)


def divisor(rng: Random, n: int, least: int = 2) -> int:
    """A divisor of n of at least `least`; n itself where there is no other."""
    return rng.choice([d for d in range(least, n + 1) if n % d == 0][:3] or [n])


def norm(rng: Random, c: int) -> nn.Module:
    """A norm, or none, over the channels of an image."""
    kinds = [nn.BatchNorm2d(c), nn.BatchNorm2d(c, affine=False), nn.Identity(),
             nn.InstanceNorm2d(c, affine=rng.random() < 0.5), LastNorm(c), HandNorm(c)]
    if c > 1:
        kinds += [nn.GroupNorm(divisor(rng, c), c), nn.GroupNorm(1, c)]
    return rng.choice([kinds[0], kinds[0], *kinds])


def activation(rng: Random, c: int) -> nn.Module:
    kind = rng.choice([*ACTIVATIONS, nn.PReLU])
    return nn.PReLU(rng.choice([1, c])) if kind is nn.PReLU else kind()


def conv(rng: Random, c: int, o: int, size: int | None = None) -> nn.Sequential:
    """Convolution, norm and activation."""
    size = size or rng.choice([1, 3])
    made = nn.Conv2d(c, o, size, padding=size // 2, bias=rng.random() < 0.6)
    return nn.Sequential(made, norm(rng, o), activation(rng, o))


class LastNorm(nn.LayerNorm):
    """LayerNorm over channels by way of channels-last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class HandNorm(nn.Module):
    """LayerNorm over channels, written out."""
    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        spread = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(spread + 1e-5)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Plain(nn.Module):
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.width = rng.randint(4, 16)
        self.body = conv(rng, c, self.width)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout2d(self.body(x), 0.1, self.training)


class Residual(nn.Module):
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        hidden = rng.randint(4, 12)
        self.width = c if rng.random() < 0.5 else rng.randint(4, 16)
        self.body = nn.Sequential(conv(rng, c, hidden), conv(rng, hidden, self.width))
        self.shortcut = nn.Conv2d(c, self.width, 1) if self.width != c else nn.Identity()
        self.scale = nn.Parameter(torch.ones(self.width, 1, 1)) if rng.random() < 0.3 else None
        self.act = activation(rng, self.width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.scale is not None:
            y = self.scale * y
        y += self.shortcut(x)
        return self.act(y)


class PaddedShortcut(nn.Module):
    """The shortcut of the first ResNets: zeros for the channels it lacks."""
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.before, self.after = rng.randint(0, 3), rng.randint(1, 4)
        self.width = c + self.before + self.after
        self.body = conv(rng, c, self.width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + F.pad(x, (0, 0, 0, 0, self.before, self.after)))


class Inverted(nn.Module):
    """Expansion, depthwise convolution with a multiplier, squeeze-excite, projection."""
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        hidden, times = rng.randint(4, 12), rng.choice([1, 1, 2, 3])
        self.width = c
        self.expand = conv(rng, c, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden * times, 3, padding=1, groups=hidden)
        self.norm = nn.BatchNorm2d(hidden * times)
        self.squeeze = SqueezeExcite(rng, hidden * times)
        self.project = nn.Conv2d(hidden * times, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.norm(self.depthwise(self.expand(x))))
        return x + self.project(self.squeeze(y))


class SqueezeExcite(nn.Module):
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.width = c
        self.linear = rng.random() < 0.5
        reduced = rng.randint(2, 6)
        self.down: nn.Module = nn.Linear(c, reduced) if self.linear else nn.Conv2d(c, reduced, 1)
        self.up: nn.Module = nn.Linear(reduced, c) if self.linear else nn.Conv2d(reduced, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.linear:
            b, c, _, _ = x.shape
            gate = self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1).view(b, c))))
            return x * torch.sigmoid(gate).view(b, c, 1, 1)
        return x * F.hardsigmoid(self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))))


class Concat(nn.Module):
    """Branches side by side, the input among them or not."""
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        widths = [rng.randint(3, 7), rng.randint(3, 7), rng.randint(3, 7)][rng.randrange(2):]
        self.branches = nn.ModuleList(conv(rng, c, w) for w in widths)
        self.skip = rng.random() < 0.5
        self.width = sum(widths) + c * self.skip

    def forward(self, x: Tensor) -> Tensor:
        found = [branch(x) for branch in self.branches]
        return torch.cat([*found, x] if self.skip else found, 1)


class Dense(nn.Module):
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        growth = rng.randint(3, 5)
        self.layers = nn.ModuleList(conv(rng, c + i * growth, growth, 3) for i in range(2))
        self.width = c + 2 * growth

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class Split(nn.Module):
    """A convolution's channels taken apart at odd places, treated apart and put together in another order."""
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.sizes = [rng.randint(2, 6) for _ in range(3)]
        self.stem = conv(rng, c, sum(self.sizes))
        self.first, last = conv(rng, self.sizes[0], self.sizes[0]), rng.randint(3, 6)
        self.last = conv(rng, self.sizes[2], last, 1)
        self.slices = rng.random() < 0.5
        self.width = self.sizes[0] + self.sizes[1] + last

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        i, j = self.sizes[0], self.sizes[0] + self.sizes[1]
        a, b, c = (x[:, :i], x[:, i:j], x[:, j:]) if self.slices else x.split(self.sizes, dim=1)
        return torch.cat([self.last(c), a + self.first(a), b], dim=1)


class Shuffle(nn.Module):
    """ShuffleNetV2's unit: half of the channels pass, and both halves are interleaved."""
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.width = c + c % 2
        half = self.width // 2
        self.stem = nn.Identity() if c == self.width else nn.Conv2d(c, self.width, 1)
        self.body = conv(rng, half, half)
        self.kind = rng.randrange(3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, dim=1)
        x = torch.cat((a, self.body(b)), dim=1)
        if self.kind == 0:
            return F.channel_shuffle(x, 2)
        n, c, h, w = x.shape
        if self.kind == 1:
            return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return x.reshape(-1, 2, self.width // 2, h, w).permute(0, 2, 1, 3, 4).flatten(1, 2)


class Grouped(nn.Module):
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        groups, inner, outer = rng.choice([2, 3, 4]), rng.randint(2, 4), rng.randint(2, 4)
        self.stem = conv(rng, c, groups * inner, 1)
        if rng.random() < 0.3:
            self.body: nn.Module = nn.ConvTranspose2d(groups * inner, groups * outer, 3, padding=1, groups=groups)
        else:
            self.body = nn.Conv2d(groups * inner, groups * outer, 3, padding=1, groups=groups)
        self.norm, self.act = norm(rng, groups * outer), activation(rng, groups * outer)
        self.width = groups * outer

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.body(self.stem(x))))


class Resample(nn.Module):
    """Down and up again, with the skip connection of a U-Net: by interpolation, transposition or pixel shuffle."""
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        hidden, out = rng.randint(4, 8), rng.randint(3, 6)
        self.kind = rng.randrange(4)
        self.down = nn.Conv2d(c, hidden, 2, stride=2) if rng.random() < 0.5 else nn.Sequential(
            nn.MaxPool2d(2) if rng.random() < 0.5 else nn.AvgPool2d(2), conv(rng, c, hidden))
        ups = [lambda: nn.ConvTranspose2d(hidden, out, 2, stride=2), lambda: nn.Conv2d(hidden, out, 1),
               lambda: nn.Conv2d(hidden, 4 * out, 1), lambda: nn.Conv2d(4 * c, out, 1)]
        self.up = ups[self.kind]()
        self.width = out + c

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == 3:
            y = F.interpolate(self.up(F.pixel_unshuffle(x, 2)), scale_factor=2)
            return torch.cat([y, x], 1)
        y = self.up(self.down(x))
        if self.kind == 1:
            y = F.interpolate(y, size=x.shape[-2:], mode="bilinear")
        elif self.kind == 2:
            y = F.pixel_shuffle(y, 2)
        return torch.cat([x, F.relu(y)], 1)


class Roll(nn.Module):
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        hidden = rng.randint(5, 9)
        self.shift = rng.choice([-3, -1, 1, 2])
        self.width = rng.randint(4, 12)
        self.stem, self.body = conv(rng, c, hidden), conv(rng, hidden, self.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.roll(self.stem(x), self.shift, 1))


class Gated(nn.Module):
    """Gated linear units over channels, by glu, by halves, or by a second convolution."""
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.width, self.kind = rng.randint(3, 9), rng.randrange(3)
        self.body = nn.Conv2d(c, self.width * (1 if self.kind == 2 else 2), 1)
        self.gate = nn.Conv2d(c, self.width, 3, padding=1) if self.kind == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is not None:
            return self.body(x) * torch.sigmoid(self.gate(x))
        a, b = self.body(x).chunk(2, 1)
        return F.gelu(a) * b if self.kind else F.glu(self.body(x), dim=1)


class Shared(nn.Module):
    """One module used twice."""
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.width = c
        self.body = conv(rng, c, c, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(F.relu(self.body(x)))


class SpatialGate(nn.Module):
    """CBAM's spatial attention: the mean and the maximum over channels."""
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.width = c
        self.body = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.body(pooled))


class SelectiveKernel(nn.Module):
    """Branches weighed by a softmax over the branches."""
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.width = rng.randint(4, 8)
        self.branches = nn.ModuleList(conv(rng, c, self.width) for _ in range(2))
        self.attention = nn.Conv2d(self.width, 2 * self.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        stacked = torch.stack([branch(x) for branch in self.branches], 1)
        gap = stacked.sum(1).mean((2, 3), keepdim=True)
        weights = self.attention(gap).view(x.shape[0], 2, -1, 1, 1).softmax(1)
        return (stacked * weights).sum(1)


class CrossCovariance(nn.Module):
    """Attention among the channels of a head."""
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.heads, self.dim = rng.choice([1, 2, 3]), rng.randint(2, 4)
        self.qkv = nn.Conv2d(c, 3 * self.heads * self.dim, 1)
        self.temperature = nn.Parameter(torch.ones(self.heads, 1, 1))
        self.proj = nn.Conv2d(self.heads * self.dim, c, 1)
        self.width = c

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.qkv(x).reshape(b, 3, self.heads, self.dim, h * w).unbind(1)
        attention = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * self.temperature
        y = attention.softmax(dim=-1) @ v
        return x + self.proj(y.reshape(b, -1, h, w))


class Repeat(nn.Module):
    """Channels repeated, and added to a convolution of the same width."""
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.times, self.tiled = rng.choice([2, 3]), rng.random() < 0.5
        hidden = rng.randint(3, 5)
        self.width = hidden * self.times
        self.stem, self.body = conv(rng, c, hidden, 1), conv(rng, c, self.width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = y.repeat(1, self.times, 1, 1) if self.tiled else y.repeat_interleave(self.times, dim=1)
        return y + self.body(x)


class Einsum(nn.Module):
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.width = rng.randint(4, 9)
        self.weight = nn.Parameter(torch.zeros(self.width, c))
        self.offset: Tensor
        self.register_buffer("offset", torch.linspace(-1, 1, self.width).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(torch.einsum("bchw,oc->bohw", x, self.weight) + self.offset)


class TokenMixer(nn.Module):
    """A two-layer perceptron over the positions of each channel, of which there are `area`."""
    def __init__(self, rng: Random, c: int, area: int) -> None:
        super().__init__()
        hidden = rng.randint(4, 9)
        self.width = c
        self.norm = norm(rng, c)
        self.body = nn.Sequential(nn.Linear(area, hidden), nn.GELU(), nn.Linear(hidden, area))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(self.norm(x).flatten(2)).view(x.shape)


class Window(nn.Module):
    """Swin's window partition of a channels-last image, attention by a plain product, and back, with literals."""
    def __init__(self, rng: Random, c: int) -> None:
        super().__init__()
        self.heads, self.dim = rng.choice([1, 2]), rng.randint(2, 4)
        inner = self.heads * self.dim
        self.norm, self.qkv, self.proj = nn.LayerNorm(c), nn.Linear(c, 3 * inner), nn.Linear(inner, c)
        self.bias = nn.Parameter(torch.zeros(self.heads, 4, 4))
        self.scale, self.shift, self.width = 1 / math.sqrt(self.dim), rng.choice([0, 1]), c

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(y).reshape(-1, 4, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        weights = ((q * self.scale) @ k.transpose(-2, -1) + self.bias).softmax(-1)
        y = self.proj((weights @ v).transpose(1, 2).reshape(-1, 4, self.heads * self.dim))
        y = y.view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return (x + torch.roll(y, (self.shift, self.shift), (1, 2))).permute(0, 3, 1, 2)


BLOCKS = (Plain, Residual, Residual, PaddedShortcut, Inverted, Concat, Dense, Split, Shuffle, Grouped, Resample, Roll,
          Gated, Shared, SpatialGate, SelectiveKernel, CrossCovariance, Repeat, Einsum, TokenMixer, Window)
