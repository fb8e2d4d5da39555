"""Files of integers and their scales, and files in half precision: equal to onnxruntime, cut as any other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import surgeon
from surgeon.errors import NothingToPrune
from testbed.onnx_graphs import model, weight

#: A weight of two convolutions: how the file makes it, with the scales (and the axis that they lie on).
WEIGHTS = {
    "of one scale": ("{w} = DequantizeLinear ({w}i, {w}s)", ()),
    "of a scale a filter": ("{w} = DequantizeLinear <axis = 0> ({w}i, {w}s)", (0,)),
    "of a scale an input": ("{w} = DequantizeLinear <axis = 1> ({w}i, {w}s)", (1,)),
    "that is rounded in the file": (
        "{w}q = QuantizeLinear <axis = 0> ({w}f, {w}s, {w}z) {w} = DequantizeLinear <axis = 0> ({w}q, {w}s, {w}z)", (0,)
    ),
}
#: What stands between the two convolutions.
BETWEEN = {
    "nothing": "b = Identity (a)",
    "one scale": "q = QuantizeLinear (a, s, z) b = DequantizeLinear (q, s, z)",
    "a scale a channel": "q = QuantizeLinear <axis = 1> (a, t, y8) b = DequantizeLinear <axis = 1> (q, t, y8)",
    "integers that are moved": "q = QuantizeLinear (a, s, z) p = MaxPool <kernel_shape = [2, 2]> (q) "
                               "b = DequantizeLinear (p, s, z)",
}


def quantized(form: str, between: str) -> onnx.ModelProto:
    text, axes = WEIGHTS[form]
    tensors: dict[str, Any] = {
        "s": np.float32(0.03), "z": np.uint8(3), "y8": np.zeros(8, np.uint8), "t": 0.02 + 0.01 * weight(8) ** 2,
    }
    for name, shape in (("w", (8, 3, 3, 3)), ("v", (6, 8, 1, 1))):
        value = weight(*shape)
        rest = tuple(axis for axis in range(4) if axis not in axes)
        scale = (np.abs(value).max(rest, keepdims=True) / 127).astype(np.float32)
        if "{w}f" in text:
            tensors |= {f"{name}f": value, f"{name}z": np.zeros(scale.size, np.int8)}
        else:
            tensors[f"{name}i"] = np.round(value / scale).astype(np.int8)
        tensors[f"{name}s"] = scale.reshape([-1] if axes else ())
    return model(
        f"""net (float[n,3,6,6] x) => (float[n,6,h,w] r) {{
            {text.format(w="w")} {text.format(w="v")}
            c = Conv <pads = [1, 1, 1, 1]> (x, w) a = Relu (c) {BETWEEN[between]} r = Conv (b, v)
        }}""",
        **{name: value for name, value in tensors.items() if f"{name}," in text + BETWEEN[between] or name[0] in "wv"
           or f"{name})" in BETWEEN[between]},
    )


def loaded(proto: onnx.ModelProto, folder: Path) -> Any:
    onnx.save(proto, folder / "net.onnx")
    return surgeon.load_onnx(folder / "net.onnx")


def by_onnxruntime(proto: onnx.ModelProto, x: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("form", WEIGHTS)
def test_scales_are_pruned_through(form: str, between: str, tmp_path: Path) -> None:
    proto, x = quantized(form, between), torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    net = loaded(proto, tmp_path)
    made = net(x)
    torch.testing.assert_close(made, by_onnxruntime(proto, x), rtol=1e-4, atol=1e-5)
    made.square().sum().backward()
    weights = dict(net.named_parameters())
    assert {tuple(each.shape) for each in weights.values()} == {(8, 3, 3, 3), (6, 8, 1, 1)}
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in weights.values())
    assert [group.size for group in surgeon.inspect(net, x)] == [8]
    slim, report = surgeon.shrink(net, 0.5, example_inputs=x, align=1, return_report=True)
    assert report.certificate.deviation < 1e-12
    assert {tuple(each.shape) for each in slim.parameters()} == {(4, 3, 3, 3), (6, 4, 1, 1)}


def test_the_weight_has_the_name_and_the_values_of_the_integers(tmp_path: Path) -> None:
    proto = quantized("of a scale a filter", "nothing")
    net = loaded(proto, tmp_path)
    assert net.initializers == {"wi": "wi", "vi": "vi"}
    held = {each.name: torch.from_numpy(onnx.numpy_helper.to_array(each).copy()) for each in proto.graph.initializer}
    assert torch.equal(net.wi, held["wi"] * held["ws"].reshape(-1, 1, 1, 1))


def test_integers_that_are_computed_with_stay_integers(tmp_path: Path) -> None:
    proto = model(
        "net (float[n,4] x) => (int32[n,4] y) { q = QuantizeLinear (x, s, z) y = MatMulInteger (q, w, z) }",
        s=np.float32(0.1), z=np.uint8(8), w=np.arange(16, dtype=np.uint8).reshape(4, 4),
    )
    x = torch.randn(2, 4)
    assert torch.equal(loaded(proto, tmp_path)(x), by_onnxruntime(proto, x))


#: Layers whose weights are integers that they compute with, of one scale.
INTEGERS = {
    "QLinearConv": """net (float[n,3,h,w] x) => (float[n,6,h,w] y) {
        a = QuantizeLinear (x, s, z) b = QLinearConv (a, s, z, v, s, o, s, z)
        c = QLinearConv (b, s, z, u, s, o, s, z) y = DequantizeLinear (c, s, z)
    }""",
    "QLinearMatMul": """net (float[n,3] x) => (float[n,6] y) {
        a = QuantizeLinear (x, s, z) b = QLinearMatMul (a, s, z, v, s, o, s, z)
        c = QLinearMatMul (b, s, z, u, s, o, s, z) y = DequantizeLinear (c, s, z)
    }""",
    "ConvInteger": """net (float[n,3,h,w] x) => (float[n,6,h,w] y) {
        a, r, q = DynamicQuantizeLinear (x) b = ConvInteger (a, v, q, o) c = Cast <to = 1> (b) d = Mul (c, r)
        e = Add (d, bias) f = Relu (e) g, t, p = DynamicQuantizeLinear (f) i = ConvInteger (g, u, p, o)
        j = Cast <to = 1> (i) y = Mul (j, t)
    }""",
    "MatMulInteger": """net (float[n,3] x) => (float[n,6] y) {
        a, r, q = DynamicQuantizeLinear (x) b = MatMulInteger (a, v, q, o) c = Cast <to = 1> (b) d = Mul (c, r)
        e = Add (d, bias) f = Relu (e) g, t, p = DynamicQuantizeLinear (f) i = MatMulInteger (g, u, p, o)
        j = Cast <to = 1> (i) y = Mul (j, t)
    }""",
}


def of_integers(kind: str) -> tuple[onnx.ModelProto, torch.Tensor]:
    conv = "Conv" in kind
    shapes = ((8, 3, 1, 1), (6, 8, 1, 1)) if conv else ((3, 8), (8, 6))
    tensors: dict[str, Any] = {
        "v": np.round(50 * weight(*shapes[0])).astype(np.int8), "u": np.round(50 * weight(*shapes[1])).astype(np.int8),
        "o": np.int8(0), "bias": weight(8, 1, 1) if conv else weight(8), "s": np.float32(0.03), "z": np.uint8(128),
    }
    text = INTEGERS[kind]
    used = {name: value for name, value in tensors.items() if f" {name}," in text or f" {name})" in text}
    return model(text, **used), torch.randn(2, 3, *[5, 5][: 2 * conv], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", INTEGERS)
def test_layers_of_integers_run_and_are_cut_where_they_have_a_float_bias(kind: str, tmp_path: Path) -> None:
    proto, x = of_integers(kind)
    net = loaded(proto, tmp_path)
    torch.testing.assert_close(net(x), by_onnxruntime(proto, x), rtol=1e-4, atol=0.031)  # a step of the scale
    if kind.startswith("QLinear"):
        with pytest.raises(NothingToPrune, match=r"weights are integers, such as v \(int8\): prune the model before"):
            surgeon.shrink(net, 0.5, example_inputs=x, align=1)
        return
    slim, report = surgeon.shrink(net, 0.5, example_inputs=x, align=1, return_report=True)
    assert report.certificate.deviation < 1e-12 and slim.bias.numel() == 4 and slim.v.dtype is torch.int8
    written = surgeon.export(slim, tmp_path / "slim.onnx", example_inputs=x)
    assert written.original is not None
    held = {each.name: each for each in onnx.load(tmp_path / "slim.onnx").graph.initializer}["v"]
    assert (held.data_type, tuple(held.dims)) == (onnx.TensorProto.INT8, tuple(slim.v.shape)) and 4 in slim.v.shape


#: Operators of onnxruntime between layers of integers, of `a` and `b` of float[2,4,3,3], as integers `p` and `q`.
BETWEEN_INTEGERS = {
    "QLinearAdd": "QLinearAdd (p, s, z, q, t, z, u, y8)", "QLinearMul": "QLinearMul (p, s, z, q, t, z, u, y8)",
    "QLinearSigmoid": "QLinearSigmoid (p, s, z, v, y8)",
    "QLinearLeakyRelu": "QLinearLeakyRelu <alpha = 0.2> (p, s, z, t, z)",
    "QLinearConcat": "QLinearConcat <axis = 1> (u, z, p, s, z, q, t, z)",
    "QLinearGlobalAveragePool": "QLinearGlobalAveragePool (p, s, z, v, y8)",
    "QGemm": "QGemm <transB = 1> (m, s, z, w, ws, wz, c, u, z)",
    "QGemm of floats": "QGemm <transB = 1> (m, s, z, w, ws, wz, c)",
}


@pytest.mark.parametrize("name", BETWEEN_INTEGERS)
def test_operators_between_layers_of_integers(name: str, tmp_path: Path) -> None:
    node = BETWEEN_INTEGERS[name]
    last = "y = Identity (r)" if "floats" in name else "y = Cast <to = 1> (r)"
    tensors: dict[str, Any] = {
        "s": np.float32(0.0313), "t": np.float32(0.0217), "u": np.float32(0.0401), "v": np.float32(0.0107),
        "z": np.uint8(128), "y8": np.uint8(7), "w": np.round(40 * weight(5, 36)).astype(np.int8),
        "ws": (0.01 + weight(5) ** 2).astype(np.float32), "wz": np.zeros(5, np.int8),
        "c": np.arange(5, dtype=np.int32) * 50,
    }
    text = f"""net (float[2,4,3,3] x, float[2,4,3,3] g) => (y) {{
        p = QuantizeLinear (x, s, z) q = QuantizeLinear (g, t, z) m = Flatten (p)
        r = com.microsoft.{node} {last}
    }}"""
    used = {key: value for key, value in tensors.items() if re.search(rf"\b{key}[,)]", text)}
    proto = model(text, domains=("com.microsoft",), **used)
    onnx.save(proto, tmp_path / "net.onnx")
    x, g = (torch.from_numpy(weight(2, 4, 3, 3, seed=seed)) for seed in (1, 2))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"x": x.numpy(), "g": g.numpy()})[0]
    net = surgeon.load_onnx(tmp_path / "net.onnx")
    assert not net.fallbacks
    off = np.abs(net(x, g).detach().numpy() - wanted)
    assert off.max() <= (1e-4 if "floats" in name else 1) and (off > 0.5).mean() < 0.02  # a rounding at most


def test_weights_of_4_bits_are_kept_with_the_reason(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    proto = model(
        """net (float[n,16] x) => (float[n,6] y) {
            a = MatMul (x, w) b = Relu (a) c = MatMul (b, v) d = Relu (c)
            e = com.microsoft.MatMulNBits <K = 32, N = 16, bits = 4, block_size = 32> (d, u, scales)
            f = Relu (e) y = MatMul (f, t)
        }""",
        domains=("com.microsoft",), w=weight(16, 24), v=weight(24, 32), t=weight(16, 6),
        u=drawn.integers(0, 255, (16, 1, 16)).astype(np.uint8), scales=0.05 + weight(16) ** 2,
    )
    x = torch.randn(2, 16)
    net = loaded(proto, tmp_path)
    torch.testing.assert_close(net(x), by_onnxruntime(proto, x), rtol=1e-4, atol=1e-4)
    groups = surgeon.inspect(net, x)
    assert [group.size for group in groups] == [24]
    reasons = {(pin.tensor, pin.axis): pin.reason for pin in groups.pinned}
    assert "MatMulNBits, an operator of ONNX that torch has none for" in reasons["v", 1]
    assert surgeon.shrink(net, 0.2, example_inputs=x, align=1).w.shape[1] < 24


@pytest.mark.parametrize("outside", [1, 10])
def test_half_precision_is_cut_and_certified(outside: int, tmp_path: Path) -> None:
    kind = {1: "float", 10: "float16"}[outside]
    half: dict[str, Any] = {
        "w": weight(8, 3, 3, 3), "b": weight(8), "v": weight(6, 8, 1, 1), "c": np.array([1, 1, 2, 2]),
    }
    proto = model(
        f"""net ({kind}[n,3,h,w] x) => ({kind}[n,6,i,j] y) {{
            a = Cast <to = 10> (x) d = Conv (a, w, b) e = Relu (d) f = Cast <to = 1> (c)
            g = Resize (e, , f) k = Conv (g, v) y = Cast <to = {outside}> (k)
        }}""",
        **{name: value.astype(np.float16) for name, value in half.items()},
    )
    x = torch.randn(2, 3, 6, 6).to({1: torch.float32, 10: torch.float16}[outside])
    net = loaded(proto, tmp_path)
    torch.testing.assert_close(net(x), by_onnxruntime(proto, x), rtol=1e-2, atol=1e-2)
    assert "c" not in net.initializers and {each.dtype for each in net.parameters()} == {torch.float16}
    slim, report = surgeon.shrink(net, 0.5, example_inputs=x, align=1, return_report=True)
    assert report.certificate.deviation < 1e-12 and slim.w.dtype is torch.float16 and slim.w.shape == (4, 3, 3, 3)


def test_names_that_mean_something_to_python(tmp_path: Path) -> None:
    weights: dict[str, Any] = {"as": weight(3, 4), "lambda": weight(4, 2)}
    text = "net (float[n,3] x) => (float[n,2] y) { h = MatMul (x, as) g = Relu (h) y = MatMul (g, lambda) }"
    proto = model(text, **weights)
    slim = surgeon.shrink(loaded(proto, tmp_path), 0.5, example_inputs=torch.randn(2, 3), align=1)
    assert {name: tuple(each.shape) for name, each in slim.named_parameters()} == {"as_": (3, 2), "lambda_": (2, 2)}
