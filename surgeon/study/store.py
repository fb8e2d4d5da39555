"""The folder of a study.

`study.json` names the task and lists the runs; `rows/KEY.json` holds the row of each finished run, written atomically;
`dense/` holds the trained models that runs start from, `models/KEY.onnx` the models to be measured, and `work/` the
checkpoints from which unfinished runs resume.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgeon.errors import InvalidArgument
from surgeon.study.runs import Run, parse
from surgeon.support.documents import Document
from surgeon.support.files import StrPath, ensure_folder, remove_folder, write_text
from surgeon.support.opening import Unfit, read_bytes
from surgeon.support.scratch import sweep_tree
from surgeon.support.strict_json import loads

FORMAT = "surgeon-study"
VERSION = 1

Row = dict[str, Any]

_HEAD = Document("study", FORMAT, VERSION, InvalidArgument, "make the study again in another folder")


@dataclass(frozen=True)
class Store:
    """The files of a study."""

    folder: Path

    @property
    def head(self) -> Path:
        return self.folder / "study.json"

    def begin(self, settings: Mapping[str, Any], runs: Iterable[Run], root: str) -> None:
        """Write the settings and the list of runs; `root` is the folder from which the task is imported.

        Raises:
            InvalidArgument: the folder holds a study with other settings.
            OutputError: it can't be written.
        """
        ensure_folder(self.folder)
        self._tidy()
        if self.head.exists():
            known, _, _ = self.read()
            for name in (*settings, *known):
                if known.get(name) != settings.get(name):
                    raise InvalidArgument(
                        f"{self.folder} holds a study with {name}={known.get(name)!r}, not {settings.get(name)!r}; "
                        "choose another folder"
                    )
        head = {"format": FORMAT, "version": VERSION, "root": root, "settings": dict(settings)}
        write_text(self.head, json.dumps({**head, "runs": [asdict(run) for run in runs]}, indent=1) + "\n")

    def read(self) -> tuple[dict[str, Any], list[Run], str]:
        """The settings, the runs and the root.

        Raises:
            InvalidArgument: there is no study, or it is of a newer version.
        """
        def parts(head: dict[str, Any]) -> tuple[dict[str, Any], list[Run], str]:
            runs = [parse(entry) for entry in _HEAD.entry(head, "runs", list)]
            return _HEAD.entry(head, "settings", dict), runs, _HEAD.entry(head, "root", str)

        return _HEAD.read(self.head, parts)

    def row(self, run: Run) -> Row | None:
        """The row of a run that finished or failed; None if it has not been tried yet."""
        path = self._row(run)
        if not os.path.lexists(path):
            return None
        row = _read(path)
        if fault := _fault(row, run):
            raise InvalidArgument(f"{path} is broken: {fault}; delete it to have it made again")
        return row

    def rows(self, runs: Iterable[Run]) -> list[Row]:
        return [row for run in runs if (row := self.row(run)) is not None]

    def write(self, run: Run, row: Mapping[str, Any]) -> None:
        """Write a run's row; its checkpoints are no longer needed then, unless it failed."""
        path = self._row(run)
        ensure_folder(path.parent)
        write_text(path, json.dumps({"key": run.key, "run": asdict(run), **row}) + "\n")
        if "error" not in row:
            remove_folder(self.work(run))

    def work(self, run: Run) -> Path:
        """The checkpoints of a run."""
        return self.folder / "work" / run.key

    def onnx(self, run: Run) -> Path:
        """A run's model, for measuring its latency."""
        return self.folder / "models" / f"{run.key}.onnx"

    @property
    def base(self) -> Path:
        """The dense model, against which latency is measured."""
        return self.folder / "models" / "dense.onnx"

    def dense(self, run: Run) -> Path:
        """The folder of the trained model that a run starts from."""
        return self.folder / "dense" / f"{run.penalty.replace(':', '')}-s{run.seed}"

    def _tidy(self) -> None:
        """Remove what killed processes left behind: scratch folders, and checkpoints of finished runs."""
        sweep_tree(self.folder)
        for work in (self.folder / "work").glob("*"):
            row = self.folder / "rows" / f"{work.name}.json"
            if row.exists() and "error" not in _read(row):
                remove_folder(work)

    def _row(self, run: Run) -> Path:
        return self.folder / "rows" / f"{run.key}.json"


def store(folder: StrPath) -> Store:
    return Store(Path(folder).absolute())


def _fault(row: Mapping[str, Any], run: Run) -> str | None:
    """What is wrong with a row, if anything."""
    if row.get("run") != asdict(run) or row.get("key") != run.key:
        return "it is of another run"
    if "error" in row:
        return None if isinstance(row["error"], str) and row["error"] else "its error is not a text"
    clock = row.get("latency", {"ms": 1, "speedup": 1})
    if not isinstance(clock, dict):
        return "latency is not an object"
    numbers = {name: row.get(name) for name in ("dense", "after", "macs", "params", "dense_macs", "dense_params")}
    numbers |= {name: clock.get(name) for name in ("ms", "speedup")}
    if row.get("before", 0) is not None:
        numbers["before"] = row.get("before")
    if wrong := [name for name, value in numbers.items() if type(value) not in (int, float)]:
        return f"{wrong[0]} is not a number"
    if not (row["dense_macs"] > 0 and row["dense_params"] > 0):
        return "the dense model has no MACs or no parameters"
    return None


def _read(path: Path) -> Row:
    try:
        found = loads(read_bytes(path), finite=False)
    except Unfit as error:
        raise InvalidArgument(f"{path} is broken: {error}; delete it to have it made again") from error
    if not isinstance(found, dict):
        raise InvalidArgument(f"{path} is broken: it holds a {type(found).__name__}; delete it to have it made again")
    return found
