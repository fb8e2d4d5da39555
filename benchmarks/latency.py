"""Latency: predictions, budgets, plans against Torch-Pruning's, int8, verdicts and the kit, on the clock of this CPU.

    python -m benchmarks.latency --files DIR            # all, resuming where a run was broken off
    python -m benchmarks.latency --files DIR --prepare  # make the files that need no measurement, on a busy machine say
    python -m benchmarks.latency --only predict:mobile --redo
    python -m benchmarks.latency --table                # print the tables of the results so far
    python -m benchmarks.latency --threads 2            # with two threads, on the wall; let nothing else run

Rows are `predict:MODEL`, `land:MODEL:SHARE`, `equal_macs:MODEL`, `efficiency:MODEL`, `align:MODEL`, `int8:MODEL`,
`shapes:MODEL`, `aa` and `kit:MODEL`; one line of JSON a row in `benchmarks/results/latency.jsonl`, or with several
threads in `latency_2threads.jsonl`. Everything is measured in onnxruntime by one thread's CPU time, or with several
threads on the wall, the base and the other file interleaved in one run (`surgeon.benchmark`). A model's profile is
taken in its row `predict`, and where there is none in the folder of files; `land` takes its own. Exports are the slow
part: with `--files` they are kept, and used again where they fit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks import latency_rows as rows
from benchmarks import peers
from benchmarks.latency_aa import aa
from benchmarks.latency_kit import kit
from benchmarks.latency_subject import Subject
from benchmarks.latency_table import table
from benchmarks.rows import command, last, publish, to_run
from surgeon.errors import SurgeonError

RESULTS = Path(__file__).parent / "results" / "latency.jsonl"

PREDICTED = ("mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "resnet50", "vit_small_patch16_224")
LEFT = (0.5, 0.3)
PEERS = ("mobilenet_v2", "efficientnet_b0", "resnet18", "resnet50")
EFFICIENT = ("resnet18", "resnet50", "vit_small_patch16_224", "convnext_tiny", "mobilenet_v2", "efficientnet_b0")
ALIGNED = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0")
INT8 = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0")
KIT = ("mobilenet_v2",)
SHAPED = ("mobilenet_v2", "resnet18")

# For the estimate of the time alone, in seconds.
_EXPORT = 12
_PROFILE = 12
_TRIAL = 1.5

Row = dict[str, Any]


def keys() -> list[str]:
    """All rows."""
    kinds = {"predict": PREDICTED, "land": PREDICTED, "equal_macs": PEERS, "efficiency": EFFICIENT, "align": ALIGNED,
             "int8": INT8, "kit": KIT, "shapes": SHAPED}
    found = [f"{kind}:{name}" for kind, names in kinds.items() for name in names if kind != "land"]
    found += [f"land:{name}:{left:g}" for name in PREDICTED for left in LEFT]
    return [*found, "aa"]


def minutes(key: str, options: argparse.Namespace, files: Path) -> float:
    """About how long a row takes with the files that are there."""
    kind, _, rest = key.partition(":")
    name = rest.partition(":")[0]
    one = options.seconds * 1.3 + 3  # a measurement, with opening the files and explaining the layouts

    def missing(parts: Iterable[object]) -> int:
        return sum(_EXPORT for part in parts if not (files / f"{name}_{part}.onnx").exists())

    odd = rows.ODD[: min(3, options.plans)]
    taken = {
        "predict": options.plans * one + missing(range(options.plans)) + _PROFILE + _EXPORT,
        "land": 4 * _EXPORT + _PROFILE + one + 10,
        "equal_macs": 2 * (_EXPORT + one) + 3 * missing(rows.ROUNDED) + 10,
        "efficiency": _EXPORT + one + 10,
        "align": len(odd) * (_EXPORT + one + 5) + missing(odd),
        "int8": 5 * one + 60,
        "shapes": 11 * _PROFILE + 3 * (3 * _EXPORT + 3 * one + 10),
        "kit": 3 * _PROFILE + 6 * _EXPORT + 60,
        "aa": options.trials * _TRIAL,
    }
    return taken[kind] / 60


def make(key: str, options: argparse.Namespace, files: Path) -> Row:
    """Measure one row."""
    kind, _, rest = key.partition(":")
    name, _, share = rest.partition(":")
    if kind == "aa":
        found = aa(trials=options.trials, threads=options.threads)
        return {**found, "ratio": found["called"]}
    subject, seconds = Subject(name, files, options.threads), options.seconds
    match kind:
        case "predict":
            found = rows.predict(subject, seconds, options.plans)
            return {"ratio": found["mean"], **found}
        case "land":
            return rows.land(subject, float(share), seconds)
        case "equal_macs":
            return rows.equal_macs(subject, seconds)
        case "efficiency":
            return rows.efficiency(subject, seconds)
        case "align":
            return rows.align(subject, seconds, min(3, options.plans))
        case "int8":
            return rows.int8(subject, seconds)
        case "shapes":
            return rows.shapes(subject, seconds)
        case _:
            return kit(subject)


def run(todo: list[str], options: argparse.Namespace, files: Path) -> None:
    """Make these rows and append them to the results; one that fails is told, and made the next time."""
    guesses = {key: minutes(key, options, files) for key in todo}
    guesses["in all"] = sum(guesses.values())
    sys.stderr.write("".join(f"{key:40} about {guess:5.1f} min\n" for key, guess in guesses.items()) + "\n")
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for key in todo:
        start = time.perf_counter()
        try:
            row = make(key, options, files)
        except SurgeonError as error:
            sys.stderr.write(f"{key:40} FAILED {type(error).__name__}: {error}\n")
            continue
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"row": key, **row}) + "\n")
        sys.stderr.write(f"{key:40} {row['ratio']:7.3f}  {time.perf_counter() - start:4.0f} s\n")


def prepare(todo: list[str], options: argparse.Namespace, files: Path) -> None:
    """Make the files of these rows that depend on no measurement."""
    for key in todo:
        kind, _, name = key.partition(":")
        if kind in ("predict", "equal_macs", "align"):
            start = time.perf_counter()
            rows.prepare(kind, Subject(name, files), options.plans)
            sys.stderr.write(f"{key:40} {time.perf_counter() - start:4.0f} s\n")


def read(results: Path = RESULTS) -> dict[str, Row]:
    """The last result of each row, in the order of `keys`."""
    found = last(results, "row")
    return {key: found[key] for key in keys() if key in found}


def _todo(options: argparse.Namespace) -> list[str]:
    """The rows that are asked for and have no result yet."""
    todo = to_run(keys(), options.only, options.redo, read(options.results))
    if any(key.startswith("equal_macs") for key in todo):
        peers.torch_pruning()
    return todo


def main() -> None:
    """The command."""
    parser = command(__doc__)
    parser.add_argument("--prepare", action="store_true", help="only make files that need no measurement")
    parser.add_argument("--files", type=Path, help="a folder for the ONNX files; by default they are not kept")
    parser.add_argument("--seconds", type=float, default=6, help="time to measure each pair of files for")
    parser.add_argument("--plans", type=int, default=rows.PLANS, help="random plans of each model")
    parser.add_argument("--trials", type=int, default=200, help="verdicts on equal models")
    parser.add_argument("--threads", type=int, default=1, help="with more than one, milliseconds are on the wall")
    parser.add_argument("--results", type=Path, help="where the rows are kept; the table beside it")
    options = parser.parse_args()
    several = f"_{options.threads}threads" if options.threads > 1 else ""
    options.results = options.results or RESULTS.with_stem(f"latency{several}")
    if options.prepare and not options.files:
        parser.error("--prepare makes files to be kept: name a folder with --files")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if not options.table:
        with tempfile.TemporaryDirectory() as folder:
            files = (options.files or Path(folder)).resolve()
            files.mkdir(parents=True, exist_ok=True)
            (prepare if options.prepare else run)(_todo(options), options, files)
    if options.prepare:
        return
    publish(table(read(options.results), options.threads), options.results.with_suffix(".md"))


if __name__ == "__main__":
    main()
