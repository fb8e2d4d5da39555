"""The kit: points and probes that travel in one file to the CPU that they are measured on."""

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from surgeon.device.layout_probes import Probe
from surgeon.device.microbenchmark import Point
from surgeon.errors import ProfileError

FOLDER: Final = "kit"
"""Where an archive holds the graphs, each by its digest, and `index.json`."""

FORMAT: Final = "surgeon-kit"
VERSION: Final = 1

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same kit is the same file, whenever it is written


@dataclasses.dataclass(frozen=True)
class Kit:
    """What is to be measured, as `surgeon.device.take_profile.take` does; `models` are whole ones by fingerprint."""

    name: str
    points: tuple[Point, ...]
    probes: tuple[Probe, ...] = ()
    models: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


def write_member(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file to an archive, without the time of writing it."""
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content, zipfile.ZIP_DEFLATED)


def write(kit: Kit, archive: zipfile.ZipFile) -> None:
    """Add the kit to an archive; a graph that it holds several times is stored once."""
    stored: set[str] = set()

    def store(model: bytes) -> str:
        digest = hashlib.sha256(model).hexdigest()[:20]
        if digest not in stored:
            stored.add(digest)
            write_member(archive, f"{FOLDER}/{digest}.onnx", model)
        return digest

    index = {
        "format": FORMAT,
        "version": VERSION,
        "name": kit.name,
        "points": [
            {
                "operator": point.operator,
                "widths": list(point.widths),
                "inputs": {name: list(shape) for name, shape in point.inputs.items()},
                "copies": point.copies,
                "flush": point.flush,
                "whole": point.whole,
                "model": store(point.model),
            }
            for point in kit.points
        ],
        "probes": [
            {
                "name": probe.name,
                "question": probe.question,
                "candidates": {width: store(model) for width, model in probe.candidates.items()},
            }
            for probe in kit.probes
        ],
        "models": {fingerprint: store(model) for fingerprint, model in kit.models.items()},
    }
    write_member(archive, f"{FOLDER}/index.json", json.dumps(index, ensure_ascii=False).encode())


def read(path: str | os.PathLike[str]) -> Kit:
    """The kit that an archive holds.

    Raises `ProfileError` if the file is missing, no kit, damaged, or of a newer version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            index = json.loads(archive.read(f"{FOLDER}/index.json"))
            if index["format"] != FORMAT or index["version"] != VERSION:
                raise ProfileError(f"{path} is a kit of version {index['version']}, not {VERSION}; make it again")
            return _parse(index, archive)
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        if isinstance(error, ProfileError):
            raise
        raise ProfileError(f"{Path(path).name} is no kit, or was cut short ({error}); copy or make it again") from error


def _parse(index: dict[str, Any], archive: zipfile.ZipFile) -> Kit:
    def load(digest: str) -> bytes:
        return archive.read(f"{FOLDER}/{digest}.onnx")

    points = [
        Point(
            operator=entry["operator"],
            widths=tuple(entry["widths"]),
            model=load(entry["model"]),
            inputs={name: tuple(shape) for name, shape in entry["inputs"].items()},
            copies=entry["copies"],
            flush=entry["flush"],
            whole=entry["whole"],
        )
        for entry in index["points"]
    ]
    probes = [
        Probe(
            name=entry["name"],
            candidates={int(width): load(model) for width, model in entry["candidates"].items()},
            question=entry["question"],
        )
        for entry in index["probes"]
    ]
    models = {fingerprint: load(model) for fingerprint, model in index["models"].items()}
    return Kit(index["name"], tuple(points), tuple(probes), models)
