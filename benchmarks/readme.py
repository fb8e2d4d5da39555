"""Puts the measured tables into the README, between its markers.

    python -m benchmarks.readme
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import coverage, coverage_graph, method_iterative
from benchmarks.rows import last

README = Path(__file__).parent.parent / "README.md"
SPEED = Path(__file__).parent / "results" / "speed.md"
LATENCY = Path(__file__).parent / "results" / "latency.md"
ACCURACY = Path(__file__).parent / "results" / "accuracy.md"


def render(text: str) -> str:
    """`text` with what stands between `<!-- NAME -->` and `<!-- /NAME -->` replaced by the results of that name."""
    sweeps = (coverage.table(coverage.ordered()), coverage_graph.table(coverage.ordered(coverage_graph.RESULTS)))
    summary = "\n\n".join(sweep.partition("\n\n| model")[0] for sweep in sweeps)
    iterative = method_iterative.table(last(method_iterative.RESULTS, "row")).strip()
    tables = {"coverage": summary, "method_iterative": iterative} | {
        path.stem: path.read_text(encoding="utf-8").strip() for path in (SPEED, LATENCY, ACCURACY)
    }
    for name, table in tables.items():
        before, begin, rest = text.partition(f"<!-- {name} -->")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not (begin and end):
            raise ValueError(f"the README has no place for {name}")
        text = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    return text


def main() -> None:
    """The command."""
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"{README.name} is up to date\n")


if __name__ == "__main__":
    main()
