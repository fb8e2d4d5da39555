"""Random small networks of the features that real ones have: what the fuzz tests prune."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testbed import image_blocks, sequence_blocks

BATCH = 2


def random_network(seed: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network in eval mode, a function of `seed` alone, and example inputs for it, of batch size 2.

    >>> network, inputs = random_network(3)
    >>> len(inputs) > 0
    True
    """
    rng = Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = rng.choice(NETWORKS)(rng)
        randomise(network)
        inputs: tuple[Tensor, ...] = network.inputs()
    return network.eval(), inputs


def randomise(module: nn.Module) -> None:
    """Weights of about unit gain, biases and scales that all matter, statistics that are no default."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias") or "bias_" in name:
                parameter.normal_(0, 0.3)
            elif parameter.dim() > 1 and parameter[0].numel() > 1:
                fan_in = parameter.shape[1] if parameter.dim() == 3 else parameter[0].numel()
                parameter.normal_(0, 1.2 / math.sqrt(fan_in))
            else:
                parameter.uniform_(0.5, 1.5)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)


def image_blocks_of(rng: Random, c: int, side: int, count: int) -> tuple[nn.Sequential, int]:
    """`count` random blocks one after the other, on images of `side` by `side`; and how many channels they return."""
    blocks: list[nn.Module] = []
    for _ in range(count):
        kind = rng.choice(image_blocks.BLOCKS) if c <= 24 else image_blocks.Plain
        blocks.append(kind(rng, c, side * side) if kind is image_blocks.TokenMixer else kind(rng, c))  # type: ignore[call-arg]
        c = int(blocks[-1].width)  # type: ignore[arg-type]
    return nn.Sequential(*blocks), c


def sequence_blocks_of(rng: Random, d: int, length: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(rng.choice(sequence_blocks.BLOCKS)(rng, d, length) for _ in range(count)))


class ImageHead(nn.Module):
    """From features to classes: by pooling, or by flattening in one of several ways."""

    def __init__(self, rng: Random, c: int, side: int) -> None:
        super().__init__()
        self.c, self.side, self.kind = c, side, rng.randrange(5)
        pools: list[tuple[nn.Module, int]] = [(nn.AdaptiveAvgPool2d(1), 1), (nn.AdaptiveAvgPool2d(1), 1),
                                              (nn.AdaptiveMaxPool2d(2), 4), (nn.AvgPool2d(2), (side // 2) ** 2),
                                              (nn.MaxPool2d(2), (side // 2) ** 2)]
        self.pool, self.area = pools[self.kind]
        self.fc = nn.Linear(c * self.area, rng.randint(3, 6))
        last = nn.Sequential(nn.ReLU(), nn.Linear(self.fc.out_features, 5))
        self.hidden = last if rng.random() < 0.5 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        if self.kind < 2:
            x = x[:, :, 0, 0] if self.kind else x.flatten(1)
        elif self.kind == 2:
            x = x.reshape(-1, self.c * 4)
        elif self.kind == 3:
            x = x.reshape(x.size(0), -1)
        else:  # channels last
            x = x.permute(0, 2, 3, 1).reshape(-1, self.area * x.shape[1])
        return self.hidden(self.fc(x))


class ImageNetwork(nn.Module):
    """A stem, blocks, a head; perhaps a second input that shifts the channels, and the features as a second output."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self.side = rng.choice([4, 6, 8])
        width = rng.randint(4, 12)
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.condition = nn.Linear(4, width) if rng.random() < 0.25 else None
        self.blocks, width = image_blocks_of(rng, width, self.side, rng.choice([1, 1, 2, 3]))
        self.both = rng.random() < 0.25
        self.head = ImageHead(rng, width, self.side)

    def inputs(self) -> tuple[Tensor, ...]:
        x = torch.randn(BATCH, 3, self.side, self.side)
        return (x,) if self.condition is None else (x, torch.randn(BATCH, 4))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        x = self.stem(x)
        if self.condition is not None:
            x = x + self.condition(y)[:, :, None, None]
        x = self.blocks(x)
        return {"features": x.sum(1), "logits": self.head(x)} if self.both else self.head(x)


class TextNetwork(nn.Module):
    """Embeddings, learned positions, blocks, and a projection that may be tied to the embeddings."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self.length, d, self.words = rng.randint(3, 6), rng.randint(4, 12), 11
        self.embed = nn.Embedding(self.words, d)
        self.positions = nn.Parameter(torch.zeros(8, d)) if rng.random() < 0.5 else nn.Embedding(8, d)
        self.blocks = sequence_blocks_of(rng, d, self.length, rng.choice([1, 1, 2]))
        self.norm = sequence_blocks.norm(rng, d)
        self.head = nn.Linear(d, self.words, bias=False)
        if rng.random() < 0.5:
            self.head.weight = self.embed.weight

    def inputs(self) -> tuple[Tensor, ...]:
        return (torch.randint(self.words, (BATCH, self.length)),)

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        table = self.positions
        added = table[:n] if isinstance(table, nn.Parameter) else table(torch.arange(n, device=tokens.device))
        return self.head(self.norm(self.blocks(self.embed(tokens) + added)))


class PatchNetwork(nn.Module):
    """A vision transformer: patches, a class token or the mean, blocks, a head."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        d, self.side = rng.randint(4, 12), rng.choice([4, 6])
        self.patch = nn.Conv2d(3, d, 2, stride=2)
        self.token = nn.Parameter(torch.zeros(1, 1, d)) if rng.random() < 0.6 else None
        length = (self.side // 2) ** 2 + (self.token is not None)
        self.positions = nn.Parameter(torch.zeros(1, length, d))
        self.blocks = sequence_blocks_of(rng, d, length, rng.choice([1, 1, 2]))
        self.norm, self.head = sequence_blocks.norm(rng, d), nn.Linear(d, 5)

    def inputs(self) -> tuple[Tensor, ...]:
        return (torch.randn(BATCH, 3, self.side, self.side),)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.norm(self.blocks(x + self.positions))
        return self.head(x.mean(1) if self.token is None else x[:, 0])


class VectorNetwork(nn.Module):
    """Two inputs, one of them categorical; a perceptron, products of factors; several outputs."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        d, e, h = rng.randint(4, 9), rng.randint(3, 5), rng.randint(5, 9)
        self.embed, self.dense = nn.Embedding(7, e), nn.Linear(4, d)
        self.body = nn.Sequential(nn.Linear(d + e, h), nn.BatchNorm1d(h), nn.PReLU(h), nn.Dropout(0.2), nn.Linear(h, h))
        self.left, self.right = nn.Linear(h, d), nn.Linear(e, d)
        self.share, self.kind = rng.random() < 0.5, rng.randrange(3)
        self.first, self.second = nn.Linear(h, 3), nn.Linear(d * d if self.kind == 2 else d, 2)

    def inputs(self) -> tuple[Tensor, ...]:
        return torch.randn(BATCH, 4), torch.randint(7, (BATCH,))

    def forward(self, x: Tensor, category: Tensor) -> tuple[Tensor, Tensor]:
        x, e = torch.relu(self.dense(x)), self.embed(category)
        y = self.body(torch.cat([x, e], dim=-1))
        a, b = self.left(y), self.right(e)
        if self.kind == 0:
            pair = a * b
        elif self.kind == 1:
            pair = torch.bmm(a.unsqueeze(2), b.unsqueeze(1)).sum(1)
        else:
            pair = torch.einsum("bi,bj->bij", a, b).flatten(1)
        return self.first(y + y.relu()), self.second(pair)


class SignalNetwork(nn.Module):
    """One-dimensional convolutions over time, sequence blocks, and a transposed convolution back."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        c, d, groups = rng.randint(4, 8), rng.randint(4, 10), rng.choice([1, 2])
        c, d = c * groups, d * groups
        self.first = nn.Conv1d(2, c, 3, padding=1)
        self.norm = rng.choice([nn.BatchNorm1d(c), nn.GroupNorm(groups, c), nn.InstanceNorm1d(c, affine=True)])
        self.second = nn.Conv1d(c, d, 4, stride=2, padding=1, groups=groups)
        self.blocks = sequence_blocks_of(rng, d, 4, rng.choice([0, 1, 1]))
        self.back = nn.ConvTranspose1d(d, c, 4, stride=2, padding=1, groups=rng.choice([1, groups]))
        self.last = nn.Conv1d(2 * c, 2, 1)

    def inputs(self) -> tuple[Tensor, ...]:
        return (torch.randn(BATCH, 2, 8),)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.gelu(self.norm(self.first(x)))
        y = self.blocks(self.second(skip).transpose(1, 2)).transpose(1, 2)
        return self.last(torch.cat((self.back(y), skip), dim=1))


NETWORKS: tuple[Callable[[Random], Any], ...] = (
    ImageNetwork, ImageNetwork, TextNetwork, PatchNetwork, VectorNetwork, SignalNetwork
)


def tensors(outputs: Any) -> Sequence[Tensor]:
    """The tensors of a network's output, in a fixed order."""
    return torch.utils._pytree.tree_leaves(outputs)
