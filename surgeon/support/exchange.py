"""Replacing a folder that is not empty in one atomic step of the file system."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_RENAMEAT2 = getattr(_LIBC, "renameat2", None)


def exchange(one: Path, other: Path) -> None:
    """Swap two paths atomically.

    Raises:
        OSError: the system or the file system doesn't support it; nothing has changed.
    """
    if _RENAMEAT2 is None:
        raise OSError("this system can't swap two paths")
    first, second = os.fsencode(one), os.fsencode(other)
    if _RENAMEAT2(_AT_FDCWD, first, _AT_FDCWD, second, ctypes.c_uint(_RENAME_EXCHANGE)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def take_place(new: Path, old: Path, written: Collection[str]) -> bool:
    """Replace the folder `old` by `new`, which takes over the files of `old` that are not `written`.

    These become hard links, so that they are there under their names at every moment. Returns False, with nothing
    changed, where that can't be done: `old` holds a folder, is the current folder (a shell would stay in the old one)
    or has another owner, or the file system can't swap or link. Afterwards `new` is the old folder, with its
    `written` files only.
    """
    carried: list[str] = []
    try:
        if os.path.samefile(old, os.getcwd()):
            return False
        with os.scandir(old) as entries:
            others = [entry for entry in entries if entry.name not in written]
        if any(entry.is_dir(follow_symlinks=False) for entry in others):
            return False
        for entry in others:
            os.link(entry.path, new / entry.name, follow_symlinks=False)
            carried.append(entry.name)
        shutil.copystat(old, new)
        have, want = os.stat(new), os.stat(old)
        if (have.st_uid, have.st_gid) != (want.st_uid, want.st_gid):
            os.chown(new, want.st_uid, want.st_gid)
            os.chmod(new, want.st_mode & 0o7777)
        exchange(new, old)
    except OSError:
        for name in carried:
            (new / name).unlink()
        return False
    _bring_after(new, old, written)
    return True


def _bring_after(left: Path, place: Path, written: Collection[str]) -> None:
    """Move files that another process put into the old folder in the meantime."""
    with os.scandir(left) as entries:
        for entry in entries:
            there = place / entry.name
            carried = os.path.lexists(there) and os.path.samestat(os.lstat(entry.path), os.lstat(there))
            if entry.name not in written and not carried:
                with suppress(OSError):
                    os.replace(entry.path, there)
