"""Results as lines of JSON: the last line of a key counts. And the options by which rows are chosen."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch


def last(path: Path, key: str) -> dict[str, dict[str, Any]]:
    """The last row of each value of `key`; none where there is no file yet."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {row[key]: row for row in rows}


def command(text: str | None) -> argparse.ArgumentParser:
    """The options that the commands with rows share; `text` is the command's own docstring."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="rows whose name contains this")
    parser.add_argument("--redo", action="store_true", help="run again what has a result")
    parser.add_argument("--table", action="store_true", help="run nothing")
    return parser


def to_run(keys: Iterable[str], only: Sequence[str], redo: bool, done: Container[str]) -> list[str]:
    """The rows that are asked for and have no result yet.

    >>> to_run(["a:0", "a:1", "b:0"], ["a"], False, {"a:0"})
    ['a:1']
    """
    return [key for key in keys if (not only or any(part in key for part in only)) and (redo or key not in done)]


def append(path: Path, row: dict[str, Any]) -> None:
    """Print a row, and add it to its file."""
    line = json.dumps(row)
    print(line, flush=True)
    with path.open("a", encoding="utf-8") as out:
        out.write(line + "\n")


def over_names(
    text: str | None, names: Iterable[str], rows: Path, page: Path, show: Callable[[dict[str, dict[str, Any]]], str],
    make: Callable[[str], dict[str, Any]], key: str = "model",
) -> None:
    """A command that makes a row of each name, with one thread, and shows all of them as a table."""
    given = command(text).parse_args()
    torch.set_num_threads(1)
    for name in [] if given.table else to_run(names, given.only, given.redo, last(rows, key)):
        append(rows, {key: name, **make(name)})
    publish(show(last(rows, key)), page)


def publish(text: str, path: Path) -> None:
    """Write a table to its file, and print it."""
    path.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def last_line(text: str) -> str:
    """The last line of what was printed or raised, which says most.

    >>> last_line("Traceback\\n  ...\\nValueError: it is odd\\n")
    'ValueError: it is odd'
    """
    return text.strip().splitlines()[-1]
