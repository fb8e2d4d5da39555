"""A depthwise-separable CNN in the manner of MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381)."""

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias that keeps the size at stride 1, and its BatchNorm."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project: (B, `inputs`, H, W) to (B, `outputs`, H/stride, W/stride).

    The input is added to the output where their shapes are the same.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            *conv(inputs, hidden, 1),
            nn.ReLU6(),
            *conv(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(),
            *conv(hidden, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.residual else y


class Depthwise(nn.Module):
    """Stages of inverted residuals: images (B, 1, 28, 28) to logits (B, `classes`).

    `stages` lists (width, blocks, stride of the first block); the pooled features are `features` wide.

    >>> Depthwise()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        stem: int = 32,
        stages: tuple[tuple[int, int, int], ...] = ((32, 2, 1), (64, 3, 2), (96, 3, 2)),
        expansion: int = 4,
        features: int = 256,
        classes: int = 10,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Sequential(*conv(1, stem, 3, 2), nn.ReLU6())]
        inputs = stem
        for width, blocks, stride in stages:
            for block in range(blocks):
                layers.append(InvertedResidual(inputs, width, stride if block == 0 else 1, expansion))
                inputs = width
        layers.append(nn.Sequential(*conv(inputs, features, 1), nn.ReLU6()))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.features(x)), 1))
