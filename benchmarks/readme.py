"""Puts the measured tables into README.md and docs/benchmarks.md, between their markers.

    python -m benchmarks.readme
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import coverage, coverage_graph, method_iterative
from benchmarks.rows import last

ROOT = Path(__file__).parent.parent
README, PAGE = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
RESULTS = Path(__file__).parent / "results"
#: Tables that stand as they are in a file of `benchmarks/results/`.
WHOLE = ("speed", "latency", "accuracy")

Row = dict[str, Any]


def jobs() -> str:
    """The README's table: one row a kind of job, from the rows of several benchmarks."""
    accuracy, latency = (last(RESULTS / f"{name}.jsonl", "row") for name in ("accuracy", "latency"))
    read, iterative = last(RESULTS / "jobs.jsonl", "row"), last(method_iterative.RESULTS, "row")
    rows = [
        _file("read text, PP-OCRv4's ONNX file", read, "recognizer, 50%", "96 lines"),
        _file("find text, its detector", read, "detector, 1.6x", "96 pages"),
        _file("speech or not, silero-vad's ONNX file", read, "speech, 1.5x", "24 sounds"),
        _pictures("clothes, residual CNN", accuracy, "residual"),
        _nothing("clothes, depthwise CNN", accuracy, "depthwise"),
        _trained("clothes, residual CNN, ¼ of the MACs", iterative),
        _timed("half the milliseconds, MobileNetV2", latency["land:mobilenet_v2:0.5"]),
        _timed("28 % of the MACs and int8, ResNet-18", latency["int8:resnet18"]),
    ]
    head = ["job", "data", "right before", "after", "peer", "ms before", "after", "speed-up"]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def _file(job: str, rows: dict[str, Row], key: str, data: str) -> list[str]:
    row, peer = rows[f"{key}, unlabeled data"], rows.get(f"{key}, onnxsim", {})
    (before, _), (after, _), ms = row["before"], row["after"], row["ms"]
    other = f"{peer['after'][0]:.2f} %" if "after" in peer else "–"
    return [job, data, f"{before:.2f} %", f"**{after:.2f} %**", other, *map(_ms, ms), f"{row['ratio'][1]:.2f}×"]


def _pictures(job: str, rows: dict[str, Row], network: str) -> list[str]:
    """Half of the MACs, at fast widths, with unlabeled images: means over the seeds."""
    seeds = [row for key, row in rows.items() if key.startswith(f"fast:{network}:0.5:") and row["images"] == 1024]
    mean = {name: statistics.mean(row[name] for row in seeds) for name in ("accuracy", "base_ms", "slim_ms", "ratio")}
    dense, peer = rows[f"free:{network}:0.5:0"]["dense"], rows[f"peer:{network}:0.5:0"]["accuracy"]
    right = [_percent(dense), f"**{_percent(mean['accuracy'])}**", _percent(peer)]
    return [job, "1,024 images", *right, _ms(mean["base_ms"]), _ms(mean["slim_ms"]), f"{mean['ratio']:.2f}×"]


def _nothing(job: str, rows: dict[str, Row], network: str) -> list[str]:
    """Half of the MACs, by default, on the noise that `shrink` makes for itself."""
    seeds = [row["64"]["accuracy"] for key, row in rows.items() if key.startswith(f"noise:{network}:0.5:")]
    dense, peer = rows[f"free:{network}:0.5:0"]["dense"], rows[f"peer:{network}:0.5:0"]["accuracy"]
    return [job, "none", _percent(dense), f"**{_percent(statistics.mean(seeds))}**", _percent(peer), "", "", ""]


def _trained(job: str, rows: dict[str, Row]) -> list[str]:
    """Pruned while training, by the same loop for both."""
    means = [
        statistics.mean(row["accuracy"] for key, row in rows.items() if key.startswith(f"{system} taylor:"))
        for system in ("surgeon", "Torch-Pruning")
    ]
    dense = next(iter(rows.values()))["dense"]
    return [job, "2 epochs, labels", *map(_percent, (dense, *means)), "", "", ""]


def _timed(job: str, row: Row) -> list[str]:
    ms = row["base_ms"], row["slim_ms"]
    return [job, "random weights", "", "", "", *map(_ms, ms), f"{ms[0] / ms[1]:.2f}×"]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _ms(value: float) -> str:
    return f"{value:.3g}"


def _summaries() -> str:
    """What the sweeps over a hundred models come to."""
    sweeps = (coverage.table(coverage.ordered()), coverage_graph.table(coverage.ordered(coverage_graph.RESULTS)))
    return "\n\n".join(sweep.partition("\n\n| model")[0] for sweep in sweeps)


def _iterative() -> str:
    return method_iterative.table(last(method_iterative.RESULTS, "row")).strip()


def _whole(name: str) -> Callable[[], str]:
    return lambda: (RESULTS / f"{name}.md").read_text(encoding="utf-8").strip()


#: What stands between the markers of each page, by their names.
TABLES: dict[Path, dict[str, Callable[[], str]]] = {
    README: {"jobs": jobs},
    PAGE: {"coverage": _summaries, "method_iterative": _iterative, **{name: _whole(name) for name in WHOLE}},
}


def render(path: Path) -> str:
    """A page with what stands between `<!-- NAME -->` and `<!-- /NAME -->` replaced by the results of that name.

    Raises:
        ValueError: it has no such place.
    """
    text = path.read_text(encoding="utf-8")
    for name, table in TABLES[path].items():
        before, begin, rest = text.partition(f"<!-- {name} -->")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not (begin and end):
            raise ValueError(f"{path.name} has no place for {name}")
        text = f"{before}{begin}\n\n{table()}\n\n{end}{after}"
    return text


def main(pages: Sequence[Path] = tuple(TABLES)) -> None:
    """The command."""
    for path in pages:
        path.write_text(render(path), encoding="utf-8")
        sys.stdout.write(f"{path.name} is up to date\n")


if __name__ == "__main__":
    main()
