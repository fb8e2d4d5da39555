"""Opening files that are not trusted: only regular files, and none larger than expected.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     read_bytes(folder)
Traceback (most recent call last):
    ...
surgeon.support.opening.Unfit: it is a folder, not a file
"""

from __future__ import annotations

import os
import stat
from typing import BinaryIO, Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Unfit(ValueError):
    """A file can't be read, or does not hold what it must; the message is the reason, without the file's name."""


def require_file(path: str | os.PathLike[str], limit: int | None = None) -> int:
    """The size of the regular file at `path`, in bytes. It is not opened, so that nothing can block.

    Raises:
        Unfit: it is missing, a folder, a pipe, a device or a broken link, or larger than `limit` bytes.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        if os.path.islink(path):
            raise Unfit(f"it is a link to {os.readlink(path)}, which can't be followed") from error
        raise Unfit(getattr(error, "strerror", None) or str(error)) from error
    _require_regular(found.st_mode)
    if limit is not None and found.st_size > limit:
        raise Unfit(f"it has {found.st_size:,} bytes; at most {limit:,} are read")
    return found.st_size


def open_file(path: str | os.PathLike[str], limit: int | None = None) -> BinaryIO:
    """The regular file at `path`, opened for reading.

    Raises:
        Unfit: as `require_file`, or it may not be read.
    """
    require_file(path, limit)
    try:
        # Don't wait if a pipe has taken the file's place since then.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        file = os.fdopen(number, "rb")
    except OSError as error:
        raise Unfit(error.strerror or str(error)) from error
    try:
        _require_regular(os.fstat(number).st_mode)
    except Unfit:
        file.close()
        raise
    return file


def read_bytes(path: str | os.PathLike[str], limit: int = 64 * MIB) -> bytes:
    """What is in the regular file at `path`.

    Raises:
        Unfit: as `open_file`.
    """
    with open_file(path, limit) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise Unfit(error.strerror or str(error)) from error
    if len(content) > limit:
        raise Unfit(f"it has more than {limit:,} bytes")
    return content


def _require_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "something else")
        raise Unfit(f"it is {kind}, not a file")
