"""A limit on the time of work that is done in Python by code that knows of none."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: Seconds between two looks at what the thread is doing.
LOOK = 0.005
#: Seconds until it is told again: what is raised in a finalizer or a callback is lost.
AGAIN = 1.0


class TimeIsUp(BaseException):
    """Raised in the thread whose time is up; no `except Exception` on the way takes it for its own."""


@contextmanager
def limited(seconds: float, inside: tuple[str, ...]) -> Iterator[None]:
    """Raise TimeIsUp in this thread once it has run for `seconds`, when it is in code of one of the files `inside`.

    These are seconds of its own, whatever else the machine does, where the system tells them. Work on numbers and
    formulas can be left anywhere; code that puts a process into another state and back can't.
    `inside` are parts of paths.

    >>> import fractions
    >>> with limited(0.0, ("fractions.py",)):
    ...     while True:
    ...         _ = fractions.Fraction(1, 3) + 1
    Traceback (most recent call last):
    ...
    surgeon.support.time_limit.TimeIsUp
    """
    thread, over, lock = threading.get_ident(), threading.Event(), threading.Lock()

    clock = _clock(thread)
    end = clock() + seconds

    def watch() -> None:
        nonlocal end
        while not over.wait(max(end - clock(), LOOK)):
            if clock() < end:
                continue
            with lock:
                if over.is_set():
                    return
                if _is_inside(sys._current_frames().get(thread), inside):
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TimeIsUp))
                    end = clock() + AGAIN

    watcher = threading.Thread(target=watch, daemon=True, name="surgeon-time-limit")
    watcher.start()
    try:
        yield
    finally:
        with lock:
            over.set()
        watcher.join()


def _clock(thread: int) -> Callable[[], float]:
    """What a thread has run so far, in seconds; elsewhere than on Linux, the time of day does."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    own = time.pthread_getcpuclockid(thread)
    return lambda: time.clock_gettime(own)


def _is_inside(frame: FrameType | None, inside: tuple[str, ...]) -> bool:
    path = frame.f_code.co_filename.replace(os.sep, "/") if frame is not None else ""
    return any(part in path for part in inside)
