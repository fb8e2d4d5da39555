"""The plots of a study: the metric over MACs and over measured latency, with the range over seeds."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from surgeon.reporting.figures import FAINT, INK, KINDS, canvas, style, svg
from surgeon.study.store import Row
from surgeon.study.table import SETTINGS, label, points, varied

__all__ = ["available", "by_latency", "by_macs", "svg"]

Place = Callable[[Row], float]


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def by_macs(rows: Sequence[Row]) -> Any:
    """The metric after retraining over the share of MACs left, or of weights where connections are pruned."""
    return _plot(rows, _left, "MACs left (of connections: weights left)", 100)


def by_latency(rows: Sequence[Row]) -> Any:
    """The metric after retraining over the measured milliseconds per sample."""
    return _plot([row for row in rows if "latency" in row], lambda row: row["latency"]["ms"], "measured latency, ms", 1)


def _left(row: Row) -> float:
    name = "params" if row["run"]["removed"] == "connections" else "macs"
    return float(row[name] / row[f"dense_{name}"])


def _plot(rows: Sequence[Row], place: Place, axis: str, scale: int) -> Any:
    """A line of means for runs that differ only in ratio and seed, with error bars from the lowest to the highest."""
    kept = [row for row in rows if "error" not in row]
    names = varied(kept)
    series: dict[str, list[tuple[float, list[float]]]] = {}
    for settings, found in points(kept).items():
        name = label(dict(zip(SETTINGS, settings, strict=True)), names)
        where = statistics.mean(place(row) for row in found) * scale
        series.setdefault(name, []).append((where, [row["after"] for row in found]))
    dense = list({row["run"]["seed"]: row["dense"] for row in kept}.values())
    with style():
        figure = canvas(7.2, 4.0 + 0.11 * len(series))
        axes = figure.subplots()
        if dense:
            axes.axhspan(min(dense), max(dense), color=FAINT, alpha=0.2, linewidth=0)
            axes.axhline(statistics.mean(dense), color=FAINT, linewidth=1, label="dense")
        for index, (name, found_points) in enumerate(series.items()):
            found_points.sort()
            places = [where for where, _ in found_points]
            means = [statistics.mean(values) for _, values in found_points]
            below = [mean - min(values) for mean, (_, values) in zip(means, found_points, strict=True)]
            above = [max(values) - mean for mean, (_, values) in zip(means, found_points, strict=True)]
            axes.errorbar(
                places, means, yerr=[below, above], label=name, color=KINDS[index % len(KINDS)],
                linestyle=("-", "--", ":")[index // len(KINDS) % 3], marker="o", markersize=4, linewidth=1.3, capsize=2,
            )  # fmt: skip
        axes.set_xlabel(f"{axis}{', %' if scale == 100 else ''}")
        axes.set_ylabel("metric after retraining")
        axes.tick_params(colors=INK)
        axes.grid(alpha=0.25)
        figure.legend(frameon=False, fontsize=8, ncols=2, loc="outside lower center")
    return figure
