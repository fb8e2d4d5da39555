"""A folder takes the place of a full one, in one step of the file system."""

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
    """Let two paths change places at once.

    Raises:
        OSError: the system, or the file system, can't; nothing has changed.
    """
    if _RENAMEAT2 is None:
        raise OSError("this system does not exchange paths")
    first, second = os.fsencode(one), os.fsencode(other)
    if _RENAMEAT2(_AT_FDCWD, first, _AT_FDCWD, second, ctypes.c_uint(_RENAME_EXCHANGE)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def take_place(new: Path, old: Path, written: Collection[str]) -> bool:
    """Let `new` take the place of the folder `old`, together with the files of `old` that are not `written`.

    Those are carried over as hard links: the same files, under the same names, at every moment. Returns False, and
    leaves all as it was, where that can't be done: where `old` holds a folder, is the current folder (a shell would
    stay in the old one), is of another owner, or where the file system can't exchange or link. Afterwards `new` is
    what is left of the old folder, of `written` files only.
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
    """Bring over what somebody else put into the old folder after it was looked through."""
    with os.scandir(left) as entries:
        for entry in entries:
            there = place / entry.name
            if entry.name in written or _same(Path(entry.path), there):
                continue
            with suppress(OSError):
                os.replace(entry.path, there)


def _same(one: Path, other: Path) -> bool:
    return os.path.lexists(other) and os.path.samestat(os.lstat(one), os.lstat(other))
