"""A model as an ONNX file and as a module: what comes out of each at the same budget, and how long it takes.

    python -m benchmarks.file_or_module

Half of the MACs of a model go, once from the PyTorch module and once from the file that `surgeon.export` writes of it.
What is exported of both is measured against each other in one interleaved run, with one thread. The trained networks of
`models/` are judged by their accuracy on 10,000 images, 512 unlabeled ones given; the others have random weights, and
only the plain cut. A line of JSON a model goes to `benchmarks/results/file_or_module.jsonl`, the table to
`file_or_module.md`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import models
import surgeon
from benchmarks.rows import over_names
from models.data import load_test
from surgeon.errors import SurgeonError, first_line
from surgeon.frontend import model_loading
from testbed.zoo import define_torchvision_operators

RESULTS = Path(__file__).parent / "results"
ROWS, TABLE = RESULTS / "file_or_module.jsonl", RESULTS / "file_or_module.md"
RATIO, UNLABELED = 0.5, 512
SPECS = (
    *(f"models:{name}" for name in models.names()), "torchvision:resnet50", "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_large", "torchvision:efficientnet_b0", "timm:vit_small_patch16_224",
)


def made(net: nn.Module, x: Any, path: Path, data: Tensor | None) -> tuple[nn.Module, float, Any]:
    """The smaller model, the seconds until its file is written, and the report of the cut."""
    start = time.perf_counter()
    options: dict[str, Any] = {"compensate": False} if data is None else {"data": data}
    slim, report = surgeon.shrink(net, RATIO, example_inputs=x, return_report=True, **options)
    surgeon.export(slim, path, example_inputs=x)
    return slim, time.perf_counter() - start, report


def measure(spec: str, folder: Path) -> dict[str, Any]:
    """The row of a model."""
    torch.manual_seed(0)
    net, known = model_loading.load(spec)
    trained = spec.startswith("models:")
    images, labels = load_test()
    x = images[:2] if trained else torch.randn(2, 3, 224, 224) if known is None else known
    # The networks are tested on other images than those that are fitted on.
    data, images, labels = (images[:UNLABELED] if trained else None), images[UNLABELED:], labels[UNLABELED:]
    surgeon.export(net, folder / "base.onnx", example_inputs=x)
    one, by_module, told = made(net, x, folder / "module.onnx", data)
    start = time.perf_counter()
    loaded = surgeon.load_onnx(folder / "base.onnx")
    feeds = {loaded.inputs[0].parameter: x}
    read = time.perf_counter() - start
    other, by_file, also = made(loaded, feeds, folder / "file.onnx", data)
    verdict = surgeon.benchmark(folder / "module.onnx", folder / "file.onnx", threads=1, seconds=10)
    row: dict[str, Any] = {
        "macs": [told.macs.after, also.macs.after], "ms": [verdict.base.low, verdict.slim.low],
        "ratio": [verdict.ratio.low, verdict.ratio.value, verdict.ratio.high],
        "seconds": [round(by_module, 1), round(read + by_file, 1)], "read": round(read, 1),
    }
    if trained:
        row["accuracy"] = [models.accuracy(each, images, labels) for each in (net, one, other)]
    return row


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        f"`python -m benchmarks.file_or_module`: {RATIO:.0%} of the MACs removed from the module, and from the file "
        "that is written of it.\n",
        "| model | MACs: module | file | ms: module | file | module's time over the file's | seconds: module | file | "
        "accuracy: original | module | file |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        if "refused" in row:
            lines.append(f"| {name} | refused: {row['refused']} | | | | | | | | | |")
            continue
        low, value, high = row["ratio"]
        right = " | ".join(f"{each:.2%}" for each in row.get("accuracy", ())) or "| |"
        lines.append(
            f"| {name} | {row['macs'][0]:,} | {row['macs'][1]:,} | {row['ms'][0]:.3f} | {row['ms'][1]:.3f} | "
            f"{value:.3f} ({low:.3f}–{high:.3f}) | {row['seconds'][0]} | {row['seconds'][1]} | {right} |"
        )
    return "\n".join(lines) + "\n"


def row(spec: str) -> dict[str, Any]:
    """The row of a model, or why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return measure(spec, Path(folder))
        except SurgeonError as error:
            return {"refused": first_line(error)}


def main() -> None:
    define_torchvision_operators()
    over_names(__doc__, SPECS, ROWS, TABLE, table, row)


if __name__ == "__main__":
    main()
