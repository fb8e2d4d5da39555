"""Small ONNX models, written as text: `model("net (float[n,3] x) => (float[n,2] y) { y = MatMul(x, w) }", w=array)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, parser


def model(
    text: str, opset: int = 17, functions: str = "", domains: tuple[str, ...] = (), **weights: Any
) -> onnx.ModelProto:
    """A model of a graph in onnx's textual form; arrays by name become initializers, `__` in a name is a dot."""
    opsets = ", ".join([f'"" : {opset}', *(f'"{domain}" : 1' for domain in domains)])
    made = parser.parse_model(f"<ir_version: 8, opset_import: [{opsets}]>\n{text}\n{functions}")
    for node in made.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
    for name, value in weights.items():
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        made.graph.initializer.append(numpy_helper.from_array(array, name.replace("__", ".")))
    return made


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    """Numbers like those of a trained weight."""
    drawn = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return (drawn / max(1.0, float(np.prod(shape[1:]))) ** 0.5).astype(np.float32)


def convolutional() -> onnx.ModelProto:
    """Convolutions with a batch norm, pooling, a flatten by sizes that are worked out, and a linear layer."""
    return model(
        """net (float[n,3,h,w] x) => (float[n,5] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, conv1__weight, conv1__bias)
            b = BatchNormalization (a, bn__weight, bn__bias, bn__mean, bn__var)
            c = Relu (b)
            d = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (c, conv2__weight)
            e = Relu (d)
            f = GlobalAveragePool (e)
            s = Shape (f)
            i = Constant <value_int = 0> ()
            n0 = Gather <axis = 0> (s, i)
            z = Constant <value_ints = [0]> ()
            n1 = Unsqueeze (n0, z)
            m = Constant <value_ints = [-1]> ()
            t = Concat <axis = 0> (n1, m)
            g = Reshape (f, t)
            y = Gemm <transB = 1> (g, fc__weight, fc__bias)
        }""",
        conv1__weight=weight(16, 3, 3, 3), conv1__bias=weight(16), bn__weight=1 + weight(16, seed=1),
        bn__bias=weight(16, seed=2), bn__mean=weight(16, seed=3), bn__var=1 + weight(16, seed=4) ** 2,
        conv2__weight=weight(24, 16, 3, 3), fc__weight=weight(5, 24), fc__bias=weight(5),
    )


def branching() -> onnx.ModelProto:
    """A branch by the value of an input, a recurrent layer, and slices."""
    return model(
        """net (float[steps,2,6] x, int64 rate) => (float[steps,2,4] y) {
            wanted = Constant <value_int = 16> ()
            same = Equal (rate, wanted)
            z = If (same) <
                then_branch = one () => (float[a,b,c] p) { p = Mul (x, scale) },
                else_branch = two () => (float[a,b,c] q) { q = Neg (x) }
            >
            r, h, c = LSTM <hidden_size = 4> (z, rnn__w, rnn__r, rnn__b)
            axes = Constant <value_ints = [1]> ()
            y = Squeeze (r, axes)
        }""",
        scale=weight(6), rnn__w=weight(1, 16, 6), rnn__r=weight(1, 16, 4), rnn__b=weight(1, 32),
    )


def rounded() -> onnx.ModelProto:
    """Weights of integers with scales, a pair that rounds in between, a resize and a loop."""
    return model(
        """net (float[n,3,h,w] x) => (y) {
            u = DequantizeLinear <axis = 0> (first, scales)
            a = Conv <pads = [1, 1, 1, 1]> (x, u)
            q = QuantizeLinear (a, scale, zero)
            b = DequantizeLinear (q, scale, zero)
            v = DequantizeLinear (second, scale)
            c = Conv (b, v)
            d = Resize (c, , twice)
            m = Constant <value_int = 2> ()  go = Constant <value = bool {1}> ()
            y = Loop (m, go, d) < body = turn (int64 i, bool p, float[e,f,g,k] r) => (bool s, float[e,f,g,k] t) {
                s = Identity (p)  t = Add (r, r)
            } >
        }""",
        first=(50 * weight(6, 3, 3, 3)).astype(np.int8), scales=0.01 + weight(6) ** 2, scale=np.float32(0.05),
        zero=np.uint8(8), second=(50 * weight(4, 6, 1, 1)).astype(np.int8), twice=np.array([1, 1, 2, 2], np.float32),
    )


def gathered() -> onnx.ModelProto:
    """Attention by hand: products, sums by an equation, a softmax, values by their places, a function of the file."""
    return model(
        """net (float[n,steps,8] x) => (float[n,k,8] y, float[n,3] z) {
            p = MatMul (x, w)
            q, k, v = Split <axis = 2> (p)
            s = Einsum <equation = "bik,bjk->bij"> (q, k)
            u = own.scaled <by = 0.5> (s)
            a = Softmax <axis = -1> (u)
            c = MatMul (a, v)
            m = LayerNormalization <axis = -1> (c, gain, shift)
            t, places = TopK <axis = 1> (m, one)
            h = Gather <axis = 1> (m, zero)
            g = GatherND <batch_dims = 0> (h, corner)
            e = ScatterND (h, corner, g)
            f = Unsqueeze (e, axis)
            i = Concat <axis = 1> (t, f, m)
            j = Pad (i, pads)
            l = Slice (j, starts, ends, axis)
            y = Where (open, l, i)
            r = ReduceMean <axes = [1], keepdims = 0> (i)
            o = Clip (r, low, high)
            z = Gemm <transB = 1> (o, fc__weight, fc__bias)
        }""",
        opset=17, domains=("own",), w=weight(8, 24), gain=1 + weight(8), shift=weight(8, seed=1), one=np.array([1]),
        zero=np.array(0), corner=np.array([[0, 1]]), axis=np.array([1]), pads=np.array([0, 1, 0, 0, 0, 0]),
        starts=np.array([1]), ends=np.array([1 << 40]), open=np.array([True]), low=np.float32(-4), high=np.float32(4),
        fc__weight=weight(3, 8), fc__bias=weight(3),
        functions="""<domain: "own", opset_import: ["" : 17]>
        scaled <by: float = 2.0> (a) => (c) { f = Constant <value_float: float = @by> ()  c = Mul (a, f) }""",
    )


def of_integers() -> onnx.ModelProto:
    """Operators that compute with integers, and an upsampling back to the size of the input."""
    return model(
        """net (float[n,3,h,w] x) => (float[n,2,h,w] y, float[n,d] z) {
            a = QuantizeLinear (x, scale, zero)
            b = QLinearConv <pads = [1, 1, 1, 1], strides = [2, 2]> (a, scale, zero, first, scales, zeros, scale, zero)
            c = DequantizeLinear (b, scale, zero)
            e = HardSigmoid <alpha = 0.2> (c)
            f = ConvTranspose <strides = [2, 2]> (e, second)
            s = Shape (x)
            i = Slice (s, two, four)
            t = Shape <start = 0, end = 2> (f)
            o = Concat <axis = 0> (t, i)
            y = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (f, , , o)
            g = GlobalMaxPool (c)
            j = Flatten (g)
            k, l, m = DynamicQuantizeLinear (j)
            p = MatMulInteger (k, third, m)
            r = Cast <to = 1> (p)
            z = Mul (r, l)
        }""",
        scale=np.float32(0.05), zero=np.uint8(128), first=(50 * weight(6, 3, 3, 3)).astype(np.int8),
        scales=(0.01 + weight(6) ** 2).astype(np.float32), zeros=np.zeros(6, np.int8), second=weight(6, 2, 2, 2),
        two=np.array([2]), four=np.array([4]), third=(50 * weight(6, 4)).astype(np.int8),
    )


def strided(rows: str = "n", first: int = 0, more: int = 0) -> onnx.ModelProto:
    """Means of channels, read one by one by their numbers, as torch.onnx writes `as_strided`."""
    return model(
        f"""net (float[{rows},3,6,6] x) => (float[m,5] y) {{
            a = Conv (x, w)  b = ReduceMean <axes = [2, 3]> (a)  f = Reshape (b, all)
            s = Shape <start = 0, end = 1> (x)  n = Squeeze (s)  k = Sub (n, less)
            r = Range (zero, k, one)  t = Mul (r, eight)  u = Unsqueeze (t, axes)
            i = Add (u, table)  j = Add (i, nothing)  c = Gather (f, j)
            d = Transpose <perm = [0, 2, 3, 1]> (c)  e = LayerNormalization (d, gain)
            g = MatMul (e, v)  y = Reshape (g, to)
        }}""",
        w=weight(8, 3, 3, 3), all=np.array([-1]), less=np.array(more), zero=np.array(0), one=np.array(1),
        eight=np.array(8), axes=np.array([1, 2, 3]), table=first + np.arange(8).reshape(1, 8, 1, 1),
        nothing=np.zeros((1, 1, 1, 1), np.int64), gain=1 + weight(8), v=weight(8, 5), to=np.array([-1, 5]),
    )


def external(location: str, **more: int) -> Callable[[onnx.ModelProto], None]:
    """A change of a model whose first initializer is in another file afterwards; `more` is an offset or a length."""

    def change(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **more}.items():
            tensor.external_data.add(key=key, value=str(value))

    return change
