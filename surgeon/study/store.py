"""The folder of a study.

`study.json` says which task it is of and lists the runs; `rows/KEY.json` holds the row of each run that is done,
written as a whole; `dense/` has the trained models that runs start from, `models/KEY.onnx` what is measured, and
`work/` what unfinished runs resume from.
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
from surgeon.support.files import StrPath, ensure_folder, remove_folder, write_text
from surgeon.support.opening import Unfit, read_bytes
from surgeon.support.scratch import sweep_tree
from surgeon.support.strict_json import loads

FORMAT = "surgeon-study"
VERSION = 1

Row = dict[str, Any]


@dataclass(frozen=True)
class Store:
    """What is on disk."""

    folder: Path

    @property
    def head(self) -> Path:
        """The list of runs."""
        return self.folder / "study.json"

    def begin(self, settings: Mapping[str, Any], runs: Iterable[Run], root: str) -> None:
        """Write what the study is to do; `root` is the folder from which its task is imported.

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
        head = _json(self.head)
        if head.get("format") != FORMAT or head.get("version") != VERSION:
            raise InvalidArgument(f"{self.head} is no study of version {VERSION}")
        settings, runs, root = (head.get(name) for name in ("settings", "runs", "root"))
        if not isinstance(settings, dict) or not isinstance(runs, list) or not isinstance(root, str):
            raise InvalidArgument(f"{self.head} is broken: it lacks its settings, runs or root; make the study again")
        return settings, [parse(entry) for entry in runs], root

    def row(self, run: Run) -> Row | None:
        """The row of a run that is done, or that failed; None where it was not tried yet."""
        path = self._row(run)
        if not os.path.lexists(path):
            return None
        row = _json(path)
        if fault := _fault(row, run):
            raise InvalidArgument(f"{path} is broken: {fault}; delete it to have it made again")
        return row

    def rows(self, runs: Iterable[Run]) -> list[Row]:
        """The rows that are there, in the order of the runs."""
        return [row for run in runs if (row := self.row(run)) is not None]

    def write(self, run: Run, row: Mapping[str, Any]) -> None:
        """Write a run's row, after which there is nothing to resume."""
        path = self._row(run)
        ensure_folder(path.parent)
        write_text(path, json.dumps({"key": run.key, "run": asdict(run), **row}) + "\n")
        if "error" not in row:
            remove_folder(self.work(run))

    def work(self, run: Run) -> Path:
        """What a run resumes from."""
        return self.folder / "work" / run.key

    def onnx(self, run: Run) -> Path:
        """What of a run is measured."""
        return self.folder / "models" / f"{run.key}.onnx"

    @property
    def base(self) -> Path:
        """The dense model, with which it is compared."""
        return self.folder / "models" / "dense.onnx"

    def dense(self, run: Run) -> Path:
        """Where the trained model is that a run starts from."""
        return self.folder / "dense" / f"{run.penalty.replace(':', '')}-s{run.seed}"

    def _tidy(self) -> None:
        """Remove what processes that were killed left: scratch folders, and what runs that are done went on from."""
        sweep_tree(self.folder)
        for work in (self.folder / "work").glob("*"):
            row = self.folder / "rows" / f"{work.name}.json"
            if row.exists() and "error" not in _json(row):
                remove_folder(work)

    def _row(self, run: Run) -> Path:
        return self.folder / "rows" / f"{run.key}.json"


def store(folder: StrPath) -> Store:
    """The store in a folder."""
    return Store(Path(folder).absolute())


def _fault(row: Mapping[str, Any], run: Run) -> str | None:
    """What a row lacks, if anything."""
    if row.get("run") != asdict(run) or row.get("key") != run.key:
        return "it is of another run"
    if "error" in row:
        return None if isinstance(row["error"], str) and row["error"] else "its error is no text"
    clock = row.get("latency", {"ms": 1, "speedup": 1})
    if not isinstance(clock, dict):
        return "latency is none"
    numbers = {name: row.get(name) for name in ("dense", "after", "macs", "params", "dense_macs", "dense_params")}
    numbers |= {name: clock.get(name) for name in ("ms", "speedup")}
    if row.get("before", 0) is not None:
        numbers["before"] = row.get("before")
    if wrong := [name for name, value in numbers.items() if type(value) not in (int, float)]:
        return f"{wrong[0]} is no number"
    if not (row["dense_macs"] > 0 and row["dense_params"] > 0):
        return "the dense model has no size"
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_bytes(path)
    except Unfit as error:
        raise InvalidArgument(f"{path} can't be read: {error}; is this the folder of a study?") from error
    try:
        found = loads(content, finite=False)
    except Unfit as error:
        raise InvalidArgument(f"{path} is broken: {error}; delete it to have it made again") from error
    if not isinstance(found, dict):
        raise InvalidArgument(f"{path} is broken: it holds a {type(found).__name__}; delete it")
    return found
