"""How often `shrink` exports a model: once, but for what runs in train mode alone and for what is in doubt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Conv2d(16, 16, 3))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head((x + torch.sigmoid(x)).mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head_dim = nn.Embedding(12, 16), nn.LayerNorm(16), 4
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        normed = self.norm(x)
        q, k, v = (self.heads(layer(normed)) for layer in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))


class Heads(Transformer):
    """How many heads there are is written in its code: a graph can have fewer, its class can't."""

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (4, -1)).transpose(1, 2)


class Written(nn.Module):
    """A width is written in its code: a graph can have another, its class can't."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Linear(16 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)).view(-1, 16 * 36))


class Auxiliary(nn.Module):
    """A head of it runs in train mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.head, self.auxiliary = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.body(x))
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)


class Recurrent(nn.Module):
    """The kernel that its layer calls in float32 is none of float64: its graph has to be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.layer, self.down = nn.Linear(8, 16), nn.LSTM(16, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.layer(torch.relu(self.up(x)))[0])


# a model, its inputs, the form of the smaller one, how often at most a model is exported
MODELS: list[tuple[type[nn.Module], Tensor, str, int]] = [
    (Convolutional, IMAGE, "module", 1),
    (Transformer, TOKENS, "module", 1),
    (Heads, TOKENS, "graph", 2),
    (Written, IMAGE, "graph", 2),
    (Auxiliary, torch.randn(2, 8, generator=torch.Generator().manual_seed(1)), "module", 2),
    (Recurrent, torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2)), "module", 3),
]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The class of each model that is exported."""
    names: list[str] = []
    export = torch.export.export

    def noted(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        names.append(type(model).__name__)
        return export(model, *args, **kwargs)

    monkeypatch.setattr(torch.export, "export", noted)
    return names


@pytest.mark.parametrize(("kind", "inputs", "form", "most"), MODELS)
def test_a_model_is_exported_once(
    kind: type[nn.Module], inputs: Tensor, form: Any, most: int, exported: list[str]
) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    slim, report = surgeon.shrink(
        model, 0.5, example_inputs=inputs, form=form, align=1, return_report=True, compensate=False
    )
    assert report.form == form
    assert 1 <= len(exported) <= most, exported
    assert report.certificate.deviation < 1e-9
    assert report.certificate.operators >= 3
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())
