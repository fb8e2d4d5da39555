"""Holds the table of ONNX operators against onnx's own tests of single operators.

    python -m benchmarks.onnx_operators [-k WORD]

Each test of `onnx.backend.test` whose nodes are all in the table is loaded, run in eval mode, and compared with what
the test expects. The table that is printed has a line an operator: tests passed by torch's operators, by a fallback
(onnxruntime runs a form that the row does not cover), and failed. It ends with exit code 1 if one failed that is not in
EXCEPT.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import surgeon
from surgeon.errors import SurgeonError
from surgeon.onnx_import import fallback, operators
from surgeon.onnx_import.reading import ports
from surgeon.onnx_import.table import ROWS

assert operators.__name__  # importing it fills the table
#: Tests that are not passed, by a part of their names, with the reason.
EXCEPT: dict[str, str] = {
    "training": "a module in eval mode drops nothing and uses the running statistics",
    "qk_matmul_bias_3d_mask_causal": "a fallback, whose scores as an output onnxruntime masks otherwise",
    "qk_matmul_bias_4d_mask_causal": "a fallback, whose scores as an output onnxruntime masks otherwise",
    "quantizelinear_blocked_symmetric": "the test expects nothing",
    "scan_sum": "a scan as before opset 9",
    "test_not_": "of opset 1",
    "INT4": "torch has no tensors of 4 bits",
}


def cases(word: str = "") -> Iterator[Any]:
    """onnx's tests of operators of the table, with one word in their names."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    for case in found:
        assert case.model is not None
        known = all((_domain(node.domain), node.op_type) in ROWS for node in case.model.graph.node)
        if word in case.name and known and _of_torch(case.model.graph):
            yield case


def _of_torch(graph: onnx.GraphProto) -> bool:
    """Whether inputs and outputs are tensors of types that torch has."""
    try:
        ports(graph)
    except SurgeonError:
        return False
    return True


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def outcome(case: Any, folder: Path) -> str:
    """"torch" or "fallback" by what passed a test, "refused: …" or "wrong: …"."""
    path = folder / "model.onnx"
    onnx.save(case.model, path)
    before = len(fallback._RUNS)
    try:
        net = surgeon.load_onnx(path)
        for inputs, outputs in case.data_sets:
            given = [torch.from_numpy(np.array(_array(each))) for each in inputs]
            with torch.no_grad():
                made = net(*given)
            for value, wanted in zip(made if isinstance(made, tuple) else (made,), outputs, strict=True):
                wanted = _array(wanted)
                near = {"rtol": max(case.rtol, 1e-3), "atol": _tolerance(case, wanted)}
                np.testing.assert_allclose(value.detach().numpy(), wanted, **near, strict=True)
    except SurgeonError as error:
        return f"refused: {str(error)[:160]}"
    except AssertionError as error:
        return f"wrong: {' '.join(str(error).split())[:160]}"
    except (TypeError, ValueError) as error:  # what numpy has no type for
        return f"left out: {type(error).__name__}: {str(error)[:120]}"
    return "fallback" if len(fallback._RUNS) > before else "torch"


def _array(value: Any) -> Any:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _tolerance(case: Any, wanted: Any) -> float:
    """Half precision is compared to its last bits."""
    return max(float(case.atol), 1e-3 if getattr(wanted, "dtype", None) == np.float16 else 1e-5)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", metavar="WORD", help="only tests with this in their names")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    counts: dict[str, Counter[str]] = {}
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in cases(given.k):
            result = outcome(case, Path(folder))
            kind = result.partition(":")[0]
            names = {node.op_type for node in case.model.graph.node}
            for name in names:
                counts.setdefault(name, Counter())[kind] += 1
            if kind in ("refused", "wrong") and not any(each in case.name for each in EXCEPT):
                failed.append(f"{case.name}: {result}")
    print(f"{'operator':28} torch  fallback  failed  left out")
    for name in sorted(counts):
        found = counts[name]
        print(f"{name:28} {found['torch']:5}  {found['fallback']:8}  {found['refused'] + found['wrong']:6}  "
              f"{found['left out']:8}")
    print("\n".join(failed))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
