"""How much memory there is, so that what is held at a time can be limited to a share of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

#: Bytes to assume where the system does not say.
UNKNOWN = 8 << 30
#: Where Linux keeps a container's limit: "max", or a number above all memory, where there is none.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
#: Unless told otherwise, work takes about this share of the memory beside the model, and no more than so many bytes, so
#: that results are the same on all but small machines.
SHARE = 1 / 8
MOST = 2 << 30

_given: ContextVar[float | None] = ContextVar("memory", default=None)


@contextmanager
def using_memory(share: float | None) -> Iterator[None]:
    """Within it, work takes about this share of the memory; None changes nothing."""
    token = _given.set(_given.get() if share is None else share)
    try:
        yield
    finally:
        _given.reset(token)


def working_memory(part: float = 1.0) -> int:
    """Bytes that work may take beside the model, or a part of them.

    >>> with using_memory(0.5):
    ...     working_memory() == share_of_memory(0.5)
    True
    """
    share = _given.get()
    return int(part * (min(share_of_memory(SHARE), MOST) if share is None else share_of_memory(share)))


def share_of_memory(share: float) -> int:
    """Bytes that are this share of the machine's memory, or of the container's where that is less.

    >>> 0 < share_of_memory(1 / 8) <= share_of_memory(1 / 4)
    True
    """
    return int(share * min([_installed(), *map(_limit, _LIMITS)]))


def _installed() -> int:
    try:
        size, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system, or one that does not say
        return UNKNOWN
    return size * pages if size > 0 and pages > 0 else UNKNOWN


def _limit(path: str) -> int:
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such file, or "max"
        return _installed()
