"""Configurations that models are built from: rewritten where they can tell the smaller model, else left alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import surgeon


@dataclass
class Config:
    vocabulary: int = 20
    width: int = 32
    inner: int | None = None
    heads: int = 4
    head_size: int = 8
    layers: int = 2
    positions: int = 32  # as many as channels
    end: int = 4  # as many as heads
    dropout: float = 0.1


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, inside = copy.deepcopy(config), config.heads * config.head_size
        self.heads, self.head_size = config.heads, config.head_size
        self.q, self.k, self.v = (nn.Linear(config.width, inside) for _ in range(3))
        self.o, self.norm = nn.Linear(inside, config.width), nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.inner or 4 * config.width)
        self.down = nn.Linear(config.inner or 4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(2, (-1, self.head_size)).transpose(1, 2) for each in (self.q, self.k, self.v))
        x = x + self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(self.up(self.norm(x)).relu())


class Model(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.places = nn.Parameter(torch.randn(config.positions, config.width))
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.layers)))
        self.out = nn.Linear(config.width, config.vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(self.embed(x) + self.places[: x.shape[1]]))


X = torch.randint(0, 20, (2, 6))


def rebuilt(slim: Any) -> Model:
    model = Model(slim.config).eval()
    model.load_state_dict(slim.state_dict())
    return model


def test_equal_widths_are_written_into_the_configuration() -> None:
    config = Config()
    model = Model(config).eval()
    slim, report = surgeon.shrink(model, 0.4, example_inputs=X, scope="local", return_report=True)
    assert config == Config() and model.config is config
    assert slim.config.width == slim.out.in_features < 32
    assert slim.config.inner == slim.blocks[1].up.out_features < 128
    assert (slim.config.positions, slim.config.end) == (32, 4)
    assert slim.blocks[0].config == slim.config
    assert torch.allclose(rebuilt(slim)(X), slim(X), atol=1e-6)
    assert any("rewritten" in line and "width 32 → " in line for line in report.configuration)


def test_the_configuration_of_a_part() -> None:
    wrapper = nn.Sequential(Model(Config(inner=64)), nn.Linear(20, 3)).eval()
    ignore = [f"0.{name}" for name in ("*.q.*", "*.k.*", "*.v.*", "*.o.*", "*.norm.*", "embed*", "out*")]
    slim, report = surgeon.shrink(wrapper, 0.1, example_inputs=X, scope="local", return_report=True, ignore=ignore)
    assert report.configuration[0].startswith("0.config rewritten: inner 64 → ")
    assert torch.allclose(rebuilt(slim[0])(X), slim[0](X), atol=1e-6)


def test_widths_that_one_number_cant_tell() -> None:
    model = Model(Config()).eval()
    slim, report = surgeon.shrink(model, 0.4, example_inputs=X, align=1, ignore="blocks.0.up*", return_report=True)
    assert slim.config == Config()
    assert any("config left as it was" in line and "surgeon.load" in line for line in report.configuration)


def test_a_model_that_is_not_built_from_what_it_holds() -> None:
    class Other(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
            self.config = Config()

    slim, report = surgeon.shrink(Other(), 0.5, example_inputs=torch.randn(2, 8), return_report=True)
    assert slim.config == Config() and not report.configuration
