"""Operators that torch has none for: onnxruntime runs them, and pruning goes on around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import surgeon
from testbed.onnx_graphs import model, weight

TEXT = """net (float[n,6] x) => (float[n,6] y) {
    a = MatMul (x, first)  b = Relu (a)  c = MatMul (b, second)  d = Relu (c)
    e = ReverseSequence <batch_axis = 0, time_axis = 1> (d, lengths)  y = MatMul (e, third)
}"""


def net(folder: Path) -> Any:
    proto = model(
        TEXT.replace("n,6] x", "2,6] x"), first=weight(6, 32), second=weight(32, 16), third=weight(16, 6),
        lengths=np.array([16, 3]),
    )
    onnx.save(proto, folder / "net.onnx")
    return surgeon.load_onnx(folder / "net.onnx")


def test_it_runs_and_is_told(tmp_path: Path) -> None:
    found = net(tmp_path)
    assert found.fallbacks == {"operators.ReverseSequence_4": "ReverseSequence: not in the table of operators"}
    x = torch.randn(2, 6)
    hidden = torch.relu(torch.relu(x @ found.first) @ found.second)
    hidden = torch.stack([hidden[0].flip(0), torch.cat([hidden[1, :3].flip(0), hidden[1, 3:]])])
    torch.testing.assert_close(found(x), hidden @ found.third)


def test_what_it_touches_is_pinned_with_the_reason(tmp_path: Path) -> None:
    found = net(tmp_path)
    slim, report = surgeon.shrink(found, 0.3, example_inputs=torch.randn(2, 6), return_report=True, align=1)
    assert slim.first.shape[1] < 32 and slim.second.shape == (slim.first.shape[1], 16)
    assert any("ReverseSequence, an operator of ONNX that torch has none for" in pin.reason for pin in report.pinned)
