"""Writing a file so that either the whole new one is there, or what was there before."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surgeon.errors import OutputError


@contextmanager
def scratch_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder in the folder of `path`, on the same file system, gone afterwards.

    Raises `OutputError` at once if `path` is a folder or its folder is missing or can't be written.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"{target} is a folder; name a file in it")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: the folder {target.parent} does not exist; create it first")
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise OutputError(f"{target}: the folder {target.parent} can't be written ({error})") from error
    with folder:
        yield Path(folder.name)


def publish(scratch: Path, target: Path) -> int:
    """Move the files of `scratch` beside `target`, the one of its name last; the number of their bytes."""
    files = sorted(scratch.iterdir(), key=lambda file: file.name == target.name)
    size = sum(file.stat().st_size for file in files)
    try:
        for file in files:
            os.replace(file, target.parent / file.name)
    except OSError as error:
        raise OutputError(f"{target} could not be written ({error})") from error
    return size
