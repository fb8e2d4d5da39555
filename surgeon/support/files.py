"""Atomic writing of files: the complete new one is there, or what was there before, whenever the process ends.

Files are written into a scratch folder (support/scratch.py), flushed to the disk, and moved. Signals that end the
process are held back while they are moved. What a killed process leaves behind is removed by the next one that writes
to the same folder, or put in place if the process had got that far.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Union

from surgeon.errors import OutputError
from surgeon.support import scratch as scratches
from surgeon.support.exchange import take_place
from surgeon.support.interrupts import held
from surgeon.support.scratch import READY, locked, scratch, settle, sync

StrPath = Union[str, os.PathLike[str]]
_DATA = (".data", ".other.data")  # endings of files that another refers to: one is free while the other is in use
_MOST_HEAD = 1 << 26  # bytes; a file that refers to others is small, since these hold the weights


def ensure_folder(folder: StrPath) -> Path:
    """Create `folder` and its parents where they are missing, and make sure that a file can be written in it.

    Raises:
        OutputError: a file stands in the way, or the folder can't be created or written.
    """
    path = Path(folder)
    with _writing(f"the folder {path}"):
        path.mkdir(parents=True, exist_ok=True)
        with scratch(path):
            pass
    return path


@contextmanager
def replace(path: StrPath) -> Iterator[Path]:
    """A temporary path, whose file replaces `path`, with its permissions, when the block succeeds.

    When the block fails or is interrupted, the temporary file is gone and `path` is as it was. A link is
    followed.

    Raises:
        OutputError: `path` is a folder or a device, or its folder is missing or can't be written.

    >>> from surgeon.support.scratch import temporary_folder
    >>> with temporary_folder() as folder:
    ...     with replace(f"{folder}/a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     print(os.listdir(folder))
    ['a.txt']
    """
    target = _target(path)
    with _writing(path, "; what was there is intact"), scratch(target.parent) as made:
        temporary = made / target.name
        temporary.touch(exist_ok=False)  # with the permissions that the user's umask asks for
        yield temporary
        with held():
            _finish([temporary], [target])
            os.replace(temporary, target)
            sync(target.parent)


@contextmanager
def replace_many(folder: StrPath) -> Iterator[Path]:
    """A temporary folder, whose files all appear in `folder` at once when the block succeeds.

    `folder` and its parents are created then, where they are missing. What else is in `folder` stays there at every
    moment. When the block fails or is interrupted, `folder` is as it was.

    An existing folder is swapped with the new one in one step of the file system, and its other files are taken over
    as hard links. Where that can't be done (it holds folders or links to follow, is the current folder, a mount point
    or of another owner, its parent can't be written, the file system can't swap), the files are moved into it one by
    one. Until the last is there, a folder READY inside holds the new ones: `find` looks there, and if the process is
    killed, the next one that writes to `folder` moves the rest.

    Raises:
        OutputError: `folder` can't be created or written, or a folder stands where a file belongs.

    >>> from surgeon.support.scratch import temporary_folder
    >>> with temporary_folder() as home:
    ...     with replace_many(home / "out") as made:
    ...         _ = (made / "a").write_text("a"), (made / "b").write_text("b")
    ...     print(sorted(os.listdir(home / "out")))
    ['a', 'b']
    """
    # lexists: a link to nowhere stands in the way of a folder
    nearest = next(place for place in (Path(folder), *Path(folder).parents) if os.path.lexists(place))
    ensure_folder(nearest)
    place = Path(os.path.realpath(folder))
    home = next(each for each in (place, *place.parents) if each.exists())
    for each in place.parents:  # any of them was home before those below it were there
        scratches.sweep(each)
    with _writing(f"the folder {folder}"), ExitStack() as stack:
        made = _beside(place, home, stack)
        new = made / "new" / place.relative_to(home)  # with the parents that are missing
        new.mkdir(parents=True)
        yield new
        with held():
            _publish(new, place, home, made)


@contextmanager
def replace_beside(path: StrPath) -> Iterator[Path]:
    """A temporary folder, whose files are moved beside `path` when the block succeeds, the one that replaces it last.

    The others are those that `path` refers to, under the name `free_name`, to which the old `path` did not refer: so
    either the old file and those it refers to are there, or the new ones. Old ones are removed at the end.

    Raises:
        OutputError: `path` is a folder, or its folder is missing or can't be written.
    """
    target = _target(path)
    with _writing(path, "; what was there is intact"), scratch(target.parent) as made:
        yield made
        files = sorted(made.iterdir(), key=lambda file: (file.name == target.name, file.name))
        places = [target if file.name == target.name else _target(target.parent / file.name) for file in files]
        with held():
            old = [name for name in referred(target) if name not in {file.name for file in files}]
            _finish(files, places)
            for file, place in zip(files, places):
                os.replace(file, place)
                sync(place.parent)
            for name in old:
                (target.parent / name).unlink(missing_ok=True)


def free_name(temporary: Path) -> str:
    """A name for a file that `temporary`, in a folder of `replace_beside`, refers to and its predecessor does not."""
    target = temporary.parent.parent / temporary.name
    used = referred(target)
    return next(name for end in _DATA if (name := f"{target.name}{end}") not in used)


def write_text(path: StrPath, text: str) -> None:
    """Write `text` as UTF-8 to `path`, atomically.

    Raises:
        OutputError: `path` can't be written.
    """
    with replace(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def find(folder: StrPath, name: str) -> Path:
    """Where the file `name` of `folder` is: in it, or about to be moved there."""
    ready = (place / READY / name for place in scratches.found(Path(folder)))
    return next((file for file in ready if file.is_file()), Path(folder) / name)


def marks(folder: StrPath, names: Sequence[str]) -> list[tuple[int, ...] | None]:
    """Marks that change when a file is replaced: equal before and after a read, if all files were of one version."""
    found: list[tuple[int, ...] | None] = []
    for name in names:
        try:
            state = find(folder, name).stat()
            found.append((state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))
        except OSError:
            found.append(None)
    return found


def remove_folder(folder: Path) -> None:
    """Remove a folder with its contents, atomically, if it exists."""
    if folder.exists():
        with scratch(folder.parent) as made:
            os.rename(folder, made / folder.name)


def _beside(place: Path, home: Path, stack: ExitStack) -> Path:
    """A scratch folder from which a folder can be moved to `place`; inside of `place` if there is no other choice."""
    if place != home:  # it is missing
        return stack.enter_context(scratch(home))
    if not os.path.ismount(place) and os.access(place.parent, os.W_OK | os.X_OK):
        try:
            return stack.enter_context(scratch(place.parent))
        except OSError:  # such as a read-only file system, which os.access does not show
            pass
    return stack.enter_context(scratch(place))


def _publish(new: Path, place: Path, home: Path, made: Path) -> None:
    files = sorted(new.iterdir())
    if not place.exists():
        _finish(files, [])
        first = place.relative_to(home).parts[0]
        try:
            os.rename(made / "new" / first, home / first)
            sync(home)
            return
        except OSError:
            if not place.is_dir():  # else another process was faster
                raise
    targets = [_target(place / file.name) for file in files]
    _finish(files, targets)
    names = {file.name for file in files}
    followed = any(target != place / file.name for file, target in zip(files, targets))
    if made.parent != place and not followed and take_place(new, place, names):
        sync(place.parent)
        return
    for file, target in zip(files, targets):
        if target.parent.stat().st_dev != place.stat().st_dev:
            raise OutputError(f"{place / file.name} can't be replaced: it is a link to another disk; remove the link")
    with scratch(place) as inside, locked(place):
        waiting = inside / "new"
        waiting.mkdir()
        for file in files:
            _carry(file, waiting / file.name)
        sync(waiting)
        os.rename(waiting, inside / READY)  # from here on, the new ones are the valid ones
        sync(inside)
        settle(inside)
        sync(place)


def _carry(file: Path, place: Path) -> None:
    try:
        os.rename(file, place)
    except OSError:  # a mount point in between
        place.write_bytes(file.read_bytes())
        place.chmod(stat.S_IMODE(file.stat().st_mode))
        sync(place)


def _finish(files: Sequence[Path], targets: Sequence[Path]) -> None:
    """Flush files to the disk, and give them the permissions of those that they replace."""
    for file in files:
        sync(file)
    for file, target in zip(files, targets):
        if target.exists():
            file.chmod(stat.S_IMODE(target.stat().st_mode))
    for folder in {file.parent for file in files}:
        sync(folder)


def referred(path: Path) -> list[str]:
    """The names of surgeon's files beside `path` that it refers to."""
    if not path.is_file() or path.stat().st_size > _MOST_HEAD:
        return []
    content = path.read_bytes()
    return [name for end in _DATA if (name := f"{path.name}{end}").encode() in content]


def _target(path: StrPath) -> Path:
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputError(f"{path} can't be written: it is a folder; name a file")
    if target.exists() and not target.is_file():
        raise OutputError(f"{path} can't be written: it is not a regular file")
    if not target.parent.is_dir():
        raise OutputError(f"{path} can't be written: the folder {target.parent} does not exist")
    return target


@contextmanager
def _writing(what: StrPath, intact: str = "") -> Iterator[None]:
    """Raise an error of the system in the block as OutputError: `what` can't be written."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{what} can't be written: {error.strerror or error}{intact}") from error
