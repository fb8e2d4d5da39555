"""The kit: points and probes in one file, to be measured on another CPU."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from surgeon.device.layout_probes import Probe
from surgeon.device.microbenchmark import Point, Whole
from surgeon.errors import ProfileError

FOLDER: Final = "kit"
"""The folder in the archive that holds the graphs, named by their digests, and `index.json`."""

FORMAT: Final = "surgeon-kit"
VERSION: Final = 2

_EPOCH = (1980, 1, 1, 0, 0, 0)  # so that the same kit is the same file, whenever it is written


@dataclasses.dataclass(frozen=True)
class Kit:
    """What `surgeon.device.take_profile.take` is to measure; `models` are whole models by fingerprint."""

    name: str
    points: tuple[Point, ...]
    probes: tuple[Probe, ...] = ()
    models: Mapping[str, Whole] = dataclasses.field(default_factory=dict)


def write_member(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file to an archive, with a fixed time."""
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content, zipfile.ZIP_DEFLATED)


def write(kit: Kit, archive: zipfile.ZipFile) -> None:
    """Add the kit to an archive; equal graphs are stored once."""
    stored: set[str] = set()

    def graphs(models: Mapping[Any, bytes]) -> dict[Any, str]:
        return {name: store(model) for name, model in models.items()}

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
        "points": [{**dataclasses.asdict(point), "model": store(point.model)} for point in kit.points],
        "probes": [{**dataclasses.asdict(probe), "candidates": graphs(probe.candidates)} for probe in kit.probes],
        "models": {
            mark: {**dataclasses.asdict(each), "model": store(each.model)} for mark, each in kit.models.items()
        },
    }
    write_member(archive, f"{FOLDER}/index.json", json.dumps(index, ensure_ascii=False).encode())


def read(path: str | os.PathLike[str]) -> Kit:
    """The kit that an archive holds.

    Raises `ProfileError` if the file is missing, not a kit, damaged, or of another version.
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
        name = Path(path).name
        raise ProfileError(f"{name} is not a kit, or was cut short ({error}); copy or make it again") from error


def _parse(index: dict[str, Any], archive: zipfile.ZipFile) -> Kit:
    def load(digest: str) -> bytes:
        return archive.read(f"{FOLDER}/{digest}.onnx")

    for entry in index["points"]:
        entry["widths"], entry["model"] = tuple(entry["widths"]), load(entry["model"])
        entry["inputs"] = _shapes(entry["inputs"])
    for entry in index["probes"]:
        entry["candidates"] = {int(width): load(model) for width, model in entry["candidates"].items()}
    points, probes = (Point(**entry) for entry in index["points"]), (Probe(**entry) for entry in index["probes"])
    for entry in index["models"].values():
        entry["model"], entry["inputs"] = load(entry["model"]), _shapes(entry["inputs"])
    models = {mark: Whole(**entry) for mark, entry in index["models"].items()}
    return Kit(index["name"], tuple(points), tuple(probes), models)


def _shapes(found: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in found.items()}
