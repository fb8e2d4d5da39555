"""Scratch folders, named `.surgeon-` and eight digits, where files are written before they are moved into place.

The process that made one holds a lock on it (flock), which ends with the process, however it ends. A folder without a
lock was left by a dead process, and is removed by the next one that writes to the same folder. Where the file system
doesn't support locks, nothing is removed.

A scratch folder that holds a folder `ready` is a replacement under way: the files in there are the new ones, some of
which may be in place already. It is completed, not removed.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from surgeon.support.interrupts import held

try:
    import fcntl
except ImportError:  # not on Windows, where leftovers stay
    fcntl = None  # type: ignore[assignment]

READY = "ready"
_PREFIX = ".surgeon-"
# There must be a digit, so that a folder named by a word isn't mistaken for one; `tempfile` used letters too.
_NAME = re.compile(re.escape(_PREFIX) + "(?=[a-z_]*[0-9])[a-z0-9_]{8}")


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, removed at the end; what dead processes left in `folder` is removed first.

    >>> with temporary_folder() as folder:
    ...     with scratch(folder) as made:
    ...         print(made.parent == folder, made.is_dir())
    ...     print(made.exists())
    True True
    False
    """
    sweep(folder)
    made: list[Path] = []
    locks: list[int] = []
    try:
        _make(folder, made, locks)
        yield made[0]
    finally:
        with held():
            for place in made:
                _clear(place)
            for lock in locks:
                os.close(lock)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A scratch folder where the system keeps temporary files.

    >>> with temporary_folder() as folder:
    ...     print(folder.is_dir())
    True
    """
    with scratch(Path(tempfile.gettempdir())) as made:
        yield made


def sweep(folder: Path) -> None:
    """Remove what dead processes of this user left in `folder`, and complete the replacements they had under way."""
    for place in found(folder):
        lock = _lock(place, wait=False)
        if lock is not None:
            try:
                if os.fstat(lock).st_uid == os.geteuid() and _is_at(lock, place):
                    with held():
                        _clear(place)
            finally:
                os.close(lock)


def sweep_tree(folder: Path) -> None:
    """As sweep, for `folder` and all folders in it."""
    for root, folders, _ in os.walk(folder):
        sweep(Path(root))
        folders[:] = [name for name in folders if not _NAME.fullmatch(name)]


def found(folder: Path) -> list[Path]:
    """The scratch folders in `folder`, of dead processes and of living ones."""
    try:
        with os.scandir(folder) as entries:
            names = [each.name for each in entries if _NAME.fullmatch(each.name) and each.is_dir(follow_symlinks=False)]
    except OSError:  # missing or unreadable: writing to it will raise
        return []
    return [folder / name for name in sorted(names)]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from such a block for the same `folder`, where the file system supports locks."""
    lock = _lock(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def settle(place: Path) -> None:
    """Move the files in a scratch folder's `ready` folder to their places."""
    ready = place / READY
    for file in sorted(ready.iterdir()):
        os.replace(file, os.path.realpath(place.parent / file.name))  # a link is followed
    ready.rmdir()


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk, so that no power cut leaves a name without its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # not every file system takes a folder
            raise
    finally:
        os.close(handle)


def _make(folder: Path, made: list[Path], locks: list[int]) -> None:
    while True:
        place = folder / f"{_PREFIX}{secrets.randbelow(10**8):08d}"
        made[:] = [place]  # before it is made: a signal may come right after
        try:
            place.mkdir(0o700)
        except FileExistsError:
            made.clear()
            continue
        lock = _lock(place, wait=True)
        if lock is None:
            if place.exists():  # a file system without locks
                return
            continue  # another process took it for a leftover before it was locked
        locks[:] = [lock]
        if _is_at(lock, place):
            return
        os.close(lock)
        locks.clear()


def _clear(place: Path) -> None:
    if (place / READY).exists():
        with suppress(OSError):  # it stays, for the next run to try again
            settle(place)
    if not (place / READY).exists():
        shutil.rmtree(place, ignore_errors=True)


def _lock(folder: Path, wait: bool) -> int | None:
    """A handle that locks `folder` until it is closed; None where it can't be locked."""
    if fcntl is None:
        return None
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if handle is not None:
            os.close(handle)
        return None
    return handle


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
