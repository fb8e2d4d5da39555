"""Scratch folders: where files are written before they take their places, `.surgeon-` and eight digits.

The process that made one holds a lock on it (flock), which ends with the process, however it ends. One that nobody
holds was left by a dead process, and is removed by the next that writes to the same folder. Where the file system
knows no locks, nothing is removed.

A scratch folder that holds a folder `ready` is a replacement that was decided: the files in there are the new ones, of
which some have taken their places already. It is carried on with, not removed.
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
# A digit is asked for so that no folder with a word for a name is taken for one; `tempfile` gave letters too.
_NAME = re.compile(re.escape(_PREFIX) + "(?=[a-z_]*[0-9])[a-z0-9_]{8}")


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, which is gone at the end; what dead processes left in `folder` goes first.

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
    """Remove what dead processes of this user left in `folder`, and put in place what they had decided."""
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
    except OSError:  # it is not there, or can't be read: whoever writes to it will say so
        return []
    return [folder / name for name in sorted(names)]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other process is in such a block for `folder`, where the file system knows locks."""
    lock = _lock(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def settle(place: Path) -> None:
    """Move the files that are ready in a scratch folder to where they belong."""
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
        made[:] = [place]  # first: a signal may come right after it was made
        try:
            place.mkdir(0o700)
        except FileExistsError:
            made.clear()
            continue
        lock = _lock(place, wait=True)
        if lock is None:
            if place.exists():  # a file system without locks
                return
            continue  # somebody took it for a leftover before it was locked
        locks[:] = [lock]
        if _is_at(lock, place):
            return
        os.close(lock)
        locks.clear()


def _clear(place: Path) -> None:
    if (place / READY).exists():
        with suppress(OSError):  # it stays, and what is ready with it: the next run tries again
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
