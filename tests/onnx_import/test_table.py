"""The documented operators are those of the table, and fused ones are as onnxruntime has them."""

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
