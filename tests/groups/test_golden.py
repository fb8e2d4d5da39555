"""Text dumps of the coupled groups of small networks, so that a change of a rule shows what it does.

`SURGEON_GOLDEN=write pytest tests/groups/test_golden.py` rewrites the files in tests/golden.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.frontend.trace import trace
from surgeon.groups.coupling import couple

FOLDER = Path(__file__).parent / "golden"
WRITE = os.environ.get("SURGEON_GOLDEN") == "write"


def dump(model: nn.Module, x: Tensor) -> str:
    """The groups as text, with leaves that have no group's name numbered from a0 in the order that they appear."""
    numbers: dict[str, str] = {}
    text = str(couple(trace(model.eval(), x)))
    return re.sub(r"\ba\d+(?=:)", lambda m: numbers.setdefault(m[0], f"a{len(numbers)}"), text) + "\n"


class Function(nn.Module):
    """Named modules, and a function of them and the input."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def image() -> Tensor:
    return torch.zeros(2, 3, 6, 6)


def sequence() -> Tensor:
    return torch.zeros(2, 5, 12)


def plain() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)), image()


def residual() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        return m.head(F.relu(x + m.second(F.relu(m.first(x)))))

    return Function(forward, stem=nn.Conv2d(3, 8, 3), first=nn.Conv2d(8, 6, 1), second=nn.Conv2d(6, 8, 1),
                    head=nn.Conv2d(8, 4, 1)), image()


def depthwise() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 4, 1)), image()


def grouped() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.GroupNorm(2, 12),
                         nn.Conv2d(12, 4, 1)), image()


def shuffle() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.stem(x).chunk(2, dim=1)
        x = torch.cat([a, m.branch(b)], dim=1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        a, b = x.chunk(2, dim=1)
        return m.head(torch.cat([a, m.last(b)], dim=1))

    return Function(forward, stem=nn.Conv2d(3, 12, 1), branch=nn.Conv2d(6, 6, 1), last=nn.Conv2d(6, 6, 1),
                    head=nn.Conv2d(12, 4, 1)), image()


def fused_attention() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = m.qkv(x).reshape(b, n, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1) * 6**-0.5).softmax(-1) @ v
        return m.proj(y.transpose(1, 2).reshape(b, n, 12))

    return Function(forward, qkv=nn.Linear(12, 36), proj=nn.Linear(12, 12)), sequence()


def rotary_grouped_query() -> tuple[nn.Module, Tensor]:
    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x * cos + torch.cat((-x[..., 2:], x[..., :2]), -1) * sin

    def forward(m: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = rotate(m.q(x).view(b, n, 6, 4).transpose(1, 2), m.cos, m.sin)
        k = rotate(m.k(x).view(b, n, 2, 4).transpose(1, 2), m.cos, m.sin)
        v = m.v(x).view(b, n, 2, 4).transpose(1, 2)
        k, v = (t[:, :, None].expand(b, 2, 3, n, 4).reshape(b, 6, n, 4) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return m.o(y.transpose(1, 2).reshape(b, n, 24))

    model = Function(forward, q=nn.Linear(12, 24, bias=False), k=nn.Linear(12, 8, bias=False),
                     v=nn.Linear(12, 8, bias=False), o=nn.Linear(24, 12, bias=False))
    model.register_buffer("cos", torch.ones(5, 4))
    model.register_buffer("sin", torch.ones(5, 4))
    return model, sequence()


def lstm() -> tuple[nn.Module, Tensor]:
    recurrent = nn.LSTM(12, 5, num_layers=2, bidirectional=True, batch_first=True)
    return Function(lambda m, x: m.out(m.body(x)[0]), body=recurrent, out=nn.Linear(10, 3)), sequence()


def gated() -> tuple[nn.Module, Tensor]:
    return Function(lambda m, x: m.down(F.glu(m.up(x))), up=nn.Linear(12, 16), down=nn.Linear(8, 12)), sequence()


def flatten() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(80, 4)), image()


def pixel_shuffle() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2), nn.Conv2d(3, 2, 1)), image()


def concat_split() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.cat([m.left(x), m.right(x)], dim=1)
        first, second = y.split([3, 7], dim=1)
        return m.a(first) + m.b(second)

    return Function(forward, left=nn.Conv2d(3, 4, 1), right=nn.Conv2d(3, 6, 1), a=nn.Conv2d(3, 2, 1),
                    b=nn.Conv2d(7, 2, 1)), image()


def layer_norm_stream() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.embed(x)
        return m.head(m.norm(x + m.down(F.gelu(m.up(m.inner(x))))))

    return Function(forward, embed=nn.Linear(12, 8), inner=nn.LayerNorm(8), up=nn.Linear(8, 16), down=nn.Linear(16, 8),
                    norm=nn.RMSNorm(8), head=nn.Linear(8, 3)), sequence()


def tied() -> tuple[nn.Module, Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(F.relu(m.embed(x)))

    embed, head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
    head.weight = embed.weight
    return Function(forward, embed=embed, head=head), torch.zeros(2, 5, dtype=torch.int64)


NETWORKS = (plain, residual, depthwise, grouped, shuffle, fused_attention, rotary_grouped_query, lstm, gated, flatten,
            pixel_shuffle, concat_split, layer_norm_stream, tied)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_groups_are_as_recorded(network: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    model, x = network()
    found = dump(model, x)
    file = FOLDER / f"{network.__name__}.txt"
    if WRITE:
        file.parent.mkdir(exist_ok=True)
        file.write_text(found, encoding="utf-8")
    assert found == file.read_text(encoding="utf-8"), f"see {file.name}; SURGEON_GOLDEN=write accepts the change"


def test_every_recorded_file_has_its_network() -> None:
    assert {file.stem for file in FOLDER.glob("*.txt")} == {network.__name__ for network in NETWORKS}
