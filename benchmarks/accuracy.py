"""Accuracy without labels: what unlabeled inputs give back, and what each part of it adds; beside the peers.

    python -m benchmarks.accuracy                       # all, resuming where a run was broken off
    python -m benchmarks.accuracy --only free:residual --redo
    python -m benchmarks.accuracy --table               # print the tables of the results so far

The networks of `models/`, with 1/2 and 3/4 of their MACs removed, on the 10,000 test images of Fashion-MNIST. Other
images are of the training set (`dataset-fashion-mnist`), another draw for each seed. Rows are `free:NETWORK:RATIO:SEED`
(any width), `fast:…` (widths that are fast in onnxruntime, and measured there), `noise:…` and `nodata:…` (noise, and
inputs that are synthesized), `parts:…` (each switched off), `peer:…`, `tune:…` and `tune_peer:…` (an epoch of
training), and of published weights (`benchmarks/accuracy_networks.py` says how to install them) `crepe_full:…`,
`crepe_tiny:…`, `lite0:…`, `lite1:…`, `lite2:…`, `minilm:…`, `resemblyzer:…`, `pnet:…`, `rnet:…` and `onet:…`, each with
1/4 and 1/2 of the MACs removed. One line of JSON a row in `benchmarks/results/accuracy.jsonl`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks import accuracy_rows, accuracy_tune
from benchmarks.accuracy_table import PUBLISHED, table
from benchmarks.rows import command, last, publish, to_run
from testbed import zoo

RESULTS = Path(__file__).parent / "results" / "accuracy.jsonl"
NETWORKS = ("residual", "depthwise", "transformer")
RATIOS = (0.5, 0.75)
SEEDS = (0, 1, 2)
REMOVED = (0.25, 0.5)
"""The shares of the MACs of published networks that go."""
SPEED_SECONDS = 4.0

Row = dict[str, Any]


def keys() -> list[str]:
    """All rows; those that a busy machine does no harm come first."""
    one = SEEDS[:1]
    seeds = {
        "peer": one, "tune_peer": one, "free": SEEDS, "noise": SEEDS, "nodata": one, "tune": one, "parts": one,
        "fast": SEEDS,
    }
    found = [
        f"{kind}:{network}:{ratio:g}:{seed}"
        for kind, chosen in seeds.items() for seed in chosen for network in NETWORKS for ratio in RATIOS
    ]
    return [*found, *(f"{name}:{ratio:g}:0" for name in PUBLISHED for ratio in REMOVED)]


def make(key: str, files: Path, seconds: float) -> Row:
    """Measure one row."""
    kind, *names, share, drawn = key.split(":")
    ratio, seed = float(share), int(drawn)
    if kind in PUBLISHED:
        from benchmarks import accuracy_pretrained  # its packages are an extra

        return accuracy_pretrained.make(kind, ratio, seed)
    subject = accuracy_rows.Subject(names[0], seed)
    match kind:
        case "free":
            return accuracy_rows.free(subject, ratio)
        case "fast":
            return accuracy_rows.fast(subject, ratio, files, seconds)
        case "noise":
            return accuracy_rows.noise(subject, ratio)
        case "nodata":
            return accuracy_rows.no_data(subject, ratio)
        case "parts":
            return accuracy_rows.parts(subject, ratio)
        case "peer":
            return accuracy_rows.peer(subject, ratio)
        case "tune":
            return accuracy_tune.tune(subject, ratio)
        case _:
            return accuracy_tune.tune_peer(subject, ratio)


def main() -> None:
    """The command."""
    parser = command(__doc__)
    parser.add_argument("--seconds", type=float, default=SPEED_SECONDS, help="time to measure each pair of files for")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the rows are kept; the table beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    zoo.define_torchvision_operators()
    todo = to_run(keys(), options.only, options.redo, last(options.results, "row"))
    with tempfile.TemporaryDirectory() as folder:
        for key in () if options.table else todo:
            start = time.perf_counter()
            row = make(key, Path(folder), options.seconds)
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"row": key, **row}) + "\n")
            sys.stderr.write(f"{key:28} {time.perf_counter() - start:4.0f} s  {json.dumps(row)}\n")
    publish(table(last(options.results, "row")), options.results.with_suffix(".md"))


if __name__ == "__main__":
    main()
