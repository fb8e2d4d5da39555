"""How a file is held against PyTorch, and on which inputs."""

import copy
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from surgeon.deploy.export import export
from surgeon.deploy.inputs import read_call, sample_like
from surgeon.deploy.parity import SATURATED, check_parity, least_scales, relative_deviation
from surgeon.errors import ExportError
from testbed.onnx_graphs import model
from tests.deploy_nets import Masked, conv_net, tamper


def test_parity_of_a_perturbed_file(tmp_path: Path) -> None:
    net, x = conv_net(), torch.rand(2, 3, 8, 8)
    path = export(net, tmp_path / "m.onnx", example_inputs=x).path
    assert check_parity(path, lambda x: (net(x),), [(x,)], input_names=["input"]).outputs == ("output",)
    tamper(path, "10.weight")
    with pytest.raises(ExportError, match="'output' deviates"):
        check_parity(path, lambda x: (net(x),), [(x,)], input_names=["input"])
    with pytest.raises(ExportError, match="has shape"):
        check_parity(path, lambda x: (net(x)[:1],), [(x,)], input_names=["input"])
    with pytest.raises(ExportError, match="1 outputs"):
        check_parity(path, lambda x: (net(x), x), [(x,)], input_names=["input"])
    with pytest.raises(ExportError, match="fails in PyTorch"):
        check_parity(path, lambda x: (net(x),), [(x[:, :2],)], input_names=["input"])
    with pytest.raises(ExportError, match="fails in onnxruntime"):
        check_parity(path, lambda x: (net(x.float()),), [(x.double(),)], input_names=["input"])


class Magnified(torch.nn.Module):
    """A sum of many products, whose last digits decide."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(2048, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.linear(x) * 3000)


def test_a_model_that_magnifies_rounding_is_held_against_its_own_rounding(tmp_path: Path) -> None:
    net, x = Magnified(), torch.rand(8, 2048)
    report = export(net, tmp_path / "m.onnx", example_inputs=x)
    assert 1e-3 < report.deviation < 1e-2
    assert "float32 rounds the model's own output" in str(report)
    tamper(report.path, "linear.weight")
    double = copy.deepcopy(net).double()
    with pytest.raises(ExportError, match="deviates"):
        check_parity(
            report.path, lambda x: (net(x),), [(x,)], input_names=["x"], precise=lambda x: (double(x),)
        )


DEVIATIONS = [
    ([1.0, -4.0], [1.0, -4.0], 0.0),
    ([1.0, -4.0], [1.5, -4.0], 0.125),
    ([0.0, 0.0], [0.5, 0.0], 0.5),
    ([float("nan"), 2.0], [float("nan"), 1.0], 0.5),
    ([float("inf"), 2.0], [float("inf"), 2.0], 0.0),
    ([float("inf"), 2.0], [-float("inf"), 2.0], float("inf")),
    ([1.0, 2.0], [float("nan"), 2.0], float("inf")),
    ([], [], 0.0),
]


@pytest.mark.parametrize("expected, actual, deviation", DEVIATIONS)
def test_relative_deviation(expected: list[float], actual: list[float], deviation: float) -> None:
    assert relative_deviation(np.array(expected), np.array(actual)) == deviation


def test_samples_are_like_the_example() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 16, 16)
    sample = sample_like(image, generator)
    assert sample.shape == image.shape and sample.min() >= image.min() and sample.max() <= image.max()
    assert abs(sample.mean() - image.mean()) < 0.05 and not torch.equal(sample, image)
    assert sample_like(torch.zeros(100), generator).std() > 0.5
    mask = sample_like(torch.tensor([True, False] * 20), generator)
    assert mask.dtype == torch.bool and 0 < mask.sum() < 40
    assert set(sample_like(torch.tensor([5, 9] * 20), generator).tolist()) == {5, 9}


def test_only_inputs_of_the_batch_size_are_batched() -> None:
    model = Masked()
    call = read_call(model, (torch.ones(4, 7, dtype=torch.long), torch.ones(1, 7), 0.5))
    assert call.batch == 4 and call.batched == (0,) and call.names == ("input_ids", "attention_mask")
    assert [tuple(tensor.shape) for tensor in call.with_batch(6).tensors] == [(6, 7), (1, 7)]


@pytest.mark.parametrize(("end", "least"), [("Sigmoid", {"y": SATURATED}), ("Softmax", {}), ("Relu", {})])
def test_a_sigmoid_is_compared_with_no_less_than_it_is_computed_to(
    end: str, least: dict[str, float], tmp_path: Path
) -> None:
    onnx.save(model(f"net (float[n,3] x) => (float[n,3] y) {{ a = {end} (x)  y = Identity (a) }}"), tmp_path / "m.onnx")
    assert least_scales(tmp_path / "m.onnx") == least


@pytest.mark.parametrize(("off", "right"), [(0.0, True), (1e-6, False)])
def test_a_sigmoid_near_0_may_be_off_by_what_onnxruntime_is_off(off: float, right: bool, tmp_path: Path) -> None:
    onnx.save(model("net (float[n,3] x) => (float[n,3] y) { y = Sigmoid (x) }"), tmp_path / "m.onnx")
    x = torch.linspace(-20, -15, 3000).reshape(-1, 3)
    with nullcontext() if right else pytest.raises(ExportError, match="'y' deviates"):
        check_parity(tmp_path / "m.onnx", lambda x: [torch.sigmoid(x) + off], [(x,)], input_names=["x"])


def test_a_saturated_sigmoid_that_is_wrong_is_refused(tmp_path: Path) -> None:
    onnx.save(model("net (float[n,3] x) => (float[n,3] y) { y = Sigmoid (x) }"), tmp_path / "m.onnx")
    x = torch.full((2, 3), -17.0)
    check_parity(tmp_path / "m.onnx", lambda x: (x.sigmoid(),), [(x,)], input_names=["x"])
    with pytest.raises(ExportError, match="'y' deviates"):
        check_parity(tmp_path / "m.onnx", lambda x: (x.sigmoid() + 2e-6,), [(x,)], input_names=["x"])
