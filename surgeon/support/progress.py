"""Progress on stderr for long stages, and the seconds that each stage took."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

PATIENCE = 2.0
"""Seconds after which a stage is shown."""

_seconds: ContextVar[dict[str, float] | None] = ContextVar("seconds", default=None)
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


@contextmanager
def stage(name: str, share: list[float] | None = None) -> Iterator[None]:
    """Time the block under `name`, and show it on stderr once it takes longer than two seconds.

    `share` holds how much of it is done, from 0 to 1, where that is known. Nothing is shown where stderr is not a
    terminal.
    """
    start = time.perf_counter()
    done = threading.Event()
    shown = _show(name, start, done, share) if sys.stderr is not None and sys.stderr.isatty() else None
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
def counter(name: str) -> Iterator[Callable[[int, int], None]]:
    """A stage that counts: it yields a function to call with how much is done, and of how much.

    >>> with counter("profile") as count:
    ...     count(1, 2)
    """
    share = [0.0]

    def count(done: int, total: int) -> None:
        share[0] = done / max(total, 1)

    with stage(name, share):
        yield count


def _show(name: str, start: float, done: threading.Event, share: list[float] | None) -> threading.Thread:
    def draw() -> None:
        wait, drawn = PATIENCE, False
        while not done.wait(wait):
            wait = 0.5
            if _running and _running[-1] == name:
                part = f"{share[0]:.0%}, " if share else ""
                sys.stderr.write(f"\r\033[K{name} … {part}{time.perf_counter() - start:.0f} s")
                sys.stderr.flush()
                drawn = True
        if drawn:
            sys.stderr.write(f"\r\033[K{name}: {time.perf_counter() - start:.1f} s\n")
            sys.stderr.flush()

    thread = threading.Thread(target=draw, name=f"progress of {name}", daemon=True)
    thread.start()
    return thread
