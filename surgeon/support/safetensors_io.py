"""Tensors written to disk as safetensors."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from surgeon.errors import InvalidModel, OutputError
from surgeon.support import strict_json
from surgeon.support.opening import MIB, Unfit, open_file

_HEADER = 32 * MIB


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write `tensors` by name to `path`, with the permissions that the user's umask gives a new file.

    The tensors are dense, and no two share memory.

    Raises:
        InvalidModel: a tensor is of a kind that safetensors does not know.
        OutputError: the disk is full, or `path` can't be written.

    >>> import os, tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_tensors(Path(folder) / "a.safetensors", {"a": torch.ones(2)})
    ...     print(os.listdir(folder))
    ['a.safetensors']
    """
    try:
        path.touch()
        mode = stat.S_IMODE(path.stat().st_mode)
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))
        path.chmod(mode)  # safetensors writes a new file there, which only its owner may read
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        if "I/O error" in str(error):  # only the text of safetensors' error shows it
            reason = str(error).rpartition("I/O error: ")[2].partition(" (os error")[0]
            raise OutputError(f"{path} can't be written: {reason}") from error
        raise InvalidModel(f"the tensors can't be stored: {error}") from error


def check_header(path: Path) -> None:
    """Make sure that a safetensors file is a regular file whose header has each name once.

    Raises:
        Unfit: it is not; the library checks the rest.
    """
    with open_file(path) as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _HEADER:
            raise Unfit(f"its header claims {size:,} bytes; at most {_HEADER:,} are read")
        strict_json.loads(file.read(size))
