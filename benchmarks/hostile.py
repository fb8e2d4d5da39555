"""Files that try to do harm, given to what reads them: none may run code, hang, take memory or end in a foreign error.

    python -m benchmarks.hostile --mutations 10000 --jobs 2

Every format's crafted files, each with a word on what it tries, and mutations of good files. They are read in worker
processes, one file after the other; a process that dies or stands still is counted, and another goes on behind it.
Code has run where a file appears in the folder that nobody is to write in. What is printed goes to
`benchmarks/results/hostile.json` and, as a table, to `hostile.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

from surgeon.errors import SurgeonError
from testbed.hostile import arrays as hostile_arrays
from testbed.hostile import files as hostile_files
from testbed.hostile import programs as hostile_programs
from testbed.hostile.files import Case
from testbed.hostile.mutations import mutate
from testbed.hostile.targets import Target, targets

RESULTS = Path(__file__).parent / "results"
FORMATS = ("pt2", "onnx", "npz", "json", "safetensors", "model")
MUTATED = FORMATS[:5]
#: What may not be, and what is reported beside it.
FAULTS = ("ran", "foreign", "hang", "crash", "memory")
SECONDS, STANDSTILL, MEMORY = 30, 180, 1000


class Hang(BaseException):
    """A file took longer to read than it may."""


def crafted(form: str) -> Iterator[Case]:
    """The files of a format that were made by hand."""
    for target in targets()[form]:
        yield from hostile_files.paths(target)
        match Path(target.name).suffix:
            case ".pt2":
                for word, content in (*hostile_programs.hostile(), *hostile_programs.harmless()):
                    yield Case(word, target, hostile_files.content_of(content))
            case ".onnx":
                yield from hostile_files.networks(target)
            case ".json":
                yield from hostile_files.documents(target)
                yield from hostile_files.claims(target)
            case ".safetensors":
                yield from hostile_files.safetensors(target)
            case _:
                yield from hostile_arrays.arrays(target)


def mutated(form: str, count: int) -> Iterator[Case]:
    """Mutations of the good files of a format, each from its number."""
    made = targets()[form]
    for index in range(count):
        target = made[index % len(made)]

        def make(path: Path, index: int = index, target: Target = target) -> None:
            path.write_bytes(mutate(target.content, Random(f"{form} {index}")))

        yield Case(f"mutation {index} of {target.name}", target, make)


def read(case: Case, folder: Path) -> dict[str, Any]:
    """What becomes of a file: the outcome, seconds, megabytes, and whether anything was printed or left behind."""
    for name, content in case.target.beside.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    path = folder / case.target.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    case.make(path)
    before = {each.relative_to(folder) for each in folder.rglob("*")}
    resident = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    outcome, told, start = "read", "", time.perf_counter()
    signal.alarm(SECONDS)
    try:
        case.target.read(path)
    except SurgeonError as error:
        outcome, told = "refused", str(error)
        if "allow_pickle" in told:
            outcome = "foreign"
    except Hang:
        outcome = "hang"
    except BaseException as error:  # noqa: BLE001 - what is foreign is counted
        outcome, told = "foreign", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    seconds, megabytes = time.perf_counter() - start, _memory("VmHWM") - resident
    if {each.relative_to(folder) for each in folder.rglob("*")} - before:
        outcome = "ran"
    elif megabytes > MEMORY:
        outcome = "memory"
    return {"word": case.word, "outcome": outcome, "told": told[:300], "seconds": seconds, "megabytes": megabytes}


def _memory(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1e3


def work(form: str, kind: str, count: int, first: int, log: Path) -> None:
    """Read the files from number `first` on, and write to `log` before and after each."""
    signal.signal(signal.SIGALRM, _hang)
    cases = crafted(form) if kind == "crafted" else mutated(form, count)
    scratch = Path(tempfile.mkdtemp(prefix="hostile-"))
    printed = scratch / "printed"
    with log.open("a") as out, printed.open("wb") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        for index, case in enumerate(cases):
            if index < first:
                continue
            out.write(json.dumps({"begins": index, "word": case.word}) + "\n")
            out.flush()
            folder = Path(tempfile.mkdtemp(dir=scratch))
            os.chdir(folder)
            length = printed.stat().st_size
            row = read(case, folder)
            sys.stdout.flush()
            sys.stderr.flush()
            os.chdir(scratch)
            shutil.rmtree(folder)
            out.write(json.dumps({**row, "printed": printed.stat().st_size - length}) + "\n")
            out.flush()
        out.write('{"done": true}\n')
    shutil.rmtree(scratch, ignore_errors=True)


def _hang(*_: object) -> None:
    raise Hang


def carry_out(form: str, kind: str, count: int) -> list[dict[str, Any]]:
    """All files of a format and kind, in as many processes as it takes."""
    rows: list[dict[str, Any]] = []
    first = 0
    while True:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            log.touch()
            command = [sys.executable, "-m", "benchmarks.hostile", "--work", form, kind, str(first), str(log)]
            process = subprocess.Popen([*command, "--mutations", str(count)], cwd=Path(__file__).parent.parent)
            stands = False
            while process.poll() is None and not stands:
                time.sleep(0.5)
                stands = time.time() - log.stat().st_mtime > STANDSTILL
            if stands:
                process.kill()
                process.wait()
            lines = [json.loads(line) for line in log.read_text().splitlines()]
        rows += [line for line in lines if "outcome" in line]
        if lines and "done" in lines[-1]:
            return rows
        if not lines:
            raise SystemExit(f"{form} {kind}: the worker did not begin")
        last = [line for line in lines if "begins" in line][-1]
        how = "hang" if stands else "crash"
        rows.append({"word": last["word"], "outcome": how, "told": f"status {process.returncode}", "seconds": 0.0,
                     "megabytes": 0.0, "printed": 0})  # fmt: skip
        first = last["begins"] + 1


def summary(form: str, kind: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the table."""
    outcomes = Counter(row["outcome"] for row in rows)
    slowest, largest = (max(rows, key=lambda row: row[name]) for name in ("seconds", "megabytes"))
    return {
        "format": form, "kind": kind, "files": len(rows),
        **{name: outcomes[name] for name in ("refused", "read", *FAULTS)},
        "printed": sum(row["printed"] > 0 for row in rows),
        "slowest": round(slowest["seconds"], 2), "slowest_file": slowest["word"],
        "megabytes": round(largest["megabytes"]), "largest_file": largest["word"],
        "faults": [row for row in rows if row["outcome"] in FAULTS][:50],
    }  # fmt: skip


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    head = ("format", "files", "", "refused", "read", "code ran", "foreign errors", "hangs", "crashes", "over 1 GB",
            "printed", "slowest, s", "most memory, MB")  # fmt: skip
    names = ("kind", "refused", "read", *FAULTS, "printed", "slowest", "megabytes")
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    lines += [f"| {' | '.join(str(row[name]) for name in ('format', 'files', *names))} |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mutations", type=int, default=10_000, help="of each of the formats")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS))
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        form, kind, first, log = options.work
        work(form, kind, options.mutations, int(first), Path(log))
        return
    tasks = [(form, "mutations") for form in options.formats if form in MUTATED and options.mutations]
    tasks += [(form, "crafted") for form in options.formats]
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(lambda task: _reported(task[0], task[1], options.mutations), tasks):
            _keep(row)
    print((RESULTS / "hostile.md").read_text())


def _keep(row: dict[str, Any]) -> None:
    """Put a row in its place in the results, and write the table anew."""
    path = RESULTS / "hostile.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    rows = [each for each in rows if (each["format"], each["kind"]) != (row["format"], row["kind"])]
    rows.append(row)
    rows.sort(key=lambda each: (each["kind"], FORMATS.index(each["format"])))
    path.write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "hostile.md").write_text(markdown(rows))


def _reported(form: str, kind: str, count: int) -> dict[str, Any]:
    row = summary(form, kind, carry_out(form, kind, count))
    for fault in row["faults"]:
        print(f"{form} {kind}: {fault['outcome']}: {fault['word']}: {fault['told'][:200]}", flush=True)
    print({name: value for name, value in row.items() if name != "faults"}, flush=True)
    return row


if __name__ == "__main__":
    main()
