"""Changes of state that all of a process shares, such as torch's default dtype, for as long as a block runs."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps


def process_wide(change: Callable[[], Iterator[None]]) -> Callable[[], AbstractContextManager[None]]:
    """As `contextlib.contextmanager`, for a change that all threads see.

    Blocks may overlap, nested or in several threads: the first to start makes the change, and the last to end undoes
    it, after an error too. If each undid its own, one could restore what another had changed, for good. Code that
    runs in other threads meanwhile sees the change.

    >>> state = ["as it was"]
    >>> @process_wide
    ... def changed():
    ...     before, state[0] = state[0], "changed"
    ...     try:
    ...         yield
    ...     finally:
    ...         state[0] = before
    >>> one, two = changed(), changed()
    >>> _ = one.__enter__(), two.__enter__()
    >>> _ = one.__exit__(None, None, None)
    >>> state
    ['changed']
    >>> _ = two.__exit__(None, None, None)
    >>> state
    ['as it was']
    """
    lock, stack = threading.RLock(), ExitStack()
    make = contextmanager(change)
    inside = 0

    @wraps(change)
    def scoped() -> Iterator[None]:
        nonlocal inside
        with lock:
            if not inside:
                stack.enter_context(make())
            inside += 1
        try:
            yield
        finally:
            with lock:
                inside -= 1
                if not inside:
                    stack.close()

    return contextmanager(scoped)


@process_wide
def uncollected() -> Iterator[None]:
    """Without Python's garbage collector, which walks all objects of the process whenever many small ones were made:
    that may take longer than the work itself, and distorts timings."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
