"""The most memory that loading and running a file takes, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from surgeon.errors import BenchmarkError
from surgeon.support.scratch import temporary_folder

_STATUS: Final = Path("/proc/self/status")
_RUNS: Final = 2

# It is a text, not a file, since a kit's files lie in an archive.
_SCRIPT: Final = """\
import json
import sys

sys.path[:] = [place for place in sys.path if place]
import numpy
import onnxruntime

path, arrays, names, threads, runs = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])


def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name + ":"))


with numpy.load(arrays) as stored:
    feeds = {name: stored["arr_%d" % place] for place, name in enumerate(names)}
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
try:
    with open("/proc/self/clear_refs", "w") as peaks:
        peaks.write("5")  # forget the peak so far
except OSError:
    sys.exit()  # it is not told here
before = kilobytes("VmRSS")
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
for _ in range(runs):
    session.run(None, feeds)
print(kilobytes("VmHWM") - before)
"""


def peak_memory(path: str | os.PathLike[str], feeds: Mapping[str, np.ndarray], threads: int = 1) -> float | None:
    """MiB that loading and running a file takes at most, beside Python and onnxruntime themselves.

    None where the system does not tell: Linux does.

    Raises `BenchmarkError` if the file can't be run so.
    """
    if not (_STATUS.exists() and sys.executable):
        return None
    with temporary_folder() as folder:
        arrays: tuple[Any, ...] = tuple(feeds.values())
        np.savez(folder / "feeds.npz", *arrays)
        given = (json.dumps(each) for each in ([*feeds], threads, _RUNS))
        ran = subprocess.run(
            [sys.executable, "-c", _SCRIPT, os.fspath(path), str(folder / "feeds.npz"), *given], capture_output=True,
            text=True, check=False,
        )
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"])[-1]
        raise BenchmarkError(f"{path}: a process of its own, to see how much memory it takes, could not run it: {last}")
    return int(ran.stdout) / 1024 if ran.stdout else None
