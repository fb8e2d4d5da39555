"""Every model of the list as a graph: cut at half the MACs, and held against the original at a second size.

    python -m benchmarks.coverage_graph                 # all, resuming where a run was broken off
    python -m benchmarks.coverage_graph --table         # print the table of the results so far

As `benchmarks.coverage`; one line of JSON a model in `benchmarks/results/coverage_graph.jsonl`.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.coverage import Row, at_second, cut, ordered, redraw, second, sweep
from benchmarks.rows import last_line, publish
from testbed import zoo

RESULTS = Path(__file__).parent / "results" / "coverage_graph.jsonl"
TABLE = RESULTS.with_suffix(".md")


def _stages(row: Row, library: str, name: str, ratio: float) -> None:
    model, inputs = zoo.load(library, name)
    redraw(model)
    row["stage"] = "shrink"
    _, report, asked = cut(model, inputs, ratio, form="graph")
    certificate = report.certificate
    row |= {
        "asked": round(asked, 4), "reached": round(report.reached, 4), "form": report.form,
        "deviation": certificate.deviation, "end_to_end": certificate.end_to_end, "inputs": list(report.inputs),
        "second": second(certificate.second_size), "times": dict(report.seconds), "stage": "done", "ok": True,
    }


def table(rows: dict[str, Row]) -> str:
    """The results in Markdown."""
    good = [row for row in rows.values() if row["ok"]]
    second = [row["second"] for row in good if row["second"] is not None]
    held = [found["deviation"] for found in second if found["deviation"] is not None]
    lines = [
        f"As graphs, {len(good)} of {len(rows)} models cut and certified, "
        f"{sum(row['asked'] == 0.5 for row in good)} of them at half their MACs. At a second size {len(second)} of "
        f"them were run: {len(held)} held against the original (at most {max(held, default=0.0):.0e} apart), "
        f"{len(second) - len(held)} by the shapes of their outputs. Where no size is free: {len(good) - len(second)}.",
        "",
        "| model | MACs removed | node by node | at a second size | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        if not row["ok"]:
            lines.append(f"| {name} | **failed** at {row.get('stage', '?')}: {last_line(row['error'])} | | | |")
            continue
        lines.append(
            f"| {name} | {row['reached']:.1%} | {row['deviation']:.0e} | {at_second(row['second'])} "
            f"| {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sweep(__doc__, _stages, RESULTS)
    publish(table(ordered(RESULTS)), TABLE)
