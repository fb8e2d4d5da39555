"""A file of more than 2 GiB, its weights in another one: loaded, cut, and written with its weights outside again.

    python -m benchmarks.onnx_large                     # needs 6 GB of disk, and 18 GB of memory
    python -m benchmarks.onnx_large --table             # print the table of the results so far

protobuf ends at 2 GiB, so that neither the file nor one with zeros in place of what was removed can be one message.
The result goes to `benchmarks/results/onnx_large.jsonl`, and the table to `onnx_large.md`.
"""

from __future__ import annotations

import itertools
import resource
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper

import surgeon
from benchmarks.rows import over_names
from surgeon.deploy.user_file.walk import tensors

RESULTS = Path(__file__).parent / "results"
ROWS, TABLE = RESULTS / "onnx_large.jsonl", RESULTS / "onnx_large.md"
#: The widths of a row of MatMuls, by name.
NETWORKS = {"two matrices of 1 GiB": (64, 16384, 16640, 16384, 10)}


def write(path: Path, widths: tuple[int, ...]) -> int:
    """Write a network of MatMuls and Relus with its weights in a file beside it; returns their bytes."""
    weights: list[TensorProto] = []
    nodes: list[NodeProto] = []
    value = "x"
    drawn = np.random.default_rng(0).standard_normal((1 << 20) + 7).astype(np.float32)
    data = path.with_suffix(".data")
    with data.open("wb") as out:
        for place, (before, after) in enumerate(itertools.pairwise(widths)):
            tensor = TensorProto(name=f"w{place}", data_type=TensorProto.FLOAT, dims=(before, after))
            tensor.data_location = TensorProto.EXTERNAL
            start = out.tell()
            (np.resize(drawn, (before, after)) / np.float32(before**0.5)).tofile(out)
            for key, number in (("location", data.name), ("offset", start), ("length", out.tell() - start)):
                tensor.external_data.add(key=key, value=str(number))
            weights.append(tensor)
            nodes.append(helper.make_node("MatMul", [value, f"w{place}"], [f"p{place}"]))
            nodes.append(helper.make_node("Relu", [f"p{place}"], [f"r{place}"]))
            value = f"r{place}"
        size = out.tell()
    nodes[-1].output[0] = "y"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name, width in (
        ("x", widths[0]), ("y", widths[-1])
    )]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return size


def measure(widths: tuple[int, ...]) -> dict[str, Any]:
    """Sizes, seconds, and how far the smaller file is from PyTorch and from the original with zeros."""
    row: dict[str, Any] = {}
    x = torch.randn(2, widths[0], generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        place, slim_place = Path(folder) / "net.onnx", Path(folder) / "out" / "slim.onnx"
        slim_place.parent.mkdir()
        row["bytes"] = write(place, widths)
        start = time.perf_counter()
        net = surgeon.load_onnx(place)
        row["load"] = round(time.perf_counter() - start, 1)
        start = time.perf_counter()
        slim, report = surgeon.shrink(net, 0.3, example_inputs=x, compensate=False, return_report=True)
        row |= {"shrink": round(time.perf_counter() - start, 1), "reached": round(report.reached, 3),
                "certificate": report.certificate.deviation}
        del net
        start = time.perf_counter()
        made = surgeon.export(slim, slim_place, example_inputs=x)
        written = onnx.load(slim_place, load_external_data=False)
        row |= {
            "export": round(time.perf_counter() - start, 1), "slim_bytes": made.bytes, "deviation": made.deviation,
            "off_original": made.off_original, "own": made.original is not None,
            "outside": sum(each.data_location == TensorProto.EXTERNAL for each in tensors(written)),
            "inside_bytes": slim_place.stat().st_size,
        }
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "`python -m benchmarks.onnx_large`: more weights than protobuf can hold, cut and written as the file itself.\n",
        "| network | weights, GB | smaller, GB | of it in the .onnx, KB | MACs removed | certificate | off PyTorch "
        "| off the original with zeros | load, s | shrink, s | export, s | most memory, GB |",
        "| --- |" + " ---: |" * 11,
    ]
    for name, row in rows.items():
        off = "–" if row["off_original"] is None else f"{row['off_original']:.0e}"
        lines.append(
            f"| {name} | {row['bytes'] / 1e9:.2f} | {row['slim_bytes'] / 1e9:.2f} | {row['inside_bytes'] / 1e3:.1f} "
            f"| {row['reached']:.0%} | {row['certificate']:.0e} | {row['deviation']:.0e} | {off} "
            f"| {row['load']} | {row['shrink']} | {row['export']} | {row['peak_mb'] / 1e3:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    warnings.simplefilter("ignore")
    over_names(__doc__, NETWORKS, ROWS, TABLE, table, lambda name: measure(NETWORKS[name]), "network")


if __name__ == "__main__":
    main()
