"""Random networks that take more than one size, and the sizes that they are tried at."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from testbed import image_blocks
from testbed.networks import randomise
from testbed.sized_blocks import IMAGE_BLOCKS, SEQUENCE_BLOCKS, Placed, feed_forward

Inputs = tuple[Tensor, ...]


def sized_network(seed: int) -> tuple[nn.Module, list[Inputs]]:
    """A network in eval mode, a function of `seed` alone, and inputs of three sizes; it is traced at the first.

    >>> network, inputs = sized_network(3)
    >>> len(inputs)
    3
    """
    rng = Random(f"sizes {seed}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = rng.choice(NETWORKS)(rng)
        randomise(network)
        inputs: list[Inputs] = network.inputs(rng)
    return network.eval(), inputs


class AnyImage(nn.Module):
    """A stem, blocks that read sizes and blocks that don't, and a head for each pixel or for the whole image."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self.side = rng.choice([8, 12]), rng.choice([8, 10, 12])
        width = rng.randint(4, 9)
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        kinds = [*IMAGE_BLOCKS, image_blocks.Residual, image_blocks.Plain]
        blocks: list[nn.Module] = []
        for _ in range(rng.choice([1, 2, 3])):
            if rng.random() < 0.1:
                blocks.append(Placed(rng, width, self.side))
                continue
            blocks.append(rng.choice(kinds)(rng, width))
            width = int(getattr(blocks[-1], "width", width))
        self.blocks = nn.Sequential(*blocks)
        self.kind = rng.randrange(6)
        wide = width * self.side[0] * self.side[1] if self.kind == 5 else 4 * width if self.kind == 4 else width
        self.head = nn.Conv2d(width, 4, 1) if self.kind < 2 else nn.Linear(wide, 4)

    def inputs(self, rng: Random) -> list[Inputs]:
        h, w = self.side
        sizes = [(2, h, w), (3, h + 4, w + 6), (1, rng.randint(5, 20), rng.randint(5, 20))]
        return [(torch.randn(b, 3, height, width),) for b, height, width in sizes]

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        match self.kind:
            case 0 | 1:
                return self.head(x)
            case 2:
                return self.head(x.mean((2, 3)))
            case 3:
                return self.head(x.permute(0, 2, 3, 1)).flatten(1, 2)
            case 4:
                return self.head(nn.functional.adaptive_avg_pool2d(x, 2).reshape(x.shape[0], -1))
        return self.head(x.flatten(1))


class AnyLength(nn.Module):
    """Tokens or vectors of any number, blocks that read it, and a head for each or for all of them."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self.length, d = rng.randint(4, 9), rng.randint(4, 10)
        self.words = rng.random() < 0.5
        self.embed: nn.Module = nn.Embedding(11, d) if self.words else nn.Linear(3, d)
        kinds: list[Callable[..., nn.Module]] = [*SEQUENCE_BLOCKS, feed_forward]
        self.blocks = nn.Sequential(*(rng.choice(kinds)(rng, d) for _ in range(rng.choice([1, 2, 3]))))
        self.norm, self.kind = nn.LayerNorm(d), rng.randrange(4)
        self.head = nn.Linear(d, 5)

    def inputs(self, rng: Random) -> list[Inputs]:
        sizes = [(2, self.length), (3, self.length + 3), (1, rng.randint(2, 14))]
        return [(torch.randint(11, size) if self.words else torch.randn(*size, 3),) for size in sizes]

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.embed(x)))
        match self.kind:
            case 0:
                return self.head(x.mean(1))
            case 1:
                return self.head(x[:, -1])
            case 2:
                return self.head(x.view(-1, x.shape[-1])).view(*x.shape[:2], -1)
        return self.head(x)


class TwoLengths(nn.Module):
    """Attention from one sequence to another of its own length, with a mask that is given."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        d, self.lengths = rng.randint(4, 9), (rng.randint(3, 6), rng.randint(7, 9))
        self.query, self.pair, self.out = nn.Linear(3, d), nn.Linear(4, 2 * d), nn.Linear(d, 3)
        self.after = feed_forward(rng, d)

    def inputs(self, rng: Random) -> list[Inputs]:
        a, b = self.lengths
        sizes = [(2, a, b), (3, a + 2, b + 5), (1, rng.randint(2, 9), rng.randint(2, 9))]
        return [(torch.randn(n, i, 3), torch.randn(n, j, 4), torch.ones(n, j).cumsum(1) > 1) for n, i, j in sizes]

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        key, value = self.pair(memory).chunk(2, dim=-1)
        scores = (self.query(x) @ key.transpose(1, 2)).masked_fill(~mask[:, None], -torch.inf)
        return self.out(self.after(scores.softmax(-1) @ value))


NETWORKS: tuple[Callable[[Random], Any], ...] = (AnyImage, AnyImage, AnyLength, AnyLength, TwoLengths)
