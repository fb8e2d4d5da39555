"""The figures of a report: operators' shares of latency, widths, latency against its budget."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from surgeon.device.operator_times import Share
from surgeon.errors import InvalidArgument

BASE, SLIM = "#b8c2cc", "#1f6feb"
INK, FAINT = "#24292f", "#8c959f"
KINDS = ("#1f6feb", "#e8893a", "#2da44e", "#8957e5", "#d1495b", "#17a2b8", "#b08800")
OTHER = "#c4cbd2"
TOP_KINDS = 6
TOP_OPERATORS = 14
TOP_GROUPS = 44
_WIDTH = 9.0
_LABEL = 34


def operators(base: Sequence[Share], slim: Sequence[Share], latencies: tuple[float, float], clock: str) -> Any:
    """Milliseconds by kind of operator, and of the slowest operators, before and after.

    The profiler's times are scaled to add up to `latencies`, the milliseconds of the two models by `clock`.
    """
    before, after = (_scaled(each, total) for each, total in zip((base, slim), latencies, strict=True))
    kinds = _kinds(before, after)
    names = _top(before, after)
    with style():
        figure = canvas(_WIDTH, 2.6 + 0.27 * len(names))
        heights = (1.25, 0.27 * len(names) + 0.3)
        figure.get_layout_engine().set(hspace=0.06)
        upper, lower = figure.subplots(2, 1, height_ratios=heights)
        _stacked(upper, kinds, before, after, latencies, clock)
        _pairs(
            lower,
            names,
            [before.get(name, (0.0, ""))[0] for name in names],
            [after.get(name, (0.0, ""))[0] for name in names],
            f"{clock[0].upper()}{clock[1:]} of the slowest operators, ms",
            "{:.3f}",
        )
    return figure


def widths(groups: Mapping[str, tuple[int, int]]) -> Any:
    """Units of each pruned group, before and after; if there are too many, of those that lost most."""
    cut = {name: pair for name, pair in groups.items() if pair[0] != pair[1]}
    most = sorted(cut, key=lambda name: cut[name][1] - cut[name][0])[:TOP_GROUPS]
    names = [name for name in cut if name in most]
    notes = [(len(cut) - len(names), "lost less"), (len(groups) - len(cut), "were not cut")]
    note = "".join(f"; {count} more {what}" for count, what in notes if count)
    with style():
        figure = canvas(_WIDTH, 1.1 + 0.24 * max(2, len(names)))
        axes = figure.subplots()
        title = f"Units of each group{note}"
        _pairs(axes, names, [cut[n][0] for n in names], [cut[n][1] for n in names], title, "{:.0f}")
    return figure


def budgets(points: Sequence[Mapping[str, float]]) -> Any:
    """Measured latency over requested latency, and predicted latency if it is known."""
    with style():
        figure = canvas(_WIDTH * 0.62, 4.2)
        axes = figure.subplots()
        asked = [point["requested"] for point in points]
        measured = [point["measured"] for point in points]
        top = max(*asked, *measured) * 1.08
        axes.plot([0, top], [0, top], color=FAINT, linewidth=1, zorder=1)
        axes.annotate("as requested", (0.08 * top,) * 2, (6, -4), textcoords="offset points", va="top", color=FAINT)
        if all("predicted" in point for point in points):
            predicted = [point["predicted"] for point in points]
            axes.scatter(asked, predicted, s=42, facecolors="none", edgecolors=INK, label="predicted", zorder=3)
        axes.scatter(asked, measured, s=42, color=SLIM, label="measured", zorder=4)
        axes.set(xlim=(0, top), ylim=(0, top), xlabel="requested latency, ms", ylabel="latency, ms")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="upper left")
    return figure


def svg(figure: Any) -> str:
    """A figure as a self-contained SVG element."""
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def png(figure: Any) -> bytes:
    """A figure as a PNG with 160 dots per inch."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def need_matplotlib() -> None:
    """Raises InvalidArgument, which names the extra, if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InvalidArgument(f'pictures need matplotlib: pip install "model-surgeon[plot]" ({error})') from error


@contextmanager
def style() -> Iterator[None]:
    """A context in which figures are drawn in the common style."""
    import matplotlib

    settings: Any = {
        "font.size": 9.5,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.axisbelow": True,
        "svg.hashsalt": "surgeon",
    }
    with matplotlib.rc_context(settings):
        yield


def canvas(width: float, height: float) -> Any:
    """An empty figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _scaled(found: Sequence[Share], total: float) -> dict[str, tuple[float, str]]:
    """Milliseconds and kind of each operator by name; the times of operators with the same name are added."""
    scale = total / (sum(each.us for each in found) or 1.0)
    result: dict[str, tuple[float, str]] = {}
    for each in found:
        result[each.name] = (result.get(each.name, (0.0, ""))[0] + each.us * scale, each.kind)
    return result


def _kinds(*sides: Mapping[str, tuple[float, str]]) -> list[str]:
    """The slowest kinds of operators over both models, slowest first; "" stands for the rest."""
    total: dict[str, float] = {}
    for side in sides:
        for ms, kind in side.values():
            total[kind] = total.get(kind, 0.0) + ms / sum(ms for ms, _ in side.values())
    ranked = sorted(total, key=total.__getitem__, reverse=True)
    shown = [kind for kind in ranked[:TOP_KINDS] if total[kind] > 0.01]
    return [*shown, ""] if len(shown) < len(ranked) else shown


def _top(before: Mapping[str, tuple[float, str]], after: Mapping[str, tuple[float, str]]) -> list[str]:
    largest = {name: max(side.get(name, (0.0, ""))[0] for side in (before, after)) for name in {**before, **after}}
    return sorted(largest, key=largest.__getitem__, reverse=True)[:TOP_OPERATORS]


def _stacked(
    axes: Any,
    kinds: Sequence[str],
    before: Mapping[str, tuple[float, str]],
    after: Mapping[str, tuple[float, str]],
    latencies: tuple[float, float],
    clock: str,
) -> None:
    left = [0.0, 0.0]
    for index, kind in enumerate(kinds):
        sums = [
            sum(ms for ms, each in side.values() if (each if each in kinds else "") == kind) for side in (before, after)
        ]
        color = KINDS[index % len(KINDS)] if kind else OTHER
        axes.barh([0, 1], sums, left=left, height=0.62, color=color, label=kind or "other", linewidth=0)
        left = [a + b for a, b in zip(left, sums, strict=True)]
    for place, total in enumerate(latencies):
        axes.annotate(f"{total:.2f} ms", (total, place), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks([0, 1], ["base", "slim"])
    axes.invert_yaxis()
    axes.set_xlim(0, max(latencies) * 1.12)
    axes.set_title(f"{clock[0].upper()}{clock[1:]} by kind of operator, ms", loc="left", fontsize=10, pad=26)
    axes.legend(
        ncols=len(kinds), frameon=False, loc="lower left", bbox_to_anchor=(-0.01, 0.97), fontsize=8.5,
        handlelength=0.9, handleheight=0.9, columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip
    bare(axes)


def _pairs(
    axes: Any, names: Sequence[str], before: Sequence[float], after: Sequence[float], title: str, text: str
) -> None:
    """For each name, a wide pale bar for before with a narrow dark bar for after inside it."""
    rows = range(len(names))
    axes.barh(rows, before, height=0.74, color=BASE, label="base", linewidth=0)
    axes.barh(rows, after, height=0.36, color=SLIM, label="slim", linewidth=0)
    for row, (old, new) in enumerate(zip(before, after, strict=True)):
        axes.annotate(
            f"{text.format(old)} → {text.format(new)}",
            (max(old, new), row),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
    axes.set_yticks(rows, [short(name) for name in names], fontsize=8.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, max([*before, *after], default=1.0) * 1.15)
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(
        ncols=2, frameon=False, loc="lower right", bbox_to_anchor=(1.01, 0.99), fontsize=8.5, borderaxespad=0.2,
        handlelength=0.9, handleheight=0.9, columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip
    bare(axes)


def bare(axes: Any) -> None:
    """Without a frame, and with a grid along the values."""
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", alpha=0.25)


def short(name: str) -> str:
    """The end of a long name."""
    end = name if len(name) <= _LABEL else f"…{name[1 - _LABEL :]}"
    return end.replace("$", r"\$")  # no formula
