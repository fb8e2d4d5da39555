"""Progress on stderr for long stages, with the seconds that are left, and the seconds that each stage took."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from surgeon.support.remaining import Remaining

PATIENCE = 2.0
"""Seconds after which a stage is shown."""
BETWEEN = 30.0
"""Seconds between two lines of a stage where they are no terminal's."""

_seconds: ContextVar[dict[str, float] | None] = ContextVar("seconds", default=None)
_piped = False  # whether lines go to a stderr that is no terminal
_silent = False
_running: list[str] = []  # names of the running stages, the innermost last: only that one is shown


@contextmanager
def collect() -> Iterator[dict[str, float]]:
    """The seconds of every stage that ends inside the block, by name; stages of one name are added up.

    >>> with collect() as seconds:
    ...     with stage("trace"):
    ...         pass
    >>> list(seconds)
    ['trace']
    """
    seconds: dict[str, float] = {}
    token = _seconds.set(seconds)
    try:
        yield seconds
    finally:
        _seconds.reset(token)


def report_progress(*, piped: bool = False, silent: bool = False) -> None:
    """Choose for this process what is shown: by default a line that is rewritten, in a terminal alone.

    With `piped`, other streams get a line now and then; with `silent`, nothing is shown at all.
    """
    global _piped, _silent
    _piped, _silent = piped, silent


def relay(line: str) -> None:
    """Show a line that tells how something elsewhere gets on, such as on another machine."""
    if _shown():
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time the block under `name`, and show it on stderr once it takes longer than two seconds.

    Nothing is shown where stderr is not a terminal, but for what `report_progress` says.
    """
    with _timed(name, time.perf_counter(), None):
        yield


def _shown() -> bool:
    return sys.stderr is not None and not _silent and (_piped or sys.stderr.isatty())


@contextmanager
def _timed(name: str, start: float, remaining: Remaining | None) -> Iterator[None]:
    done = threading.Event()
    shown = None
    if _shown():
        shown = _show(name, start, done, remaining)
    _running.append(name)
    try:
        yield
    finally:
        _running.remove(name)
        done.set()
        if shown is not None:
            shown.join()
        seconds = _seconds.get()
        if seconds is not None:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


@contextmanager
def counter(name: str) -> Iterator[Callable[[float, float], None]]:
    """A stage that counts: it yields a function to call with how much is done, and of how much.

    What is counted should take about equally long each, such as operations: the seconds that are left are told by it.

    >>> with counter("profile") as count:
    ...     count(1, 2)
    """
    start, remaining = time.perf_counter(), Remaining()

    def count(done: float, total: float) -> None:
        remaining.add(time.perf_counter() - start, done / total if total > 0 else 0.0)

    with _timed(name, start, remaining):
        yield count


def _line(name: str, seconds: float, remaining: Remaining | None) -> str:
    """What is shown of a running stage."""
    if remaining is None:
        return f"{name} … {seconds:.0f} s"
    left = remaining.left(seconds)
    told = "" if left is None else f", about {left:.0f} s left"
    return f"{name} … {remaining.share:.0%}, {seconds:.0f} s{told}"


def _show(name: str, start: float, done: threading.Event, remaining: Remaining | None) -> threading.Thread:
    rewritten = sys.stderr.isatty()
    before, after = ("\r\033[K", "") if rewritten else ("", "\n")

    def draw() -> None:
        wait, drawn = PATIENCE if rewritten else BETWEEN, False
        while not done.wait(wait):
            wait = 0.5 if rewritten else BETWEEN
            if _running and _running[-1] == name:
                sys.stderr.write(f"{before}{_line(name, time.perf_counter() - start, remaining)}{after}")
                sys.stderr.flush()
                drawn = True
        if drawn:
            sys.stderr.write(f"{before}{name}: {time.perf_counter() - start:.1f} s\n")
            sys.stderr.flush()

    thread = threading.Thread(target=draw, name=f"progress of {name}", daemon=True)
    thread.start()
    return thread
