"""By which clock runs are timed, with how many threads, and whether threads that wait for one another spin."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from surgeon.support import arguments
from surgeon.support.arguments import threads_here

CPU_TIME: Final = "CPU time"
WALL_TIME: Final = "wall time"
CLOCKS: Final = (CPU_TIME, WALL_TIME)

_COARSE: Final = 1e-4
"""Seconds; a clock with longer ticks can't time a run."""
_SIBLINGS: Final = "topology/thread_siblings_list"


@dataclasses.dataclass(frozen=True)
class Clock:
    """The clock for runs with `threads` threads of onnxruntime.

    With one thread it is that thread's CPU time, which does not count what else runs on the machine. With several it is
    time on the `wall`, what a user waits for, with threads that spin while they wait for one another, as onnxruntime
    has it by default; or else the CPU time of the whole process, without spinning.

    >>> Clock.of(1).name, Clock.of(1).spin
    ('CPU time', False)
    >>> print(Clock(4, wall=True))
    4 threads, wall time
    """

    threads: int
    wall: bool = False

    @classmethod
    def of(cls, threads: int | None = None, cpu_time: bool = False) -> Clock:
        """The clock for so many threads, by default as many as onnxruntime takes.

        Raises `InvalidArgument` if this process has fewer CPUs.
        """
        count = usual_threads() if threads is None else threads_here("threads", threads)
        return cls(count, count > 1 and not cpu_time)

    @property
    def name(self) -> str:
        return WALL_TIME if self.wall else CPU_TIME

    @property
    def spin(self) -> bool:
        """Whether threads that wait for one another spin: it would count as CPU time."""
        return self.wall

    def __str__(self) -> str:
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}, {self.name}"

    def seconds(self) -> Callable[[], float]:
        """The function that reads it."""
        if self.wall:
            return time.perf_counter
        return time.thread_time if self.threads == 1 else time.process_time

    def fine(self) -> Callable[[], float]:
        """The same, or the clock on the wall where that of CPU time is too coarse on this system."""
        name = "thread_time" if self.threads == 1 else "process_time"
        coarse = not self.wall and time.get_clock_info(name).resolution > _COARSE  # type: ignore[arg-type]
        return time.perf_counter if coarse else self.seconds()


ONE_THREAD: Final = Clock(1)


def usual_threads() -> int:
    """How many threads onnxruntime takes by itself: one for each physical core, of those that this process may use.

    >>> 1 <= usual_threads() <= arguments.cpus()
    True
    """
    return max(1, min(_cores() or arguments.cpus(), arguments.cpus()))


def _cores() -> int:
    """The number of physical cores, where the system says; else 0."""
    if sys.platform == "darwin":
        asked = subprocess.run(["sysctl", "-n", "hw.physicalcpu"], capture_output=True, text=True, check=False)
        return int(asked.stdout) if asked.stdout.strip().isdigit() else 0
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    places = [Path(f"/sys/devices/system/cpu/cpu{cpu}") / _SIBLINGS for cpu in allowed]
    try:
        return len({place.read_text(encoding="ascii").strip() for place in places})
    except (OSError, UnicodeDecodeError):
        return 0
