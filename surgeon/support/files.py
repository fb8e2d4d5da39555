"""Writing files so that either the whole new one is there, or what was there before."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surgeon.errors import OutputError

StrPath = str | os.PathLike[str]


def ensure_folder(folder: StrPath) -> Path:
    """Create `folder` and its parents where they are missing, and make sure that a file can be written in it.

    Raises:
        OutputError: a file stands in the way, or the folder can't be created or written.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / _temporary("probe")
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise OutputError(f"the folder {path} can't be written: {_reason(error)}") from error
    return path


@contextmanager
def replace(path: StrPath) -> Iterator[Path]:
    """A temporary path in the folder of `path`, whose file takes the place of `path` when the block succeeds.

    When the block fails or is interrupted, the temporary file is gone and `path` is as it was. A link is
    followed.

    Raises:
        OutputError: `path` is a folder or a device, or its folder is missing or can't be written.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replace(f"{folder}/a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     print(os.listdir(folder))
    ['a.txt']
    """
    target = _target(path)
    temporary = target.with_name(_temporary(target.name))
    try:
        # not mkstemp: the file gets the permissions that the user's umask asks for
        temporary.touch(exist_ok=False)
        try:
            yield temporary
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path} can't be written: {_reason(error)}; what was there is intact") from error


@contextmanager
def replace_many(folder: StrPath) -> Iterator[Path]:
    """A temporary folder inside `folder`, whose files take their places in `folder` when the block succeeds.

    Every file is complete before the first is moved, and each is moved whole. `folder` is created where it is
    missing. When the block fails or is interrupted, what was in `folder` is as it was.

    Raises:
        OutputError: `folder` can't be created or written, or a folder stands where a file belongs.
    """
    with _moved_into(ensure_folder(folder)) as scratch:
        yield scratch


@contextmanager
def replace_beside(path: StrPath) -> Iterator[Path]:
    """As replace_many, for `path` and the files that go with it, in a folder that is there already.

    Raises:
        OutputError: `path` is a folder, or its folder is missing or can't be written.
    """
    with _moved_into(_target(path).parent) as scratch:
        yield scratch


@contextmanager
def _moved_into(target: Path) -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory(prefix=".surgeon-", dir=target) as scratch:
            yield Path(scratch)
            files = sorted(Path(scratch).iterdir())
            places = [_target(target / file.name) for file in files]
            for file, place in zip(files, places, strict=True):
                os.replace(file, place)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"the folder {target} can't be written: {_reason(error)}") from error


def write_text(path: StrPath, text: str) -> None:
    """Write `text` as UTF-8 to `path`, the whole or nothing.

    Raises:
        OutputError: `path` can't be written.
    """
    with replace(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _target(path: StrPath) -> Path:
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputError(f"{path} can't be written: it is a folder; name a file")
    if target.exists() and not target.is_file():
        raise OutputError(f"{path} can't be written: it is not a regular file")
    if not target.parent.is_dir():
        raise OutputError(f"{path} can't be written: the folder {target.parent} does not exist")
    return target


def _temporary(name: str) -> str:
    return f".{name[:40]}.{secrets.token_hex(4)}.tmp"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
