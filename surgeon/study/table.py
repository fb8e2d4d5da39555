"""The rows of a study as a Markdown table: means and ranges over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from surgeon.study.runs import Run
from surgeon.study.store import Row

#: The settings that identify a point: rows that differ only in the seed are one point.
SETTINGS = tuple(field.name for field in fields(Run) if field.name != "seed")


def points(rows: Iterable[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """The successful rows by settings, one for each seed."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if "error" not in row:
            found.setdefault(tuple(row["run"][name] for name in SETTINGS), []).append(row)
    return found


def varied(rows: Iterable[Row]) -> list[str]:
    """The settings in which the rows differ."""
    rows = list(rows)
    return [name for name in SETTINGS if len({row["run"][name] for row in rows}) > 1]


def label(settings: Mapping[str, Any], names: Iterable[str]) -> str:
    """The name of a series: the values of the settings that vary, or the baseline's name.

    >>> label({"method": "prune", "criterion": "l1", "schedule": "steps:5"}, ["method", "criterion", "schedule"])
    'l1, steps:5'
    >>> label({"method": "small", "criterion": "l1"}, ["method", "criterion"])
    'small, from scratch'
    """
    method = settings["method"]
    own = [str(settings[name]) for name in names if name not in ("method", "ratio")]
    match method:
        case "prune":
            return ", ".join(own) or "pruned"
        case "scratch":
            return ", ".join([*(str(settings[n]) for n in names if n in ("criterion", "scope")), "from scratch"])
        case "small":
            return "small, from scratch"
        case _:
            return "dense, trained on"


def markdown(rows: Sequence[Row]) -> str:
    failed = [row for row in rows if "error" in row]
    kept = [row for row in rows if "error" not in row]
    lines: list[str] = []
    if kept:
        lines += _table(kept)
    if failed:
        lines += ["", f"{len(failed)} of {len(rows)} runs failed:", ""]
        lines += [f"- {row['key']}: {row['error'].splitlines()[0]}" for row in failed]
    return "\n".join(lines).strip() + "\n"


def spread(values: Sequence[float], form: str = ".4f") -> str:
    """The mean ± half the range; a dash if there are no values.

    >>> spread([0.5, 0.7])
    '0.6000 ± 0.1000'
    """
    if not values:
        return "–"
    half = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):{form}}" + (f" ± {half:{form}}" if len(values) > 1 else "")


def _table(rows: Sequence[Row]) -> list[str]:
    names = [name for name in varied(rows) if name != "ratio"]
    fixed = {name: rows[0]["run"][name] for name in SETTINGS if name not in (*names, "ratio")}
    seeds = sorted({row["run"]["seed"] for row in rows})
    dense = {row["run"]["seed"]: row["dense"] for row in rows}
    timed = any("latency" in row for row in rows)
    head = ["", "removed", "MACs left", "weights left", "before retraining", "after", "less than dense"]
    head += ["latency, ms", "speed-up"] if timed else []
    lines = [
        f"Mean over {len(seeds)} seed{'s' if len(seeds) > 1 else ''} ± half the range. The dense model: "
        f"{spread(list(dense.values()))}. Common to all: {', '.join(f'{k} {v}' for k, v in fixed.items())}.",
        "", f"| {' | '.join(head)} |", "|" + " --- |" * len(head),
    ]  # fmt: skip
    for settings, found in points(rows).items():
        given = dict(zip(SETTINGS, settings, strict=True))
        cells = [
            label(given, names), f"{given['ratio']:.0%}", _share(found, "macs"), _share(found, "params"),
            spread([row["before"] for row in found if row["before"] is not None]),
            spread([row["after"] for row in found]), spread([row["dense"] - row["after"] for row in found]),
        ]
        if timed:
            clocks = [row["latency"] for row in found if "latency" in row]
            cells += [spread([each["ms"] for each in clocks]), spread([each["speedup"] for each in clocks], ".2f")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _share(rows: Sequence[Row], name: str) -> str:
    return f"{statistics.mean(row[name] / row[f'dense_{name}'] for row in rows):.1%}"
