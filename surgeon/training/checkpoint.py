"""Training state on disk: plain values as JSON, tensors as safetensors, nothing that runs code when it is read.

A checkpoint is a folder. `tensors-STEP.safetensors` holds the tensors, and `checkpoint.json` everything else:

    {"format": "surgeon-checkpoint", "version": 1, "tensors": "tensors-120.safetensors", "state": …}

In `state`, `{"tensor": NAME}` stands for a tensor of the file, `{"tuple": […]}` for a tuple, and
`{"dict": [[key, value], …]}` for a dict, whose keys need not be strings. `checkpoint.json` is replaced last and
atomically, so an interrupted write leaves the previous checkpoint intact.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from surgeon.errors import InvalidArgument, WeightsError
from surgeon.support.files import StrPath, ensure_folder, replace, write_text
from surgeon.support.opening import Unfit, read_bytes
from surgeon.support.safetensors_io import check_header, write_tensors
from surgeon.support.strict_json import loads

FORMAT = "surgeon-checkpoint"
VERSION = 1
HEAD = "checkpoint.json"
_PATTERN = "tensors-*.safetensors"


def write(folder: StrPath, state: Mapping[str, Any], step: int) -> None:
    """Replace the checkpoint in `folder`, which is created if it is missing, by `state`.

    Raises:
        InvalidArgument: `state` holds something that is neither a tensor nor a plain value; the message says where.
        InvalidModel: a tensor is of a type that can't be stored.
        OutputError: `folder` can't be written; the previous checkpoint is intact.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(folder, {"rates": (0.1, 0.2), "moments": {0: torch.ones(2)}}, step=3)
    ...     print(read(folder))
    {'rates': (0.1, 0.2), 'moments': {0: tensor([1., 1.])}}
    """
    tensors: dict[str, Tensor] = {}
    plain = _encode(dict(state), "", tensors)
    path = ensure_folder(folder)
    old = _old(path)
    name = f"tensors-{step}.safetensors"
    if name == old:  # the file that the present checkpoint refers to is never replaced
        name = f"tensors-{step}-again.safetensors"
    with replace(path / name) as temporary:
        write_tensors(temporary, tensors)
    head = {"format": FORMAT, "version": VERSION, "tensors": name, "state": plain}
    write_text(path / HEAD, json.dumps(head) + "\n")
    for file in path.glob(_PATTERN):
        if file.name != name:
            file.unlink(missing_ok=True)


def read(folder: StrPath) -> dict[str, Any] | None:
    """The state that was written; None if `folder` holds no checkpoint. Tensors are on the CPU.

    Raises:
        WeightsError: the checkpoint is broken, or of a newer version.
    """
    path = Path(folder) / HEAD
    if not os.path.lexists(path):
        return None
    try:
        head = loads(read_bytes(path), finite=False)
    except Unfit as error:
        raise WeightsError(f"{path} can't be read: {error}; delete the folder to start over") from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise WeightsError(f'{path} is not a checkpoint: the entry "format" must be "{FORMAT}"; choose another folder')
    if head.get("version") != VERSION:
        raise WeightsError(f"{path} is of version {head.get('version')}, this surgeon reads {VERSION}; update surgeon")
    try:
        name = head["tensors"]
        if Path(name).name != name:  # the file lies beside it
            raise WeightsError(f"the checkpoint {path} is broken: {name!r} is not the name of a file beside it")
        check_header(path.parent / name)
        tensors = load_file(path.parent / name)
        state = _decode(head["state"], tensors)
        if not isinstance(state, dict):
            raise TypeError(f"its state is a {type(state).__name__}")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"the checkpoint {path} is broken: {error}; delete the folder to start over") from error
    return dict(state)


def _old(path: Path) -> str | None:
    try:
        return str(loads(read_bytes(path / HEAD), finite=False)["tensors"])
    except (Unfit, KeyError, TypeError):  # there is none, or a broken one, which is replaced
        return None


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case np.generic():
            return value.item()
        case Tensor():
            name = f"{len(tensors)}{place}"
            # a copy, since safetensors refuses tensors that share memory
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {"tensor": name}
        case tuple():
            return {"tuple": [_encode(each, f"{place}.{index}", tensors) for index, each in enumerate(value)]}
        case list():
            return [_encode(each, f"{place}.{index}", tensors) for index, each in enumerate(value)]
        case Mapping():
            for key in value:
                if not isinstance(key, int | float | str | None):
                    raise InvalidArgument(f"{place[1:]}: a key of type {type(key).__name__} can't be written")
            return {"dict": [[key, _encode(each, f"{place}.{key}", tensors)] for key, each in value.items()]}
        case _:
            raise InvalidArgument(
                f"{place[1:]} is a {type(value).__name__}, which can't be written to a checkpoint; "
                "state_dict() must hold tensors, numbers, text, lists and dicts alone"
            )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    match value:
        case {"tensor": name}:
            return tensors[name]
        case {"tuple": items}:
            return tuple(_decode(each, tensors) for each in items)
        case {"dict": pairs}:
            return {key: _decode(each, tensors) for key, each in pairs}
        case list():
            return [_decode(each, tensors) for each in value]
        case _:
            return value
