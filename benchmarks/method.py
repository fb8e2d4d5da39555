"""The method: train, prune, retrain. What was published about it, reproduced or refuted, and what must hold exactly.

    python -m benchmarks.method                         # all, resuming where a run was broken off
    python -m benchmarks.method --only findings --only study
    python -m benchmarks.method --table                 # print the tables of the results so far

Rows of JSON go to `benchmarks/results/method.jsonl`, the tables to `method.md` and a plot of each finding to
`finding_NAME.svg` beside it. What runs start from and resume from is kept in `build/method`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import method_training
from benchmarks.method_findings import FINDINGS, SEEDS, Effect, effect, figure, key, summary
from benchmarks.rows import last
from surgeon.reporting.figures import svg
from surgeon.study import Run, Study

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "method.jsonl"
TABLE = HERE / "results" / "method.md"
WORK = HERE.parent / "build" / "method"
TASKS = {
    "connected": "benchmarks.method_tasks:Connected", "residual": "benchmarks.method_tasks:Convolutional",
}
#: Benchmarks of their own, which this command makes too.
OTHERS = {"masked": "benchmarks.method_masked", "iterative": "benchmarks.method_iterative"}
PARTS = ("findings", "study", "resumed", "processes", *OTHERS)
#: The study that is killed: 24 runs.
STUDY = [
    "--ratio", "0.5", "--ratio", "0.75", "--criterion", "l1", "--criterion", "l2", "--baseline", "random",
    "--baseline", "small", "--seeds", "3", "--latency",
]  # fmt: skip
KILLED_AFTER = 8

Row = dict[str, Any]


def write(name: str, row: Row) -> None:
    """Add a row to the results."""
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"row": name, **row}) + "\n")


def findings(redo: bool) -> None:
    """Every run that a finding needs, a seed at a time."""
    wanted = list(dict.fromkeys(pair for finding in FINDINGS for pair in finding.runs()))
    for seed in SEEDS:
        for network, task in TASKS.items():
            done = {} if redo else last(RESULTS, "row")
            runs = [run for name, run in wanted if name == network and run.seed == seed and key(name, run) not in done]
            if not runs:
                continue
            study = Study(task, WORK / network, runs)
            for row in study.run():
                if "error" in row:
                    sys.stderr.write(f"{row['key']}: {row['error']}\n")
                    continue
                write(key(network, _run(row)), {name: row[name] for name in row if name not in ("key", "run")})
            sys.stderr.write(f"{network}, seed {seed}: {len(runs)} runs\n")


def study(redo: bool) -> None:
    """A study of 24 runs by one command, killed and started again; and the same on a local Ray cluster."""
    folder, other = WORK / "study", WORK / "study-ray"
    if redo:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(other, ignore_errors=True)
    command = [sys.executable, "-m", "surgeon", "study", TASKS["connected"], *STUDY]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "-o", str(folder)], env=environment, cwd=HERE.parent)
    while process.poll() is None and len(list(folder.glob("rows/*.json"))) < KILLED_AFTER:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    killed = process.wait()
    before = _stamps(folder)
    start = time.perf_counter()
    code = subprocess.run([*command, "-o", str(folder)], env=environment, cwd=HERE.parent, check=False).returncode
    seconds = time.perf_counter() - start
    after = _stamps(folder)
    row = {
        "runs": len(after), "killed": killed, "done_before": len(before), "code": code, "seconds": seconds,
        "kept": sum(after.get(name) == at for name, at in before.items()),
        "files": sorted(path.name for path in folder.iterdir() if path.is_file()),
    }
    for path in (folder / "table.md", folder / "metric-macs.svg", folder / "metric-latency.svg"):
        if path.is_file():
            shutil.copy(path, RESULTS.with_name(f"method_study_{path.name}".replace("metric-", "")))
    ray = subprocess.run(
        [*command, "--no-latency", "--ray", "local", "-o", str(other)], env=environment, cwd=HERE.parent, check=False
    )
    here, there = _metrics(folder), _metrics(other)
    row |= {"ray_code": ray.returncode, "ray_runs": len(there), "ray_equal": sum(here[k] == there.get(k) for k in here)}
    write("study", row)


def resumed(redo: bool) -> None:
    """Killed at a random step and resumed."""
    done = {} if redo else last(RESULTS, "row")
    for network in TASKS:
        for seed in (0, 1, 2):
            name = f"resumed:{network}:{seed}"
            if name not in done:
                write(name, method_training.resumed(network, seed))


def processes(redo: bool) -> None:
    """One process and two."""
    done = {} if redo else last(RESULTS, "row")
    for seed in (0, 1, 2):
        name = f"processes:connected:{seed}"
        if name not in done:
            write(name, method_training.processes("connected", seed))


def table(rows: dict[str, Row]) -> str:
    """All tables."""
    parts = ["\n".join(part(rows)) for part in (_findings_table, _exact_table)]
    parts += [module.table(last(module.RESULTS, "row")).strip() for module in _others()]
    return "\n\n".join(part for part in parts if part) + "\n"


def draw(rows: dict[str, Row]) -> None:
    """The plot of each finding."""
    for finding in FINDINGS:
        effects = [found for case in finding.cases if (found := effect(finding, case, rows)) is not None]
        if effects:
            path = RESULTS.with_name(f"finding_{finding.name}.svg")
            path.write_text(svg(figure(finding, effects)), encoding="utf-8")


def _findings_table(rows: dict[str, Row]) -> Iterator[str]:
    yield (
        "**Published findings**: what a side gains over the other in points of accuracy on the 5,000 test images, seed "
        "by seed: mean, its 95 % interval by Student's distribution, and the seeds in favor. Reproduced where the "
        "interval is above zero, refuted where it is below, else open; nothing is corrected for the number of "
        "comparisons. Everything but what is compared is the same on both sides. *connected*: 196-128-64-10; "
        "*residual*: three stages of a block; both on 3,000 images of Fashion-MNIST at 14 × 14."
    )
    yield ""
    yield "| finding | of | gain | interval | seeds | verdict |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for finding in FINDINGS:
        effects = [found for case in finding.cases if (found := effect(finding, case, rows)) is not None]
        if effects:
            yield f"| **{finding.claim}** | | | | | {summary(effects)} |"
        for each in effects:
            cells = [_sides(each), str(each.case), f"{each.mean:+.2f}", _interval(each), _favor(each), each.verdict]
            yield f"| {' | '.join(cells)} |"


def _exact_table(rows: dict[str, Row]) -> Iterator[str]:
    yield "**What must hold exactly**:"
    yield ""
    yield "| what | found |"
    yield "| --- | --- |"
    found = {name: row for name, row in rows.items() if name.startswith("resumed:")}
    for name, row in found.items():
        same = "the same weights, losses and plan, bit for bit" if _same(row) else "**different**"
        _, network, seed = name.split(":")
        yield (
            f"| {network}, seed {seed}: killed at step {row['killed']} of {row['steps']} (exit code {row['code']}), "
            f"resumed from {row['resumed']}, {row['units'][0]} → {row['units'][1]} units | {same} |"
        )
    for name, row in rows.items():
        if name.startswith("processes:"):
            _, network, seed = name.split(":")
            plans = row["same_plan_on_both"], row["same_plan_as_one"]
            yield (
                f"| {network}, seed {seed}: {row['steps']} steps on 1 and on 2 processes, {row['units'][0]} → "
                f"{row['units'][1]} units | losses {row['losses_apart']:.1e} apart; same plan on both ranks: "
                f"{plans[0]}, and as on one process: {plans[1]} |"
            )
    if "study" in rows:
        row = rows["study"]
        yield (
            f"| a study of {row['runs']} runs, killed (exit code {row['killed']}) when {row['done_before']} were done, "
            f"started again | exit code {row['code']}, {row['kept']} of {row['done_before']} rows untouched; "
            f"{', '.join(row['files'])} |"
        )
        yield (
            f"| the same on a local Ray cluster | exit code {row['ray_code']}, {row['ray_equal']} of {row['ray_runs']} "
            "rows with equal accuracy, before and after retraining |"
        )


def _same(row: Row) -> bool:
    return bool(row["equal"] and row["losses"] and row["plan"])


def _sides(each: Effect) -> str:
    return f"{each.better} against {each.worse}"


def _interval(each: Effect) -> str:
    return f"{each.low:+.2f} to {each.high:+.2f}"


def _favor(each: Effect) -> str:
    return f"{sum(value > 0 for value in each.differences)} of {len(each.differences)}"


def _run(row: Row) -> Run:
    return Run(**row["run"])


def _others() -> Iterator[Any]:
    for module in map(importlib.import_module, OTHERS.values()):
        if module.RESULTS.exists():
            yield module


def _stamps(folder: Path) -> dict[str, float]:
    """The seconds that each run took, which no other run of it would take."""
    return {path.name: json.loads(path.read_text())["seconds"] for path in folder.glob("rows/*.json")}


def _metrics(folder: Path) -> dict[str, Any]:
    rows = (json.loads(path.read_text()) for path in folder.glob("rows/*.json"))
    return {row["key"]: (row["before"], row["after"]) for row in rows}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; may be given several times")
    parser.add_argument("--redo", action="store_true", help="run again what has a result")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.parent.mkdir(exist_ok=True)
    own: dict[str, Callable[[bool], None]] = {
        "findings": findings, "study": study, "resumed": resumed, "processes": processes,
    }
    for part in () if options.table else options.only or PARTS:
        if part in own:
            own[part](options.redo)
        else:
            importlib.import_module(OTHERS[part]).rows()
    rows = last(RESULTS, "row")
    draw(rows)
    text = table(rows)
    TABLE.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
