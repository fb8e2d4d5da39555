"""Speed-up at half the MACs, time and memory of the tool itself; against Torch-Pruning.

    python -m benchmarks.speed                          # all, resuming where a run was broken off
    python -m benchmarks.speed --only speed:resnet --redo
    python -m benchmarks.speed --files DIR              # keep the ONNX files there, and use those that are there
    python -m benchmarks.speed --table                  # print the tables of the results so far

Rows are `speed:MODEL:SYSTEM`, `time:MODEL` and `memory:MODEL`; one line of JSON a row in
`benchmarks/results/speed.jsonl`. Speed is measured by `surgeon.benchmark`: one thread's CPU time in onnxruntime, the
base and the smaller model interleaved. MACs are counted by surgeon's tracer for all systems alike. The time of the
tools is CPU time of one thread, the tools taking turns in one process. Memory is taken in a fresh process.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import surgeon
from benchmarks import peers
from benchmarks.coverage import redraw
from benchmarks.rows import command, last, publish, to_run
from surgeon.cost.cost import Cost
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import couple
from surgeon.pipeline.decision import prepare
from surgeon.pipeline.options import Options
from surgeon.surgery import operate
from testbed import zoo

RESULTS = Path(__file__).parent / "results" / "speed.jsonl"
TABLE = Path(__file__).parent / "results" / "speed.md"

SPEED = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "vit_b_32")
TIME = ("resnet50", "vit_b_32")
MEMORY = ("vgg11_bn", "resnet50", "vit_b_32")
SYSTEMS = {"surgeon": None, "torch-pruning": None, "torch-pruning, round_to=16": 16}
ROUNDS = 7
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

Inputs = tuple[Tensor, ...]
Row = dict[str, Any]


def load(name: str) -> tuple[nn.Module, Inputs]:
    """A torchvision model with random weights, none of them constant, and one image."""
    model, inputs = zoo.load("torchvision", name)
    redraw(model)
    assert isinstance(inputs, tuple)
    return model, tuple(value[:1] for value in inputs)


def macs(model: nn.Module, inputs: Inputs) -> float:
    """Multiply-accumulate operations a sample."""
    return Cost(couple(trace(model, inputs))).macs({})


def speed(name: str, system: str, files: Path, seconds: float) -> Row:
    """Measured speed-up of one model by one system."""
    base, slim, facts = (files / f"{name}-{part}" for part in ("base.onnx", f"{system}.onnx", f"{system}.json"))
    if not (base.exists() and slim.exists() and facts.exists()):
        facts.write_text(json.dumps(_build(name, system, base, slim)), encoding="utf-8")
    verdict = surgeon.benchmark(base, slim, threads=1, seconds=seconds)
    return json.loads(facts.read_text(encoding="utf-8")) | {
        "ratio": verdict.ratio.value, "low": verdict.ratio.low, "high": verdict.ratio.high,
        "decision": verdict.decision, "noise": verdict.noise, "runs": verdict.runs,
        "base_ms": verdict.base.low, "slim_ms": verdict.slim.low,
        "base_blocked": verdict.layout.base.blocked, "slim_blocked": verdict.layout.slim.blocked,
        "fallen": len(verdict.layout.fallen),
    }


def _build(name: str, system: str, base: Path, slim: Path) -> Row:
    model, inputs = load(name)
    before = macs(model, inputs)
    if not base.exists():
        surgeon.export(model, base, example_inputs=inputs)
    ratio = None
    if system == "surgeon":
        result = surgeon.shrink(model, 0.5, example_inputs=inputs, compensate=False)
        after = macs(result, inputs)
    else:
        recipe = peers.Recipe(round_to=SYSTEMS[system])
        found = peers.land(
            lambda ratio: peers.cut(model, inputs, ratio, recipe), lambda m: macs(m, inputs), before / 2
        )
        result, after, ratio = found.model, found.macs, found.ratio
    surgeon.export(result, slim, example_inputs=inputs)
    return {"macs": [before, after], "removed": 1 - after / before, "channels": ratio}


def took(action: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and what `action` returned."""
    start = time.process_time()
    result = action()
    return time.process_time() - start, result


def times(name: str) -> Row:
    """CPU seconds to a plan and to the smaller model, of surgeon and of Torch-Pruning in turn."""
    model, inputs = load(name)
    rounds: dict[str, list[float]] = {key: [] for key in ("plan", "operate", "peer_graph", "peer_step")}
    form = ""
    for index in range(ROUNDS + 1):
        other = copy.deepcopy(model)
        graph, pruner = took(lambda: peers.build(other, inputs, 0.3))  # noqa: B023  (called at once)
        step, _ = took(pruner.step)
        plan, made = took(lambda: prepare(model, Options.of(ratio=0.5, importance="magnitude"), inputs).decide())
        apply, operation = took(lambda: operate(model, made.groups, made.keep))  # noqa: B023
        form = operation.form
        if index:  # the first round loads what both need
            for key, value in zip(rounds, (plan, apply, graph, step), strict=True):
                rounds[key].append(value)
    median = {key: statistics.median(values) for key, values in rounds.items()}
    ours, theirs = median["plan"] + median["operate"], median["peer_graph"] + median["peer_step"]
    return {**median, "rounds": rounds, "form": form, "ratio": ours / theirs}


def memory(name: str) -> Row:
    """Peak growth of the resident memory while shrinking; for a fresh process, which loads all code first."""
    warm = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3))
    surgeon.shrink(warm, 0.5, example_inputs=torch.zeros(2, 3, 8, 8), compensate=False)
    model, inputs = load(name)
    own = sum(value.nbytes for value in (*model.parameters(), *model.buffers()))
    before = _resident()
    with torch.no_grad():
        model(*inputs)
    forward = max(0, _peak() - before)
    before = _resident()
    slim, report = surgeon.shrink(model, 0.5, example_inputs=inputs, compensate=False, return_report=True)
    grown = max(0, _peak() - before)
    return {
        "model_mb": own / 2**20, "forward_mb": forward / 2**20, "shrink_mb": grown / 2**20,
        "ratio": grown / own, "reached": report.reached,
        "slim_mb": sum(value.nbytes for value in (*slim.parameters(), *slim.buffers())) / 2**20,
    }


def _resident() -> int:
    """Bytes resident now, after the allocator gave back what it can; where that can't be told, the peak so far.

    On Linux the peak starts anew here: `ru_maxrss` would be that of the process that started this one, if larger.
    """
    gc.collect()
    if LIBC is None:
        return _peak()
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _peak() -> int:
    """Bytes resident at most since `_resident` was called; since the process began where that can't be told."""
    if LIBC is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def _memory_apart(name: str) -> Row:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.speed", "--child", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout.splitlines()[-1])


def keys() -> list[str]:
    """All rows."""
    rows = [f"speed:{name}:{system}" for name in SPEED for system in SYSTEMS]
    return rows + [f"time:{name}" for name in TIME] + [f"memory:{name}" for name in MEMORY]


def run(todo: Iterable[str], files: Path, seconds: float, results: Path = RESULTS) -> None:
    """Make these rows and append them to the results."""
    results.parent.mkdir(exist_ok=True)
    for key in todo:
        kind, name, *system = key.split(":")
        start = time.perf_counter()
        match kind:
            case "speed":
                row = speed(name, system[0], files, seconds)
            case "time":
                row = times(name)
            case _:
                row = _memory_apart(name)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"row": key, **row}) + "\n")
        sys.stderr.write(f"{key:50} {row['ratio']:6.2f}  {time.perf_counter() - start:4.0f} s\n")


def read(results: Path = RESULTS) -> dict[str, Row]:
    """The last result of each row."""
    return last(results, "row")


def table(rows: dict[str, Row]) -> str:
    """The results in Markdown."""
    lines = [
        "Speed-up at half the MACs: onnxruntime, one thread, float32, one image; 95 % interval. Fallen: convolutions "
        "that onnxruntime runs in its blocked layout in the base, but no longer.",
        "",
        "| model | system | MACs removed | speed-up | interval | ms | fallen |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    found = [(name, system, rows.get(f"speed:{name}:{system}")) for name in SPEED for system in SYSTEMS]
    lines += [
        f"| {name} | {system} | {row['removed']:.1%} | **{row['ratio']:.2f}** | "
        f"{row['low']:.2f}–{row['high']:.2f} | {row['base_ms']:.1f} → {row['slim_ms']:.1f} | "
        f"{row['fallen']} of {row['base_blocked']} |"
        for name, system, row in found
        if row
    ]
    lines += [
        "",
        f"Seconds of CPU time to the smaller model, one thread, medians of {ROUNDS} rounds in turn; verification "
        "apart. Operate holds the operators that the smaller model calls against the predicted ones.",
        "",
        "| model | surgeon: plan | operate | Torch-Pruning: graph | step | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in TIME:
        if row := rows.get(f"time:{name}"):
            shown = ("plan", "operate", "peer_graph", "peer_step", "ratio")
            cells = [f"{row[key]:.2f}" for key in shown]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "Peak growth of resident memory, MB: of `shrink` with its verification in float64 and the smaller model, and, "
        "to compare, of one float32 forward of the base.",
        "",
        "| model | own bytes | one forward | shrink | shrink ÷ own |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {row['model_mb']:.0f} | {row['forward_mb']:.0f} | {row['shrink_mb']:.0f} "
        f"| **{row['ratio']:.2f}** |"
        for name in MEMORY
        if (row := rows.get(f"memory:{name}"))
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    parser = command(__doc__)
    parser.add_argument("--files", type=Path, help="a folder for the ONNX files; by default they are not kept")
    parser.add_argument("--seconds", type=float, default=20, help="time to measure each pair of files for")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.child:
        sys.stdout.write(json.dumps(memory(options.child)) + "\n")
        return
    if not options.table:
        peers.torch_pruning()
        todo = to_run(keys(), options.only, options.redo, read())
        with tempfile.TemporaryDirectory() as folder:
            files = options.files or Path(folder)
            files.mkdir(parents=True, exist_ok=True)
            run(todo, files, options.seconds)
    publish(table(read()), TABLE)


if __name__ == "__main__":
    main()
