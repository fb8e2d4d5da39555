"""Published ONNX files at the jobs that they were trained for, right answers known, before and after.

    pip download --no-deps -d WHEELS rapidocr-onnxruntime==1.4.4 silero-vad==6.2.3 speechmos==0.0.1.1 nudenet==3.4.2
    python -m benchmarks.jobs WHEELS --pictures FOLDER

- **recognizer, orientation, detector** of PP-OCRv4: text drawn with DejaVu's fonts (Debian's fonts-dejavu), words of
  Python's own documentation. Characters that are read right, lines told which way up they are, and how much of what is
  text on a page or taken for it is both.
- **speech**, silero's detector: frames that it is right about, in speech of espeak-ng in noise.
- **quality**, DNSMOS: the rank correlation of what it gives a clip with how much louder the speech is than the noise.
- **boxes**, nudenet's YOLOv8: those on photographs (of FOLDER) that the original and the smaller file agree on.

Each file is made so many times as fast, by measured milliseconds with one thread, or less a share of its MACs, without
data and with unlabeled samples, of other fonts, words, voices and pictures than those that are tested. Beside it is
what onnxsim's structured pruning makes of the same file at the same speed, with such samples, where it is installed.
`--int8` also quantizes what comes out. A line of JSON a row goes to `benchmarks/results/jobs.jsonl`, the table to
`jobs.md`.
"""

from __future__ import annotations

import importlib
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import surgeon
from benchmarks import jobs_photographs, jobs_sound, jobs_text
from benchmarks.job import Job
from benchmarks.onnx_files import found
from benchmarks.rows import append, command, last, publish, to_run
from surgeon.device.benchmark import Verdict
from surgeon.errors import SurgeonError, first_line
from surgeon.onnx_import.module import OnnxModel

RESULTS = Path(__file__).parent / "results"
ROWS, TABLE = RESULTS / "jobs.jsonl", RESULTS / "jobs.md"
#: How much faster a file is to be, or what share of its MACs goes.
TARGETS = ("1.5x", "1.6x", "2x", "40%", "50%")
DATA, NONE, OTHER = "unlabeled data", "no data", "onnxsim"
#: How often the share that onnxsim removes is halved, and how many runs it calibrates with, and int8.
HALVED, FEW = 5, 32

_PEAK = """
import sys, numpy, onnxruntime

def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
with open("/proc/self/clear_refs", "w") as peaks:
    peaks.write("5")  # forget the peak so far
before = kilobytes("VmRSS")
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
with numpy.load(sys.argv[2]) as feeds:
    session.run(None, dict(feeds))
print(kilobytes("VmHWM") - before)
"""


def peak(path: Path, feeds: Mapping[str, np.ndarray], folder: Path) -> float:
    """MiB that loading and running a file takes beside onnxruntime itself, at most; Linux tells it."""
    arrays: dict[str, Any] = dict(feeds)
    np.savez(folder / "feeds.npz", **arrays)
    ran = subprocess.run(
        [sys.executable, "-c", _PEAK, str(path), str(folder / "feeds.npz")], check=True, capture_output=True, text=True
    )
    return round(int(ran.stdout) / 1024, 1)


def smaller(job: Job, path: Path, target: str, data: bool, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that surgeon makes, and what is to be said of it."""
    net = surgeon.load_onnx(path)
    assert isinstance(net, OnnxModel)
    inputs, given = net.feeds(job.runs(1)[0]), net.feeds(job.unlabeled())
    amount = float(target[:-1])
    budget, ratio = ("latency", 1 - 1 / amount) if target.endswith("x") else ("macs", amount / 100)
    start = time.perf_counter()
    slim, report = surgeon.shrink(
        net, ratio, budget=budget, data=given if data else None, samples=job.samples, example_inputs=inputs,
        threads=1 if budget == "latency" else None, return_report=True,
    )
    made = surgeon.export(slim, folder / "slim.onnx", example_inputs=inputs)
    seconds = time.perf_counter() - start
    longest = sorted(report.seconds.items(), key=lambda each: -each[1])[:3]
    return made.path, {
        "own file": made.original is not None, "seconds": round(seconds, 1),
        "longest": {name: round(taken, 1) for name, taken in longest}, "macs": round(report.macs.removed, 3),
    }


def others(job: Job, path: Path, target: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that onnxsim's structured pruning makes: of as little as brings the speed that is asked for."""
    onnxsim: Any = importlib.import_module("onnxsim")
    feeds = job.runs(FEW)
    amount, low, high, best = float(target[:-1]), 0.0, 0.95, None
    start = time.perf_counter()
    for _ in range(HALVED):
        share = (low + high) / 2
        made = onnxsim.apply_structured_wanda_pruning(str(path), feeds, sparsity=share)
        onnx.save(made, folder / "other.onnx")
        verdict = surgeon.benchmark(path, folder / "other.onnx", threads=1, feeds=feeds[0], seconds=2.0)
        ratio = verdict.ratio.value
        low, high, best = (low, share, made) if ratio >= amount else (share, high, best)
    if best is None:
        raise SurgeonError(f"not {amount} times as fast, whatever is removed")
    onnx.save(onnxsim.apply_pruning_finetune(str(path), best, feeds), folder / "other.onnx")
    return folder / "other.onnx", {"own file": True, "seconds": round(time.perf_counter() - start, 1)}


def measure(job: Job, path: Path, target: str, how: str, folder: Path, int8: bool) -> dict[str, Any]:
    """The row of a file, made smaller."""
    torch.manual_seed(0)
    feeds = job.runs(1)[0]
    made, told = others(job, path, target, folder) if how == OTHER else smaller(
        job, path, target, how == DATA, folder
    )
    verdict: Verdict = surgeon.benchmark(path, made, threads=1, feeds=feeds)
    row = {
        "before": job.scored(path), "after": job.scored(made), **told,
        "bytes": [path.stat().st_size, made.stat().st_size], "ms": [verdict.base.low, verdict.slim.low],
        "ratio": [verdict.ratio.low, verdict.ratio.value, verdict.ratio.high],
        "MiB": [peak(each, feeds, folder) for each in (path, made)],
    }
    if int8:
        whole = surgeon.quantize(made, job.runs(FEW), threads=1, path=folder / "slim.int8.onnx", base=path)
        row["int8"] = {"precision": whole.precision, "reason": whole.reason}
        if whole.accepted and whole.overall is not None:
            row["int8"] |= {"ms": whole.overall.slim.low, "after": job.scored(whole.path)}
    return row


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "`python -m benchmarks.jobs`: what is right, in percent, with the half of its 95 % interval; one thread; "
        "memory beside onnxruntime's own.\n",
        "| job, target, with | before | after | ms before | after | speed-up | MiB | bytes | seconds | int8 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, row in sorted(rows.items()):
        if "refused" in row:
            lines.append(f"| {name} | refused: {row['refused']} | | | | | | | | |")
            continue
        low, value, high = row["ratio"]
        before, after = (f"{share:.2f} ± {half:.2f}" for share, half in (row["before"], row["after"]))
        memory = " → ".join(f"{each:.0f}" for each in row.get("MiB", ()))
        quantized = row.get("int8", {})
        int8 = f"{quantized['ms']:.2f} ms, {quantized['after'][0]:.2f}" if "ms" in quantized else (
            quantized.get("reason", "")
        )
        lines.append(
            f"| {name} | {before} | {after} | {row['ms'][0]:.2f} | {row['ms'][1]:.2f} | {value:.2f} ({low:.2f}–"
            f"{high:.2f}) | {memory} | {row['bytes'][0]:,} → {row['bytes'][1]:,} | {row['seconds']} | {int8} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("places", nargs="*", type=Path, help="wheels, .onnx files, and folders of them")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="photographs; without them, there are no boxes")
    parser.add_argument("--int8", action="store_true", help="quantize what comes out too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.table:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            files = {path.name: path for _, path in found(given.places, folder)}
            files |= {f"{path.parent.name}/{path.name}": path for _, path in found(given.places, folder)}
            jobs = {**jobs_text.JOBS, **jobs_sound.JOBS}
            if given.pictures is not None and "320n.onnx" in files:
                jobs |= jobs_photographs.jobs(given.pictures, files["320n.onnx"])
            every = {
                f"{name}, {target}, {how}": (job, target, how)
                for (name, job), target, how in itertools.product(jobs.items(), TARGETS, (DATA, NONE, OTHER))
                if job.file in files and (how != OTHER or target.endswith("x"))
            }
            for label in to_run(every, given.only, given.redo, last(ROWS, "row")):
                job, target, how = every[label]
                try:
                    row = measure(job, files[job.file], target, how, folder, given.int8)
                except ImportError as error:
                    row = {"refused": f"{error.name} is not installed"}
                except SurgeonError as error:
                    row = {"refused": first_line(error)}
                append(ROWS, {"row": label, **row})
    publish(table(last(ROWS, "row")), TABLE)


if __name__ == "__main__":
    main()
