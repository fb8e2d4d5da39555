"""Operators of ONNX against onnxruntime, in the forms that files have. `benchmarks.onnx_operators` runs onnx's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import surgeon
from surgeon.onnx_import.operators.slicing import sliced
from testbed.onnx_graphs import model, weight

IMAGE = ("x", (2, 4, 7, 9))
SEQUENCE = ("x", (5, 2, 6))

#: A word, the nodes, the input and the weights; the output is y.
CASES: dict[str, tuple[str, tuple[str, tuple[int, ...]], dict[str, Any]]] = {
    "grouped convolution": ("y = Conv <group = 2, pads = [0, 1, 2, 1]> (x, w, b)", IMAGE,
                            {"w": weight(6, 2, 3, 3), "b": weight(6)}),
    "same padding": ('y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)', IMAGE, {"w": weight(6, 4, 3, 4)}),
    "transposed convolution": (
        "y = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]> (x, w)", IMAGE,
        {"w": weight(4, 3, 3, 3)},
    ),
    "transposed, uneven pads": ("y = ConvTranspose <strides = [2, 2], pads = [0, 1, 1, 1], group = 2> (x, w, b)", IMAGE,
                                {"w": weight(4, 3, 3, 3), "b": weight(6)}),
    "max pooling": ("y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [0, 0, 1, 1]> (x)", IMAGE, {}),
    "average pooling": ("y = AveragePool <kernel_shape = [3, 3], pads = [0, 1, 1, 1]> (x)", IMAGE, {}),
    "resize to sizes": ('y = Resize <mode = "linear"> (x, , , s)', IMAGE, {"s": np.array([2, 4, 11, 5])}),
    "resize by scales": ('y = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", '
                         'nearest_mode = "floor"> (x, , s)', IMAGE, {"s": np.array([1, 1, 2, 2], np.float32)}),
    "resize by odd scales": ('y = Resize <mode = "nearest"> (x, , s)', IMAGE,
                             {"s": np.array([1, 1, 1.7, 0.6], np.float32)}),
    "cubic resize": ('y = Resize <mode = "cubic"> (x, , , s)', IMAGE, {"s": np.array([2, 4, 14, 6])}),
    "aligned corners": ('y = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (x, , , s)',
                        IMAGE, {"s": np.array([2, 4, 10, 10])}),
    "both directions": ('r, h = GRU <hidden_size = 4, direction = "bidirectional", linear_before_reset = 1> '
                        "(x, w, r0, b)\ny = Transpose <perm = [0, 2, 1, 3]> (r)", SEQUENCE,
                        {"w": weight(2, 12, 6), "r0": weight(2, 12, 4), "b": weight(2, 24)}),
    "reset first": ("y, h = GRU <hidden_size = 4> (x, w, r0, b)", SEQUENCE,
                    {"w": weight(1, 12, 6), "r0": weight(1, 12, 4), "b": weight(1, 24)}),
    "backward": ('y, h, c = LSTM <hidden_size = 4, direction = "reverse"> (x, w, r0, b)', SEQUENCE,
                 {"w": weight(1, 16, 6), "r0": weight(1, 16, 4), "b": weight(1, 32)}),
    "peepholes": ("y, h, c = LSTM <hidden_size = 4> (x, w, r0, b, , , , p)", SEQUENCE,
                  {"w": weight(1, 16, 6), "r0": weight(1, 16, 4), "b": weight(1, 32), "p": weight(1, 12)}),
    "plain recurrence": ("y, h = RNN <hidden_size = 4> (x, w, r0)", SEQUENCE,
                         {"w": weight(1, 4, 6), "r0": weight(1, 4, 4)}),
    "slices backward": ("y = Slice (x, s, e, a, t)", IMAGE, {
        "s": np.array([-1, 5]), "e": np.array([-100, 1]), "a": np.array([2, 3]), "t": np.array([-1, -2])}),
    "reflected edges": ('y = Pad <mode = "reflect"> (x, p)', IMAGE, {"p": np.array([0, 0, 2, 1, 0, 0, 1, 2])}),
    "padded channels": ("y = Pad (x, p)", IMAGE, {"p": np.array([0, 1, 0, 0, 0, 2, 0, 0])}),
    "uneven parts": ("a, b = Split <axis = 1> (x, s)\ny = Concat <axis = 1> (b, a)", IMAGE, {"s": np.array([1, 3])}),
    "softmax as of opset 13": ("y = Softmax <axis = 1> (x)", IMAGE, {}),
    "channels by block": ("y = DepthToSpace <blocksize = 2> (x)", IMAGE, {}),
    "flattened": ("f = Flatten <axis = 2> (x)\ny = ReduceMax <axes = [1]> (f)", IMAGE, {}),
    "scaled product": ("y = Gemm <alpha = 0.5, beta = 2.0, transA = 1> (x, w, b)", ("x", (4, 3)),
                       {"w": weight(4, 5), "b": weight(1, 5)}),
    "scattered": ("y = ScatterND (x, i, u)", ("x", (4, 3)), {"i": np.array([[2], [0]]), "u": weight(2, 3)}),
    "one-hot rows": ("k, i = TopK <axis = 1> (x, n)\nh = OneHot (i, d, v)\ny = ReduceSum (h, a)", ("x", (3, 5)), {
        "n": np.array([2]), "d": np.array(5), "v": np.array([0, 1], np.float32), "a": np.array([1])}),
    "quantized weights": ("w = DequantizeLinear <axis = 0> (q, s)\ny = Gemm <transB = 1> (x, w)", ("x", (3, 4)), {
        "q": np.array([[1, -2, 3, 4], [5, 6, -7, 8]], np.int8), "s": np.array([0.1, 0.2], np.float32)}),
    "quantized values": ("q = QuantizeLinear (x, s, z)\ny = DequantizeLinear (q, s, z)", ("x", (3, 4)), {
        "s": np.array(0.05, np.float32), "z": np.array(128, np.uint8)}),
    "half precision": ("h = Cast <to = 10> (x)\np = Mul (h, w)\ny = Cast <to = 1> (p)", ("x", (3, 4)), {
        "w": weight(4).astype(np.float16)}),
    "einsum": ('y = Einsum <equation = "bij,jk->bik"> (x, w)', SEQUENCE, {"w": weight(6, 3)}),
    "a loop": ("""n = Constant <value_int = 3> ()  go = Constant <value = bool {1}> ()
        y = Loop (n, go, x) < body = turn (int64 i, bool c, float[a, b] v) => (bool d, float[a, b] u) {
            d = Identity (c)  u = Mul (v, w)
        } >""", ("x", (3, 4)), {"w": weight(4)}),
    "sizes as values": ("""s = Shape (x)  f = Cast <to = 1> (s)  p = ReduceProd <keepdims = 0> (f)
        r = Sqrt (p)  y = Div (x, r)""", IMAGE, {}),
    "expanded by sizes": ("s = Shape (x)  o = ConstantOfShape (s)  r = Expand (w, s)  y = Add (o, r)", ("x", (3, 4)),
                          {"w": weight(4)}),
}


def compared(proto: onnx.ModelProto, folder: Path, x: np.ndarray) -> Any:
    onnx.save(proto, folder / "net.onnx")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": x})
    net = surgeon.load_onnx(folder / "net.onnx")
    np.testing.assert_allclose(
        net(torch.from_numpy(x)).detach().numpy(), wanted, rtol=2e-3, atol=2e-5, strict=True
    )
    return net


@pytest.mark.parametrize("word", CASES)
def test_as_onnxruntime(word: str, tmp_path: Path) -> None:
    text, (name, shape), weights = CASES[word]
    axes = ", ".join("abcde"[: len(shape)])
    proto = model(f"net (float[{axes}] {name}) => (y) {{ {text} }}", **weights)
    net = compared(proto, tmp_path, weight(*shape, seed=7))
    other = tuple(size if (len(shape) == 4 and axis == 1) or axis == len(shape) - 1 else size + 1
                  for axis, size in enumerate(shape))
    if not any(each in text for each in ("(x, , , s)", "Gemm <alpha", "ScatterND")):
        again = weight(*other, seed=8)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(
            net(torch.from_numpy(again)).detach().numpy(), session.run(None, {"x": again})[0], rtol=2e-3, atol=2e-5
        )


@pytest.mark.parametrize("opset", [9, 12, 13, 18, 21])
def test_in_every_opset(opset: int, tmp_path: Path) -> None:
    new = opset >= 13
    text = f"""net (float[n,3,h,w] x) => (y) {{
        u = {'Unsqueeze (x, a)' if new else 'Unsqueeze <axes = [1]> (x)'}
        s = {'Squeeze (u, a)' if new else 'Squeeze <axes = [1]> (u)'}
        m = {'ReduceMean (s, b)' if opset >= 18 else 'ReduceMean <axes = [2]> (s)'}
        y = Softmax <axis = 1> (m)
    }}"""
    constants: dict[str, Any] = {"a": np.array([1]), "b": np.array([2])}
    proto = model(text, opset, **(constants if opset >= 18 else {"a": constants["a"]} if new else {}))
    compared(proto, tmp_path, weight(2, 3, 4, 5))


@pytest.mark.parametrize("start", [0, 2, 4, -1, -3, -9, 9])
@pytest.mark.parametrize("end", [0, 3, -2, -9, 9, -(1 << 62), (1 << 62)])
@pytest.mark.parametrize("step", [1, 3, -1, -2])
def test_slices_are_those_of_python(start: int, end: int, step: int) -> None:
    values = list(range(5))
    last = None if step < 0 and end < -5 else end
    assert sliced(torch.tensor(values), 0, start, end, step).tolist() == values[start:last:step]
