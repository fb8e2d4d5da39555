"""The user's own Python by name, `package.module:NAME` or `folder/file.py:NAME`: imported, and so run."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from surgeon.errors import InvalidArgument, first_line
from surgeon.support.spec import parts


def imported(source: str) -> ModuleType:
    """The module of a name, in the current folder too, or of a file NAME.py.

    Raises:
        InvalidArgument: it can't be imported.
    """
    with current_folder_importable():
        try:
            return _file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
        except Exception as error:  # importing runs the user's code
            raise InvalidArgument(
                f"{source} can't be imported: {type(error).__name__}: {first_line(error)}"
            ) from error


def called(spec: str) -> Any:
    """What `spec` names, which may be an attribute of a class; None if there is nothing of that name.

    Raises:
        InvalidArgument: it is of another form, or its module can't be imported.
    """
    named = parts(spec)
    if named is None:
        raise InvalidArgument(f"{spec!r}: give package.module:NAME or folder/file.py:NAME")
    source, name = named
    found: Any = imported(source)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """Inside of this, modules of the current folder can be imported, as by `python -m`."""
    folder = os.getcwd()
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    name = str(path.absolute())  # can't collide with a module's name
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
