"""Reading an exported program from its file. torch gets checked values only, and never opens the file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch._export.serde import schema
from torch._export.serde.serialize import ExportedProgramDeserializer, _dict_to_dataclass
from torch.export import ExportedProgram

from surgeon.frontend.exported.members import Members, members
from surgeon.frontend.exported.samples import read_samples
from surgeon.frontend.exported.schema import checked
from surgeon.frontend.exported.tensors import numbers, read_tensors
from surgeon.support import strict_json
from surgeon.support.opening import KIB, MIB, Unfit, open_file

_MODEL: Final = "models/model.json"
_SAMPLES: Final = "data/sample_inputs/model.pt"
_JSON: Final = 64 * MIB
_SAMPLE: Final = 512 * MIB
_FOLDERS: Final = ("data/weights/", "data/constants/", ".data/", "extra/")
_FILES: Final = frozenset((_MODEL, _SAMPLES, "archive_format", "archive_version", "byteorder", "version"))
#: Members that are refused, by the start of their names, and why.
_REFUSED: Final = (
    ("data/aotinductor/", "holds compiled code"),
    ("data/constants/custom_obj_", "holds a pickled Python object, which would run code when it is read"),
    ("data/constants/opaque_obj_", "holds a pickled Python object, which would run code when it is read"),
    ("data/weights/model.pt", "holds pickled weights"),
    ("data/constants/model.pt", "holds pickled constants"),
)


def read_program(path: str | os.PathLike[str]) -> ExportedProgram:
    """The program that `torch.export.save` wrote to `path`.

    Raises:
        Unfit: the file is not a program, holds something that could run code, or claims more data than it has; the
            message names the member.
        RuntimeError: torch can't assemble the program; it may raise other kinds of errors too.
    """
    with open_file(path) as file, members(file, os.fstat(file.fileno()).st_size) as archive:
        _check_members(archive)
        data = _in(_MODEL, lambda: checked(schema.ExportedProgram, strict_json.loads(archive.read(_MODEL, _JSON))))
        state, of_state = read_tensors(archive, "weights", "weight")
        constants, of_constants = read_tensors(archive, "constants", "tensor")
        _in(_MODEL, lambda: _check_claims(data["graph_module"], {**of_state, **of_constants}))
        samples = None
        if _SAMPLES in archive.entries:
            samples = _in(_SAMPLES, lambda: read_samples(archive.read(_SAMPLES, _SAMPLE)))
    with _silent():
        program = _dict_to_dataclass(schema.ExportedProgram, data)
        return ExportedProgramDeserializer().deserialize(program, state, constants, samples)


def _in(member: str, read: Any) -> Any:
    try:
        return read()
    except Unfit as error:
        raise Unfit(f"{member}: {error}") from error


def _check_members(archive: Members) -> None:
    for name in archive.entries:
        if reason := next((reason for start, reason in _REFUSED if name.startswith(start)), None):
            raise Unfit(f"{name} {reason}; export the model without it")
        if name not in _FILES and not name.startswith(_FOLDERS):
            raise Unfit(f"torch.export.save writes no member {name!a}")
    if "archive_format" not in archive.entries:
        raise Unfit("it is not a program, or was written by torch before 2.8; export the model again")
    for name, wanted in (("archive_format", b"pt2"), ("archive_version", b"0"), ("byteorder", b"little")):
        if name in archive.entries and (found := archive.read(name, KIB)) != wanted:
            raise Unfit(f"{name} is {found[:20]!a}, and not {wanted!a}")


def _check_claims(module: Mapping[str, Any], stored: Mapping[str, Mapping[str, Any]]) -> None:
    """Make sure that the parameters, buffers and constants in the file are as the graph declares them."""
    claims = module["graph"]["tensor_values"]
    for spec in module["signature"]["input_specs"]:
        ((kind, entry),) = spec.items()
        name = next((value for key, value in entry.items() if key.endswith("_name")), None)
        if name is None or kind == "user_input":
            continue
        claim, held = claims.get(entry["arg"]["name"]), stored.get(name)
        if claim is None or held is None:
            raise Unfit(f"{name[:80]}: the file holds no such tensor")
        sizes = numbers(claim["sizes"]), numbers(held["sizes"])
        if sizes[0] != sizes[1] or claim["dtype"] != held["dtype"]:
            raise Unfit(f"{name[:80]} is declared with shape {sizes[0]}, but stored with {sizes[1]}")


@contextmanager
def _silent() -> Iterator[None]:
    """Without torch's log messages: errors say what is wrong."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with torch.no_grad():
            yield
    finally:
        logging.disable(before)
