"""The documented operators are those of the table, and fused ones are as onnxruntime has them."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import surgeon
from surgeon.errors import InvalidModel
from surgeon.onnx_import import operators
from surgeon.onnx_import.table import MICROSOFT, ROWS
from testbed.onnx_graphs import model, weight

DOCS = Path(__file__).parents[2] / "docs" / "onnx-files.md"

FUSED: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "FusedConv": ('FusedConv <activation = "Relu", pads = [1, 1, 1, 1]> (x, w, b)', (2, 3, 5, 5),
                  {"w": weight(4, 3, 3, 3), "b": weight(4)}),
    "Gelu": ("Gelu (x)", (3, 4), {}),
    "BiasGelu": ("BiasGelu (x, b)", (3, 4), {"b": weight(4)}),
    "FastGelu": ("FastGelu (x, b)", (3, 4), {"b": weight(4)}),
    "QuickGelu": ("QuickGelu <alpha = 1.5> (x)", (3, 4), {}),
    "FusedMatMul": ("FusedMatMul <transA = 1, alpha = 0.5> (x, w)", (2, 3, 4), {"w": weight(2, 3, 5)}),
    "SkipLayerNormalization": ("SkipLayerNormalization <epsilon = 1e-5> (x, s, g, b, c)", (2, 3, 8), {
        "s": weight(2, 3, 8, seed=1), "g": weight(8), "b": weight(8, seed=1), "c": weight(8, seed=2)}),
    "SkipSimplifiedLayerNormalization": ("SkipSimplifiedLayerNormalization <epsilon = 1e-5> (x, s, g)", (2, 3, 8), {
        "s": weight(2, 3, 8, seed=1), "g": weight(8)}),
    "Attention": ("Attention <num_heads = 2> (x, w, b, m)", (2, 3, 8), {
        "w": weight(8, 24), "b": weight(24), "m": np.array([[1, 1, 0], [1, 1, 1]], np.int32)}),
    "MultiHeadAttention": ("MultiHeadAttention <num_heads = 2> (x, k, v)", (2, 3, 8), {
        "k": weight(2, 5, 8, seed=1), "v": weight(2, 5, 8, seed=2)}),
}


@pytest.mark.parametrize(("mark", "domain"), [("operators", ""), ("microsoft", MICROSOFT)])
def test_the_documented_operators_are_those_of_the_table(mark: str, domain: str) -> None:
    assert operators.__name__
    found = re.search(rf"<!-- {mark} -->\n(.*?)<!-- /{mark} -->", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    assert found[1].split() == sorted(name for where, name in ROWS if where == domain)


#: Attributes that rows don't read, and why they may not: none changes what is computed here.
UNREAD = {
    "kernel_shape": "the weight has it", "hidden_size": "the weight has it", "num_outputs": "the node has them",
    "group": "read by the convolution that is called", "dilations": "as group", "strides": "as group",
    "pads": "as group", "auto_pad": "as group",
    "stash_type": "a precision", "precision": "a precision", "seed": "of training", "training_mode": "of training",
    "sorted": "any order is right where none is asked for", "dtype": "of a sequence that holds nothing yet",
    "round_mode": "of a type that torch lacks",
    "saturate": "of numbers of 8 bits, which are refused where they are quantized to",
    "activation_alpha": "of activations that are not covered", "activation_beta": "of activations that are not covered",
    "extrapolation_value": "of cropping, which is not covered", "left_window_size": "refused as unknown by the row",
    "right_window_size": "refused as unknown by the row", "value_string": "refused: text",
    "value_strings": "refused: text", "sparse_value": "refused: sparse tensors",
}


def test_every_attribute_that_onnx_knows_is_read_or_changes_nothing() -> None:
    unread = {
        name: left
        for (domain, name), row in ROWS.items()
        if not domain and onnx.defs.has(name, onnx.defs.onnx_opset_version(), "")
        for source in [inspect.getsource(sys.modules[row.function.__module__])]
        for schema in [onnx.defs.get_schema(name, onnx.defs.onnx_opset_version(), "")]
        if (left := [each for each in schema.attributes if f'"{each}"' not in source and each not in UNREAD])
    }
    assert not unread


def test_an_attribute_that_onnx_does_not_know_is_refused(tmp_path: Path) -> None:
    onnx.save(model("net (float[2] x) => (float[2] y) { y = Relu <slope = 0.5> (x) }"), tmp_path / "net.onnx")
    with pytest.raises(InvalidModel, match="Relu of opset 17 has no attribute 'slope'"):
        surgeon.load_onnx(tmp_path / "net.onnx")


@pytest.mark.parametrize(("saturate", "expected"), [(1, [448.0, -448.0, 1.5]), (0, [float("nan"), float("nan"), 1.5])])
def test_numbers_beyond_those_of_8_bits_saturate(saturate: int, expected: list[float], tmp_path: Path) -> None:
    text = f"net (float[3] x) => (float[3] y) {{ z = Cast <to = 17, saturate = {saturate}> (x) y = Cast <to = 1> (z) }}"
    onnx.save(model(text, opset=19), tmp_path / "net.onnx")
    found = surgeon.load_onnx(tmp_path / "net.onnx")(torch.tensor([1000.0, -1000.0, 1.5]))
    torch.testing.assert_close(found, torch.tensor(expected), equal_nan=True)


@pytest.mark.parametrize("name", FUSED)
def test_fused_operators(name: str, tmp_path: Path) -> None:
    node, shape, weights = FUSED[name]
    axes = ", ".join(map(str, shape))
    proto = model(f"net (float[{axes}] x) => (y) {{ y = {MICROSOFT}.{node} }}", domains=(MICROSOFT,), **weights)
    onnx.save(proto, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = weight(*shape, seed=9)
    net = surgeon.load_onnx(tmp_path / "net.onnx")
    np.testing.assert_allclose(
        net(torch.from_numpy(x)).detach().numpy(), session.run(None, {"x": x})[0], rtol=1e-3, atol=1e-5
    )
