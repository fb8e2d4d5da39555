"""Accuracy without training: what unlabeled images give back, and what each part of it adds; beside Torch-Pruning.

    python -m benchmarks.accuracy                       # all, resuming where a run was broken off
    python -m benchmarks.accuracy --only residual:0.5 --redo
    python -m benchmarks.accuracy --table               # print the table of the results so far

The networks of `models/`, with 1/2 and 3/4 of their MACs removed, on the 10,000 test images of Fashion-MNIST. The
unlabeled images are of the training set (`dataset-fashion-mnist`), another draw for each seed. One line of JSON a row,
`NETWORK:RATIO:SEED`, in `benchmarks/results/accuracy.jsonl`. Nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import models
import surgeon
from benchmarks import peers
from benchmarks.rows import last
from models.data import load_test, load_train
from surgeon.cost import Cost
from surgeon.coupling import couple
from surgeon.trace import trace

RESULTS = Path(__file__).parent / "results" / "accuracy.jsonl"
TABLE = Path(__file__).parent / "results" / "accuracy.md"
NETWORKS = ("residual", "depthwise", "transformer")
RATIOS = (0.5, 0.75)
SEEDS = (0, 1, 2)
SAMPLES = 512
PEER = "Torch-Pruning"

#: What `shrink` is asked for, and whether it gets the images.
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "cut alone": ({}, False),
    "+ compensation": ({"importance": "magnitude"}, True),
    "+ selection": ({}, True),
    "any width": ({"align": 1}, True),
}

Row = dict[str, Any]


def macs(model: nn.Module, inputs: Tensor) -> float:
    """Multiply-accumulate operations of one image."""
    return Cost(couple(trace(model, inputs))).macs({})


def row(network: str, ratio: float, seed: int) -> Row:
    """The accuracy of every variant, and the peer's."""
    model, (images, labels) = models.load(network), load_test()
    train, _ = load_train()
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:SAMPLES]
    inputs = images[:2]
    whole = macs(model, inputs)
    found: Row = {"dense": models.accuracy(model, images, labels)}
    for name, (options, guided) in VARIANTS.items():
        data: dict[str, Any] = {"data": train[chosen], "samples": SAMPLES} if guided else {}
        start = time.perf_counter()
        slim = surgeon.shrink(model, ratio, example_inputs=inputs, seed=seed, **options, **data)
        seconds = time.perf_counter() - start
        left = macs(slim, inputs) / whole
        found[name] = {"accuracy": models.accuracy(slim, images, labels), "macs": left, "seconds": seconds}
    found[PEER] = _peer(model, inputs, ratio, whole, images, labels)
    return found


def _peer(model: nn.Module, inputs: Tensor, ratio: float, whole: float, images: Tensor, labels: Tensor) -> Row:
    try:
        cut = peers.land(
            lambda channels: peers.cut(model, (inputs,), channels, None),
            lambda slim: macs(slim, inputs), (1 - ratio) * whole,
        )
    except Exception as error:  # noqa: BLE001  (the peer may raise anything)
        return {"error": f"{type(error).__name__}: {error}"}
    return {"accuracy": models.accuracy(cut.model, images, labels), "macs": cut.macs / whole}


def table(rows: dict[str, Row]) -> str:
    """Means over the seeds, and how far the seeds lie apart."""
    names = [PEER, *VARIANTS]
    lines = [
        "Top-1 on the 10,000 test images, without training: mean over seeds ± half the range. Unlabeled images: "
        f"{SAMPLES} of the training set. Each column from *cut alone* on adds to the one before; all but the last keep "
        "widths that are fast in onnxruntime.",
        "",
        "| network (dense) | MACs left | " + " | ".join(names) + " | seconds |",
        "| --- | --- |" + " --- |" * (len(names) + 1),
    ]
    for network in NETWORKS:
        for ratio in RATIOS:
            seeds = [rows[key] for seed in SEEDS if (key := f"{network}:{ratio:g}:{seed}") in rows]
            if not seeds:
                continue
            cells = [_cell([each[name] for each in seeds]) for name in names]
            seconds = statistics.median(each["+ selection"]["seconds"] for each in seeds)
            head = f"| {network} ({seeds[0]['dense']:.2%}) | {1 - ratio:.0%} | "
            lines.append(head + " | ".join(cells) + f" | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def _cell(found: list[Row]) -> str:
    values = [each["accuracy"] for each in found if "accuracy" in each]
    if not values:
        return "fails"
    spread = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.2%}" + (f" ± {100 * spread:.2f}" if spread else "")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="rows whose name contains this")
    parser.add_argument("--redo", action="store_true", help="run again what has a result")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keys = [f"{network}:{ratio:g}:{seed}" for seed in SEEDS for network in NETWORKS for ratio in RATIOS]
    keys = [key for key in keys if not options.only or any(part in key for part in options.only)]
    done = last(RESULTS, "row")
    for key in () if options.table else keys:
        if key in done and not options.redo:
            continue
        network, ratio, seed = key.split(":")
        found = row(network, float(ratio), int(seed))
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"row": key, **found}) + "\n")
        best = found["+ selection"]
        sys.stderr.write(f"{key:24} {found['dense']:.2%} → {best['accuracy']:.2%}, {best['seconds']:.0f} s\n")
    text = table(last(RESULTS, "row"))
    TABLE.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
