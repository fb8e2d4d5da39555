"""Device profiles made by a formula, so that a latency can be tested without a clock, and small networks to put in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.cost.cost import Cost
from surgeon.device.microbenchmark import Key, Point, Sample
from surgeon.device.profile import Profile
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Groups, couple
from surgeon.latency.model import Latency
from surgeon.latency.onnx_micrographs import positions, weight_bytes
from surgeon.latency.operators import Operator, operators
from surgeon.latency.ort_layout import DECIDED, Paths
from surgeon.latency.sample_points import points, questions

#: What a CPU with vectors of sixteen floats answers.
RULES = {
    "block": 16, "direct": 15, "conv_in": 4, "conv_out": 1, "depthwise": 4, "grouped": 16, "pool": 16, "concat": 16,
}
#: How much longer an operator takes beside the blocks.
PENALTY = 3.0
#: Microseconds of any operator, of a thousand multiply-accumulate operations, and of a thousand elements.
A_RUN, A_WORK, AN_ELEMENT = 2.0, 0.05, 0.1


def coupled(net: nn.Module, *shape: int) -> Groups:
    """The groups of a network that takes one tensor."""
    torch.manual_seed(0)
    return couple(trace(net.eval(), torch.randn(2, *shape)))


def microseconds(kind: str, static: Mapping[str, Any], dims: Sequence[int], blocked: bool) -> float:
    """The formula: what any operator takes, and what its work takes, more beside the blocks."""
    work = weight_bytes(kind, dims, static) // 4 * positions(kind, dims, static)
    elements = 1
    for size in dims:
        elements *= size
    slower = PENALTY if kind in DECIDED and not blocked else 1.0
    return A_RUN + slower * (A_WORK * work / 1e3 if work else AN_ELEMENT * elements / 1e3)


def fabricated(found: Sequence[Operator], full: Mapping[int, int], **rules: int) -> Profile:
    """A complete profile for these operators: all their points, and an answer to every question, 1 or of `rules`."""
    answers = {probe.name: 1 for probe in questions(found, full)} | RULES | rules
    profile = dataclasses.replace(Profile.here(1), block=answers["block"], rules=answers)
    asked = [point for point in points(found, full) if not point.threaded]
    samples = {point.key: _sample(point, Paths(profile)) for point in asked}
    return dataclasses.replace(profile, samples=samples)


def latency_of(groups: Groups, **rules: int) -> Latency:
    """The latency of a network by a fabricated profile."""
    cost = Cost(groups)
    return Latency.of(groups, fabricated(operators(groups, cost), cost.sizes, **rules), cost)


def without(profile: Profile, key: Key) -> Profile:
    """A profile that lacks a sample."""
    return dataclasses.replace(profile, samples={k: sample for k, sample in profile.samples.items() if k != key})


def _sample(point: Point, paths: Paths) -> Sample:
    kind, _, settings = point.operator.partition(" ")
    static = json.loads(settings) if settings else {}
    size = point.widths[0]
    match kind:
        case "plain":
            return Sample(5.0 + size / 1e4, 0.0, False, 12)
        case "reordered":
            return Sample(5.0 + size / 1e4 + 2 * _reordered(size), 0.0, False, 12)
        case "cold":
            return Sample(10.0 * size + 0.1 * size**2, 0.0, False, 12)
        case "stream":
            return Sample(size * (5.0 * size + 0.05 * size**2), 0.0, False, 12)
        case "run":
            return Sample(5.0 + 0.2 * size, 0.0, False, 12)
    operator: Any = SimpleNamespace(kind=kind, static=static)
    blocked = kind in DECIDED and bool(paths.fits(operator, point.widths))
    return Sample(microseconds(kind, static, point.widths, blocked), 0.0, blocked, 12, blocked)


def _reordered(elements: int) -> float:
    """Microseconds of one change of layout."""
    return 0.5 + elements / 1e3


class Residual(nn.Module):
    """A stem, two residual blocks with BatchNorms, a strided one, and a classifier."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.second(self.norm(self.first(x)).relu())).relu()
        return self.fc(self.down(x).relu().mean((2, 3)))


class Excited(nn.Module):
    """An inverted bottleneck: a depthwise convolution with squeeze-and-excitation between two 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(16, 64, 1), nn.BatchNorm2d(64), nn.Hardswish())
        self.deep = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.BatchNorm2d(64), nn.ReLU6())
        self.squeeze, self.excite = nn.Conv2d(64, 16, 1), nn.Conv2d(16, 64, 1)
        self.narrow = nn.Conv2d(64, 16, 1)
        self.stem, self.head = nn.Conv2d(3, 16, 3, stride=2), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.deep(self.wide(x))
        y = y * self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head((x + self.narrow(y)).mean((2, 3)))


class Dense(nn.Module):
    """Densely connected convolutions, each behind a BatchNorm that cannot be folded, and a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(32 + 32 * index) for index in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(32 + 32 * index, 32, 3, padding=1) for index in range(2))
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(96, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(norm(x).relu())], 1)
        return self.head(self.pool(x)).mean((2, 3))


class Transformer(nn.Module):
    """A patch embedding, one layer of attention, and a feed-forward network."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norms[0](x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        x = x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))
        return self.head(x.mean(1))
