"""ONNX files as people publish them go in, and come out smaller: what stays as it was, and what is measured.

    python -m benchmarks.onnx_slim WHEELS

WHEELS is the folder of packages that `benchmarks.onnx_files` tells how to get; .onnx files and other folders can be
named too. Half of the MACs are removed, the plain cut. A line of JSON a file goes to
`benchmarks/results/onnx_slim.jsonl`, and the table to `onnx_slim.md`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch

import surgeon
from benchmarks.onnx_files import over_files
from surgeon.cli.onnx_file import feeds_of
from surgeon.errors import SurgeonError, first_line

RESULTS = Path(__file__).parent / "results"
ROWS, TABLE = RESULTS / "onnx_slim.jsonl", RESULTS / "onnx_slim.md"
#: A file counts where the interval of its speed-up begins above this.
FASTER = 1.2


def kept(before: onnx.ModelProto, after: onnx.ModelProto) -> list[str]:
    """What of a file is not as it was, beside weights and the numbers that count them."""
    pairs = {
        "inputs": (before.graph.input, after.graph.input), "outputs": (before.graph.output, after.graph.output),
        "opset": (before.opset_import, after.opset_import), "IR version": (before.ir_version, after.ir_version),
        "metadata": (before.metadata_props, after.metadata_props), "doc": (before.doc_string, after.doc_string),
        "producer": (before.producer_name, after.producer_name), "functions": (before.functions, after.functions),
    }
    return [name for name, (old, new) in pairs.items() if old != new]


def measure(path: Path, folder: Path) -> dict[str, Any]:
    """The row of a file."""
    torch.manual_seed(0)
    try:
        start = time.perf_counter()
        net = surgeon.load_onnx(path)
        inputs = net.dummy_inputs
        slim, report = surgeon.shrink(net, 0.5, example_inputs=inputs, compensate=False, return_report=True)
        middle = time.perf_counter()
        made = surgeon.export(slim, folder / "slim.onnx", example_inputs=inputs)
        end = time.perf_counter()
        verdict = surgeon.benchmark(path, made.path, threads=1, feeds=feeds_of(net, inputs))
    except SurgeonError as error:
        return {"refused": first_line(error)}
    return {
        "reached": round(report.reached, 3), "form": report.form, "own file": made.original is not None,
        "changed": kept(onnx.load(path), onnx.load(made.path)), "bytes": [path.stat().st_size, made.bytes],
        "off pytorch": made.deviation, "off original": made.off_original, "shapes": len(made.shapes_checked),
        "notes": list(made.notes), "ratio": [verdict.ratio.low, verdict.ratio.value, verdict.ratio.high],
        "decision": verdict.decision, "shrink": round(middle - start, 1), "export": round(end - middle, 1),
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    own = [row for row in rows.values() if row.get("own file") and not row["changed"]]
    faster = [row for row in own if row["ratio"][0] > FASTER]
    lines = [
        f"`python -m benchmarks.onnx_slim`: of {len(rows)} files, {len(own)} came out as themselves, {len(faster)} of "
        f"these more than {FASTER} times as fast (the whole 95 % interval, one thread). The certificate is how far the "
        "cut is from the original with zeros, both in onnxruntime.\n",
        "| file | MACs removed | bytes | written | certificate | off PyTorch | sizes tried | speed-up | shrink, s | "
        "export, s |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in sorted(rows.items()):
        if "refused" in row:
            lines.append(f"| {name} | refused: {row['refused']} | | | | | | | | |")
            continue
        low, value, high = row["ratio"]
        certificate = "in PyTorch alone" if row["off original"] is None else f"{row['off original']:.0e}"
        lines.append(
            f"| {name} | {row['reached']:.0%} | {row['bytes'][0]:,} → {row['bytes'][1]:,} | "
            f"{'itself' if row['own file'] else 'anew'} | {certificate} | {row['off pytorch']:.0e} | {row['shapes']} | "
            f"{value:.2f} ({low:.2f}–{high:.2f}) | {row['shrink']} | {row['export']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    over_files(__doc__, ROWS, TABLE, table, measure)
