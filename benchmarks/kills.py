"""A process is killed before every system call that changes a file: what is left is the old or the new, never neither.

    python -m benchmarks.kills                 # all, in a quarter of an hour on two cores
    python -m benchmarks.kills --only save     # those whose name begins so

For each writer, a first run under `strace` lists the calls of the target folder and of what is beside it that create,
write, rename, link or remove, or wait for the disk. Then a fresh process is killed (SIGKILL) on entering each of them,
every single one, over a copy of the same old files. After each kill the folder is read as it lies, the writer runs
again, and what scratch files are left then is counted. Processes are forked from one that has imported all. The table
is `benchmarks/results/kills.md`, its rows are in `kills.jsonl` beside it.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.kills_writers import TRIALS
from benchmarks.rows import last

RESULTS = Path(__file__).parent / "results" / "kills.jsonl"
TABLE = Path(__file__).parent / "results" / "kills.md"
CALLS = (
    "open", "openat", "creat", "mkdir", "mkdirat", "write", "pwrite64", "writev", "pwritev", "truncate", "ftruncate",
    "fallocate", "copy_file_range", "sendfile", "rename", "renameat", "renameat2", "link", "linkat", "symlink",
    "symlinkat", "unlink", "unlinkat", "rmdir",
    "chmod", "fchmod", "fchmodat", "chown", "fchownat", "utimensat", "setxattr", "fsync", "fdatasync",
)  # fmt: skip
OFFSETS = (0, 0, 1, -1, 2, -2)  # to a call's number, since a library may open a file more in another run


def forked(work: Callable[[], object], log: Path, *options: str) -> int:
    """What becomes of a process that does `work`, under strace where there are options for it."""
    traceback.format_stack()  # torch reads the sources of its callers: that it finds them read makes all runs alike
    go, start = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(start)
            os.read(go, 1)
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
            os.dup2(1, 2)
            warnings.simplefilter("ignore")
            work()
            code = 0
        finally:
            if code:
                sys.excepthook(*sys.exc_info())
            os._exit(code)
    os.close(go)
    tracer = None
    if options:
        tracer = subprocess.Popen(
            ["strace", "-f", "-y", "-s", "0", "-p", str(child), *options], stderr=subprocess.PIPE, text=True
        )
        assert tracer.stderr is not None
        line = tracer.stderr.readline()
        assert "attached" in line, line
    os.write(start, b".")
    os.close(start)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if tracer is not None:
        tracer.communicate()
    return code


def inside(home: Path, work: Callable[[Path], object]) -> Callable[[], object]:
    """`work` with its temporary files in the trial's folder too."""

    def run() -> None:
        tempfile.tempdir = str(home / "tmp")
        work(home)

    return run


#: Names that each run draws anew.
RANDOM = re.compile(r"(?<=\.surgeon-)\d{8}|(?<=\.)[a-z0-9_]{8}(?=/|$)|(?<=\.tmp)\w{6}$")
Call = tuple[str, int, tuple[str, ...]]


def listed(trace: Path, home: Path) -> list[Call]:
    """The calls of the folder, each by its name, its number among those of that name, and its paths."""
    seen: Counter[str] = Counter()
    found = []
    lines = trace.read_text(errors="replace").splitlines()
    child = lines[0].split(maxsplit=1)[0]  # strace -f writes the process's number first
    for line in lines:
        parsed = re.match(r"(\d+) +(\w+)\((.*)", line)
        if parsed is None:  # the end of a call that another thread's came between, or of a process
            continue
        thread, name, rest = parsed.groups()
        ours = str(home) in rest and f"{home}/tmp" not in rest
        changes = name not in ("open", "openat") or re.search(r"O_(WRONLY|RDWR|CREAT)", rest)
        if thread != child:
            assert not (ours and changes), f"another thread writes: {line}"
            continue
        seen[name] += 1
        if ours and changes:
            paths = re.findall(r'[<"](/[^>"]*)', rest.partition(") = ")[0].replace(str(home), "/HOME"))
            found.append((name, seen[name], tuple(RANDOM.sub("RANDOM", path) for path in paths)))
    return found


def log_of(home: Path) -> Path:
    """Where its output goes, outside of it."""
    return home.parent / f"log-{home.name}"


def fresh(home: Path) -> Path:
    """The folder as it was before, in `home`."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(home.parent / "template", home, symlinks=True)
    return home


def traced(name: str, home: Path, *options: str) -> tuple[int, list[Call]]:
    """Write under strace: what became of the process, and its calls."""
    trace = home.parent / f"trace-{home.name}"
    code = forked(
        inside(home, TRIALS[name].write), log_of(home), "-o", str(trace), "-e", f"trace={','.join(CALLS)}",
        *options,
    )
    return code, listed(trace, home)


def killed(name: str, room: Path, calls: Sequence[Call]) -> Counter[str]:
    """Kill the writer before the last of `calls`, and look; what of the row of the table that is."""
    trial, row = TRIALS[name], Counter[str]()
    home = room / f"home-{os.getpid()}"
    log = log_of(home)
    call, number, _ = calls[-1]
    wanted = [(call, paths) for call, _, paths in calls]
    for offset in OFFSETS:
        code, made = traced(name, fresh(home), "-e", f"inject={call}:signal=KILL:when={max(1, number + offset)}")
        if hit := code == -9 and [(call, paths) for call, _, paths in made] == wanted:
            break
    row["killed"] += hit
    if not hit:
        print(f"{name}: killed ({code}) at {made[-1:]}, not at {calls[-1]}", flush=True)
    try:
        row[trial.read(home)] += 1
    except Exception as error:  # noqa: BLE001  (whatever a reader raises: it is neither)
        row["neither"] += 1
        print(f"{name}: {calls[-1]}: {type(error).__name__}: {error}", flush=True)
    row["left by the kill"] += bool(list(home.rglob(".surgeon-*")))
    again = forked(inside(home, trial.write), log)
    done = again == 0 and trial.read(home) == "new"
    row["next run fails"] += not done
    left = [path for path in home.rglob("*") if re.search(r"\.surgeon-|\.tmp", path.name)]
    if left or not done:
        print(f"{name}: {calls[-1]}: {again} {left}", log.read_text()[-500:] if not done else "", flush=True)
    row["left after the next run"] += bool(left)
    return row


def try_all(name: str, room: Path, jobs: int) -> dict[str, object]:
    """Kill it before every call; the row of the table."""
    start, log, trial = time.time(), room / "log", TRIALS[name]
    template = room / "template"
    (template / "tmp").mkdir(parents=True)
    assert forked(inside(template, trial.old), log) == 0, log.read_text()[-3000:]
    (template / "old-until").touch()
    home = fresh(room / "home")
    row: Counter[str] = Counter()
    with ProcessPoolExecutor(jobs, get_context("fork")) as pool:
        code, calls = pool.submit(traced, name, home).result()
        assert code == 0, log_of(home).read_text()[-3000:]
        assert trial.read(home) == "new"
        parts = [calls[: index + 1] for index in range(len(calls))]
        for found in pool.map(killed, [name] * len(parts), [room] * len(parts), parts):
            row += found
    return {"writer": name, "calls": len(calls), **row, "seconds": round(time.time() - start)}


COLUMNS = (
    "writer", "calls", "killed", "old", "new", "neither", "next run fails", "left by the kill",
    "left after the next run",
)  # fmt: skip


def main() -> None:
    """Run the trials, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the beginning of a writer's name")
    parser.add_argument("--jobs", type=int, default=2, help="how many are tried at the same time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, trial in TRIALS.items():
        if name.startswith(options.only):
            with tempfile.TemporaryDirectory(prefix="kills-") as warm, redirect_stdout(io.StringIO()):
                trial.old(Path(warm)), trial.write(Path(warm))  # what each process would import and compile anew
            gc.freeze()
            with tempfile.TemporaryDirectory(prefix="kills-") as room:
                row = try_all(name, Path(room), options.jobs)
            print(row, flush=True)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    done = last(RESULTS, "writer")
    rows = [done[name] for name in TRIALS if name in done]
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(str(row.get(column, 0)) for column in COLUMNS) + " |" for row in rows]
    text = (
        "Killed before every system call that changes a file (python -m benchmarks.kills): how often the old or the\n"
        "new was found, neither of them, and scratch folders, right after the kill and after the next run.\n\n"
    )
    TABLE.write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
