"""Models that are prepared for quantization: their quantizers are cut along, and convert works after the cut."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.quantization import quantize_fx

import surgeon
from surgeon.frontend.stand_ins import as_traced

pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.randn(2, 3, 12, 12)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.a, self.norm, self.relu = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()
        self.deep, self.up = nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 24, 1)
        self.out = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(self.deep(self.relu(self.norm(self.a(self.quant(x))))))
        return self.dequant(self.out(h.mean((2, 3))))


def eager_qat(backend: str) -> tuple[nn.Module, Any]:
    model = quantization.fuse_modules_qat(Net().train(), [["a", "norm", "relu"]])
    model.qconfig = quantization.get_default_qat_qconfig(backend)
    return quantization.prepare_qat(model), quantization.convert


def fx_qat(backend: str) -> tuple[nn.Module, Any]:
    mapping = quantization.get_default_qat_qconfig_mapping(backend)
    return quantize_fx.prepare_qat_fx(Net().train(), mapping, (X,)), quantize_fx.convert_fx


def eager_observed(backend: str) -> tuple[nn.Module, Any]:
    model = Net().eval()
    model.qconfig = quantization.get_default_qconfig(backend)
    return quantization.prepare(model), quantization.convert


def fx_observed(backend: str) -> tuple[nn.Module, Any]:
    mapping = quantization.get_default_qconfig_mapping(backend)
    return quantize_fx.prepare_fx(Net().eval(), mapping, (X,)), quantize_fx.convert_fx


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("prepare", [eager_qat, fx_qat, eager_observed, fx_observed])
def test_prepared_models(prepare: Any, train: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, convert = prepare("x86")
        model(X)
        model.train(train)
        observed = {name: value.clone() for name, value in model.named_buffers()}
        slim, report = surgeon.shrink(model, 0.4, example_inputs=X, align=1, return_report=True)
        assert all(torch.equal(value, observed[name]) for name, value in model.named_buffers())
        assert report.form == "module"
        assert report.certificate.deviation < 1e-6
        assert slim.training is train
        slim.train()(X).mean().backward()
        assert convert(slim.eval())(X).shape == (2, 4)


def test_what_a_quantizer_holds_for_each_channel_is_cut_with_the_channels() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, _ = eager_qat("x86")
        model(X)
        slim = surgeon.shrink(model, 0.4, example_inputs=X, align=1)
    width = slim.up.out_channels
    assert width < 24
    quantizer = slim.up.weight_fake_quant
    observer = quantizer.activation_post_process
    for value in (quantizer.scale, quantizer.zero_point, observer.min_val, observer.max_val):
        assert value.shape == (width,)


class Levels(nn.Module):
    """Quantizes by torch's functions, with scales that are fixed and that are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)
        self.register_buffer("scale", torch.rand(16) * 0.01 + 0.01)
        self.register_buffer("zero", torch.zeros(16, dtype=torch.int32))
        self.learned, self.offset = nn.Parameter(torch.rand(16) * 0.01 + 0.01), nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        scale, zero = self.get_buffer("scale"), self.get_buffer("zero")
        weight = torch.fake_quantize_per_channel_affine(self.a.weight, scale, zero, 0, -128, 127)
        h = nn.functional.conv2d(torch.fake_quantize_per_tensor_affine(x, 0.05, 3, -128, 127), weight, self.a.bias)
        h = torch._fake_quantize_learnable_per_channel_affine(h, self.learned, self.offset, 1, -128, 127, 1.0)
        return self.b(h)


def test_functions_that_quantize() -> None:
    model = Levels().eval()
    wanted = model(X)
    with as_traced(model):
        assert torch.allclose(model(X), wanted, atol=1e-5)
    slim = surgeon.shrink(model, 0.4, example_inputs=X, align=1)
    assert type(slim) is Levels
    assert slim.get_buffer("scale").shape == slim.learned.shape == (slim.a.out_channels,)
    assert slim.a.out_channels < 16
    slim(X).mean().backward()
