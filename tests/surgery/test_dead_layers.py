"""Layers whose results nothing reads: they are cut along, so that the class still runs them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon


class Layer(nn.Module):
    """A layer of a WaveNet: a residual and a skip."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.gated = nn.Conv1d(width, 2 * width, 3, dilation=dilation)
        self.residual, self.skip = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one, other = self.gated(F.pad(x, (2 * self.dilation, 0))).chunk(2, 1)
        z = one.tanh() * other.sigmoid()
        return x + self.residual(z), self.skip(z)


class WaveNet(nn.Module):
    """The last layer's residual feeds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(1, 16, 1), nn.Conv1d(16, 1, 1)
        self.layers = nn.ModuleList(Layer(16, 2**i) for i in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y, total = self.first(x), torch.zeros(())
        for layer in self.layers:
            y, skip = layer(y)
            total = total + skip
        return self.last(total)


def test_a_layer_that_feeds_nothing_is_cut_along() -> None:
    torch.manual_seed(0)
    model = WaveNet().eval()
    slim = surgeon.shrink(model, 0.5, example_inputs=torch.randn(2, 1, 32))
    assert type(slim) is WaveNet
    dead, width = slim.get_submodule("layers.1.residual"), slim.first.out_channels
    assert width < 16 and dead.get_parameter("weight").shape[0] == width
    assert slim(torch.randn(3, 1, 50)).shape == (3, 1, 50)
