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
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

import surgeon
from benchmarks.rows import last
from surgeon.cli.main import app
from surgeon.deploy import export as exporting
from surgeon.pipeline import storage
from surgeon.reporting.page import write_page
from surgeon.support import exchange
from tests.study.study_tasks import Blobs

RESULTS = Path(__file__).parent / "results" / "kills.jsonl"
TABLE = Path(__file__).parent / "results" / "kills.md"
CALLS = (
    "openat", "creat", "mkdir", "mkdirat", "write", "pwrite64", "writev", "ftruncate", "fallocate", "copy_file_range",
    "sendfile", "rename", "renameat", "renameat2", "link", "linkat", "symlinkat", "unlink", "unlinkat", "rmdir",
    "chmod", "fchmod", "fchmodat", "chown", "fchownat", "utimensat", "setxattr", "fsync", "fdatasync",
)  # fmt: skip
X = torch.zeros(1, 8)


def net(seed: int = 0) -> nn.Sequential:
    """A network that everything is quick for."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


class Short(Blobs):
    """The tests' task, of one epoch."""

    epochs, retraining = 1, 1


@dataclass(frozen=True)
class Trial:
    """`old` makes the files of before, `write` is what is killed, `read` says which of the two a folder holds."""

    old: Callable[[Path], object]
    write: Callable[[Path], object]
    read: Callable[[Path], str]


@cache
def slim(ratio: float) -> nn.Module:
    """A model to save."""
    return surgeon.shrink(net(), ratio, example_inputs=X, align=1)


def save(ratio: float, *others: str) -> Callable[[Path], object]:
    """Save a model, cut by `ratio`; `others` are the user's own files beside it."""

    def run(home: Path) -> None:
        for name in others:
            (home / "out" / name).parent.mkdir(parents=True, exist_ok=True)
            (home / "out" / name).write_text("the user's")
        surgeon.save(slim(ratio), home / "out")

    return run


def without_exchange(run: Callable[[Path], object]) -> Callable[[Path], object]:
    """As on a system that can't exchange paths."""

    def other(home: Path) -> None:
        exchange._RENAMEAT2 = None
        run(home)

    return other


def loaded(home: Path) -> str:
    """Which model `load` finds; the user's files must be there."""
    assert all(path.read_text() == "the user's" for path in home.rglob("mine"))
    return {24: "old", 16: "new"}[surgeon.load(home / "out", net()).get_parameter("0.bias").numel()]


def alike(home: Path) -> str:
    """The same, and the three files as they lie belong together."""
    with safe_open(home / "out" / storage.WEIGHTS, framework="pt") as file:
        assert file.metadata()["plan"] == hashlib.sha256((home / "out" / storage.PLAN).read_bytes()).hexdigest()
    return loaded(home)


def there(home: Path) -> str:
    """The same of a folder that may not be there yet."""
    return alike(home) if (home / "out").exists() else "old"


def export(seed: int, beside: bool = False) -> Callable[[Path], object]:
    """Export a network, with its weights in a file beside it."""

    def run(home: Path) -> None:
        exporting.SINGLE_FILE_BYTES = 100 if beside else exporting.SINGLE_FILE_BYTES
        (home / "out").mkdir(exist_ok=True)
        surgeon.export(net(seed), home / "out" / "net.onnx", example_inputs=X)

    return run


def exported(home: Path) -> str:
    """Which network the ONNX file computes."""
    import onnxruntime

    x = torch.ones(1, 8)
    session = onnxruntime.InferenceSession(home / "out" / "net.onnx")
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    return next(name for name, seed in (("old", 0), ("new", 1)) if torch.allclose(net(seed)(x), found, atol=1e-5))


def command(*arguments: str) -> Callable[[Path], object]:
    """A command as a user types it; HOME is the trial's folder."""

    def run(home: Path) -> None:
        given = [text.replace("HOME", str(home)) for text in arguments]
        try:
            app(given)
        except SystemExit as error:
            if error.code:
                raise

    return run


def shrunk(home: Path) -> str:
    """Which model, with its report and ONNX file."""
    found = loaded(home)
    groups = json.loads((home / "out" / "report.json").read_text())["groups"]
    assert {each["after"] for each in groups.values()} == {{"old": 24, "new": 16}[found]}
    return found


def old_profile(home: Path) -> None:
    """A profile of which some has not been measured yet."""
    path = home / "out" / "p.json"
    path.parent.mkdir(exist_ok=True)
    surgeon.profile(net(), X, path=path)
    whole = json.loads(path.read_text())
    whole["samples"] = whole["samples"][:-1]
    path.write_text(json.dumps(whole))


def profiled(home: Path) -> str:
    """Whether the profile, which must load, is the whole one."""
    found = surgeon.Profile.load(home / "out" / "p.json")
    text = json.loads((home / "out" / "p.json").read_text())
    assert len(found.samples) == len(text["samples"])
    return "new" if (home / "size").exists() and len(found.samples) > int((home / "size").read_text()) else "old"


def count_samples(home: Path) -> None:
    """The old profile, and how much it holds."""
    old_profile(home)
    (home / "size").write_text(str(len(json.loads((home / "out" / "p.json").read_text())["samples"])))


def studied(home: Path) -> str:
    """Whether the study has its row; whatever is there must be whole."""
    for path in (home / "out").rglob("*.json"):
        if ".surgeon-" not in str(path):
            json.loads(path.read_text())
    for row in (home / "out").glob("rows/*.json"):
        assert "error" not in json.loads(row.read_text()), row.read_text()
    return "new" if list((home / "out").glob("rows/*.json")) else "old"


def old_page(home: Path) -> None:
    """A folder that was shrunk and reported on."""
    command(*SHRINK, "0.5")(home)
    write_page(home / "out", accuracy={"old": 0.5})


def page(home: Path) -> str:
    """Which page, with which pictures: those are written by the same run."""
    text = (home / "out" / "report.html").read_text()
    pictures = list((home / "out").glob("*.png"))
    made = {path.stat().st_mtime > (home / "old-until").stat().st_mtime for path in pictures}
    assert made == {"accuracy, fresh" in text}, "a page beside pictures of another run"
    return "new" if made == {True} else "old"


SHRINK = ("shrink", f"{__name__}:net", "--shape", "1,8", "--no-bench", "--align", "1", "-o", "HOME/out", "--ratio")
STUDY = ("study", f"{__file__}:Short", "-o", "HOME/out", "--ratio", "0.5", "--criterion", "l2", "--seeds", "1",
         "--baseline", "none")  # fmt: skip
TRIALS = {
    "save": Trial(save(0.25), save(0.5), alike),
    "save, to a new folder": Trial(lambda home: None, save(0.5), there),
    "save, beside a file of the user": Trial(save(0.25, "mine"), save(0.5), alike),
    "save, beside a folder of the user": Trial(save(0.25, "deep/mine"), save(0.5), loaded),
    "save, where paths can't be exchanged": Trial(save(0.25, "mine"), without_exchange(save(0.5)), loaded),
    "export": Trial(export(0), export(1), exported),
    "export, weights in a second file": Trial(export(0, True), export(1, True), exported),
    "shrink -o": Trial(command(*SHRINK, "0.25"), command(*SHRINK, "0.5"), shrunk),
    "report": Trial(old_page, lambda home: write_page(home / "out", accuracy={"fresh": 0.5}, runs=2), page),
    "profile": Trial(
        count_samples, command("profile", f"{__name__}:net", "--shape", "1,8", "-o", "HOME/out/p.json"), profiled
    ),
    "study": Trial(lambda home: None, command(*STUDY), studied),
}


def forked(work: Callable[[], object], log: Path, *options: str) -> int:
    """What becomes of a process that does `work`, under strace where there are options for it."""
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


def listed(trace: Path, home: Path, child: str) -> list[tuple[str, int]]:
    """The calls of the folder, each by its name and its number among those of that name."""
    seen: Counter[str] = Counter()
    found = []
    for line in trace.read_text(errors="replace").splitlines():
        parsed = re.match(r"(\d+) +(?:<\.\.\. )?(\w+)[( ](.*)", line)
        if parsed is None or "resumed>" in line:
            continue
        thread, name, rest = parsed.groups()
        ours = str(home) in rest and f"{home}/tmp" not in rest
        changes = name != "openat" or re.search(r"O_(WRONLY|RDWR|CREAT)", rest)
        if thread != child:
            assert not (ours and changes), f"another thread writes: {line}"
            continue
        seen[name] += 1
        if ours and changes:
            found.append((name, seen[name]))
    return found


def try_all(name: str, trial: Trial, room: Path) -> dict[str, object]:
    """Kill it before every call; the row of the table."""
    start, log = time.time(), room / "log"
    template = room / "template"
    (template / "tmp").mkdir(parents=True)
    assert forked(inside(template, trial.old), log) == 0, log.read_text()[-3000:]
    (template / "old-until").touch()
    home = room / "home"  # always the same, so that each run makes the same calls

    def fresh() -> None:
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(template, home, symlinks=True)

    fresh()
    trace = room / "trace"
    # strace -f writes the process's number first
    code = forked(inside(home, trial.write), log, "-o", str(trace), "-e", f"trace={','.join(CALLS)}")
    assert code == 0, log.read_text()[-3000:]
    assert trial.read(home) == "new"
    calls = listed(trace, home, trace.read_text().split(maxsplit=1)[0])
    row: Counter[str] = Counter()
    for call, number in calls:
        fresh()
        code = forked(
            inside(home, trial.write), log, "-o", "/dev/null", "-e", f"trace={','.join(CALLS)}",
            "-e", f"inject={call}:signal=KILL:when={number}",
        )
        row["killed" if code == -9 else "not killed"] += 1
        try:
            row[trial.read(home)] += 1
        except Exception as error:  # noqa: BLE001  (whatever a reader raises: it is neither)
            row["neither"] += 1
            print(f"{name}: {call} {number}: {type(error).__name__}: {error}", flush=True)
        row["left by the kill"] += bool(list(home.rglob(".surgeon-*")))
        again = forked(inside(home, trial.write), log)
        done = again == 0 and trial.read(home) == "new"
        row["next run fails"] += not done
        left = [path for path in home.rglob("*") if re.search(r"\.surgeon-|\.tmp$", path.name)]
        if left or not done:
            print(f"{name}: {call} {number}: {again} {left}", log.read_text()[-500:] if not done else "", flush=True)
        row["left after the next run"] += bool(left)
    return {"writer": name, "calls": len(calls), **row, "seconds": round(time.time() - start)}


COLUMNS = (
    "writer", "calls", "killed", "old", "new", "neither", "next run fails", "left by the kill",
    "left after the next run",
)  # fmt: skip


def main() -> None:
    """Run the trials, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the beginning of a writer's name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="kills-") as warm:  # what each process would do anew
        slim(0.25), slim(0.5)
        if not options.only.startswith("save"):
            export(0)(Path(warm))
    for name, trial in TRIALS.items():
        if name.startswith(options.only):
            with tempfile.TemporaryDirectory(prefix="kills-") as room:
                row = try_all(name, trial, Path(room))
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
