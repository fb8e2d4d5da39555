"""Where the milliseconds of a latency budget go, by operator: before, after, and what no widths touch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surgeon.device.clock import CPU_TIME, Clock
from surgeon.reporting.figures import BASE, SLIM, bare, canvas, short, style

TOP = 18
"""Operators that have a bar of their own; the others share one."""
FLOOR = "#e8893a"
_LAYOUT, _LAYOUTS = "layout of ", "changes of layout"
_NAMED = 3
_MOST = 100_000
_WIDTH = 9.0


@dataclass(frozen=True)
class Row:
    """Milliseconds of an operator before and after, and the least that any widths bring it to."""

    label: str
    before: float = 0.0
    after: float = 0.0
    least: float = 0.0

    def __add__(self, other: Row) -> Row:
        return Row(self.label, self.before + other.before, self.after + other.after, self.least + other.least)

    def scaled(self, before: float, after: float) -> Row:
        return Row(self.label, before * self.before, after * self.after, after * self.least)


def rows(latency: Mapping[str, Any]) -> list[Row]:
    """The operators of a report's latency, those that took longest first, scaled to what was measured.

    Changes of layout are one row.

    >>> each = {"label": "fc", "before": 2.0, "after": 1.0, "least": 0.25}
    >>> rows({"base": 4.0, "predicted": 1.0, "measured": 2.0, "operators": [each]})
    [Row(label='fc', before=4.0, after=2.0, least=0.5)]
    """
    given = latency.get("operators") or []
    if not given:
        return []
    if len(given) > _MOST:
        raise ValueError("operators")
    found: dict[str, Row] = {}
    for each in given:
        label = _LAYOUTS if each["label"].startswith(_LAYOUT) else each["label"]
        row = Row(label, float(each["before"]), float(each["after"]), float(each["least"]))
        if not all(0 <= ms < 1e12 for ms in (row.before, row.after, row.least)):
            raise ValueError("operators")
        found[label] = found.get(label, Row(label)) + row
    before, after = (sum(getattr(row, side) for row in found.values()) for side in ("before", "after"))
    taken = latency["predicted"] if latency.get("measured") is None else latency["measured"]
    scales = latency["base"] / (before or 1.0), taken / (after or 1.0)
    return sorted((row.scaled(*scales) for row in found.values()), key=lambda row: -max(row.before, row.after))


def figure(found: list[Row], latency: Mapping[str, Any]) -> Any:
    """A bar for each operator, pale for before, dark for after, with a mark at what no widths touch."""
    shown, others = found[:TOP], found[TOP:]
    if others:
        shown = [*shown, sum(others, Row(f"{len(others)} others"))]
    clock = Clock(int(latency["threads"]), latency.get("clock", CPU_TIME) != CPU_TIME)
    with style():
        made = canvas(_WIDTH, 1.2 + 0.27 * len(shown))
        axes = made.subplots()
        places = range(len(shown))
        axes.barh(places, [row.before for row in shown], height=0.74, color=BASE, label="base", linewidth=0)
        axes.barh(places, [row.after for row in shown], height=0.4, color=SLIM, label="slim", linewidth=0)
        axes.barh(
            places, [row.least for row in shown], height=0.4, color=FLOOR, label="of it, no widths touch", linewidth=0
        )
        for place, row in enumerate(shown):
            axes.annotate(
                f"{row.before:.3g} → {row.after:.3g}", (max(row.before, row.after), place), (4, 0),
                textcoords="offset points", va="center", fontsize=8,
            )
        axes.set_yticks(places, [short(row.label) for row in shown], fontsize=8.5)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, max((max(row.before, row.after) for row in shown), default=1.0) * 1.15)
        axes.set_title(f"Milliseconds by operator, {clock}, by the profile", loc="left", fontsize=10)
        axes.legend(
            ncols=3, frameon=False, loc="lower right", bbox_to_anchor=(1.01, 0.99), fontsize=8.5, borderaxespad=0.2,
            handlelength=0.9, handleheight=0.9, columnspacing=1.2, handletextpad=0.5,
        )  # fmt: skip
        bare(axes)
    return made


def said(found: list[Row]) -> str:
    """What no widths touch, and where it is.

    >>> said([Row("conv", 4.0, 1.0, 0.25), Row("onnxruntime itself", 0.5, 0.5, 0.5)])
    'Of 1.5 ms, 0.75 ms stay at whatever widths: 0.5 ms in onnxruntime itself, 0.25 ms in conv.'
    """
    after, least = (sum(getattr(row, side) for row in found) for side in ("after", "least"))
    ranked = [row for row in sorted(found, key=lambda row: -row.least) if row.least > 0]
    named = [f"{row.least:.3g} ms in {row.label}" for row in ranked[:_NAMED]]
    if rest := ranked[_NAMED:]:
        named.append(f"{sum(row.least for row in rest):.3g} ms in {len(rest)} others")
    return f"Of {after:.3g} ms, {least:.3g} ms stay at whatever widths: {', '.join(named) or 'none'}."
