"""A convolution with a stride on an image is one without a stride on a smaller image of more channels."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from surgeon.deploy.export import export
from surgeon.quantization.space_to_depth import fold_stride
from tests.deploy_nets import run

# kernel, stride, padding, channels, height and width
FOLDED = [
    (7, 2, 3, 3, (32, 32)),
    (3, 2, 1, 3, (16, 24)),
    (3, 2, 0, 1, (16, 16)),
    (4, 4, 0, 3, (16, 32)),
    (5, 3, 2, 2, (18, 21)),
    (2, 2, 0, 3, (8, 8)),
    ((3, 5), 2, (1, 2), 3, (16, 12)),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "channels", "size"), FOLDED)
def test_folding_a_stride_changes_nothing(
    tmp_path: Path, kernel: Any, stride: int, padding: Any, channels: int, size: tuple[int, int]
) -> None:
    net = nn.Sequential(nn.Conv2d(channels, 6, kernel, stride, padding), nn.ReLU(), nn.Conv2d(6, 4, 1))
    x = torch.randn(2, channels, *size)
    export(net, tmp_path / "float.onnx", example_inputs=x, dynamic="batch")
    model = onnx.load(tmp_path / "float.onnx")
    assert fold_stride(model)
    onnx.save(model, tmp_path / "folded.onnx")
    got, want = (run(tmp_path / name, x)[0] for name in ("folded.onnx", "float.onnx"))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    assert not any(attribute.name == "strides" for attribute in first.attribute)
    onnx.checker.check_model(model, full_check=True)


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + x[:, :, ::2, ::2]


LEFT_ALONE = {
    "no stride": (nn.Conv2d(3, 4, 3), (8, 8)),
    "not divisible": (nn.Conv2d(3, 4, 3, 2), (9, 9)),
    "grouped": (nn.Conv2d(3, 3, 3, 2, 1, groups=3), (8, 8)),
    "dilated": (nn.Conv2d(3, 4, 3, 2, 2, dilation=2), (8, 8)),
    "two strides": (nn.Conv2d(3, 4, 3, (2, 1), 1), (8, 8)),
    "read twice": (TwoReaders(), (8, 8)),
    "not the first": (nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3, 2, 1)), (8, 8)),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_not_folded(tmp_path: Path, name: str) -> None:
    net, size = LEFT_ALONE[name]
    export(net, tmp_path / "float.onnx", example_inputs=torch.randn(2, 3, *size), dynamic="batch")
    model = onnx.load(tmp_path / "float.onnx")
    before = model.SerializeToString()
    assert not fold_stride(model) and model.SerializeToString() == before


def test_an_image_of_any_size_is_not_folded(tmp_path: Path) -> None:
    export(nn.Conv2d(3, 4, 3, 2, 1), tmp_path / "float.onnx", example_inputs=torch.randn(2, 3, 8, 8))
    assert not fold_stride(onnx.load(tmp_path / "float.onnx"))
