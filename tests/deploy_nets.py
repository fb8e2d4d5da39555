"""Small networks and helpers for the tests of deploy."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


def conv_net(first: int = 8, second: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, first, 3, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, first, 3, padding=1, groups=first),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, second, 1, bias=False),
        nn.BatchNorm2d(second),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(second, 5),
    )
    return randomize(net)


def randomize(net: Net) -> Net:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias)
    return net.eval()


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def run(path: Path, *inputs: Tensor) -> list[np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(
        None, {item.name: value.numpy() for item, value in zip(session.get_inputs(), inputs, strict=True)}
    )


def output_names(path: Path) -> list[str]:
    return [output.name for output in onnx.load(path).graph.output]


class Returning(nn.Module):
    """A linear layer whose two results come back in the container `make` builds."""

    def __init__(self, make: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.make = make

    def forward(self, x: Tensor) -> object:
        y = self.linear(x)
        return self.make(x, y)


@dataclasses.dataclass
class Record:
    logits: Tensor
    hidden: Tensor | None = None


class Opaque:
    pass


class Attention(nn.Module):
    """Its heads are merged by a reshape of what attention returns, with a bias added to the scores."""

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        heads = x.unflatten(-1, (4, 8)).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=bias)
        return y.transpose(1, 2).reshape(*x.shape[:-1], -1)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        weights = attention_mask.unsqueeze(-1).to(torch.float32)
        return {"mean": (self.table(input_ids) * weights).sum(1) * scale}


class SharedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(x))))


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 6).cumsum(1)


class Sorting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


def tamper(path: Path, weight: str) -> None:
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == weight)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.05), weight))
    onnx.save(model, path)


class Clamped(nn.Module):
    """One tensor between two pairs of bounds that are tensors themselves."""

    low: Tensor
    high: Tensor
    lower: Tensor
    higher: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, value in {"low": -1.0, "high": 1.0, "lower": -2.0, "higher": 2.0}.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        y = x * 3
        return torch.clamp(y, self.low, self.high) + torch.clamp(y, self.lower, self.higher)
