"""The README's picture: accuracy against milliseconds, of this project and of Torch-Pruning.

    python -m benchmarks.picture            # measure what is missing, and draw
    python -m benchmarks.picture --table    # draw only

The residual network of `models/` at two shares of its MACs, on the 10,000 test images of Fashion-MNIST; latency in
onnxruntime, one thread, each file interleaved with the original. Rows are `SYSTEM:RATIO`, one line of JSON a row in
`benchmarks/results/picture.jsonl`; the picture is `docs/accuracy-latency.svg`. Torch-Pruning is asked for widths that
are multiples of 16, and the best of its criteria is shown; with labels, it is then trained for an epoch as
`benchmarks.accuracy_tune` does.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import nn

import models
import surgeon
from benchmarks import accuracy_tune, peers
from benchmarks.accuracy_rows import COMPARED, Subject, dense, macs, recipes
from benchmarks.latency_subject import measured
from benchmarks.rows import append, command, last, to_run

RESULTS = Path(__file__).parent / "results" / "picture.jsonl"
PICTURE = Path(__file__).parent.parent / "docs" / "accuracy-latency.svg"
NETWORK = "residual"
RATIOS = (0.25, 0.5)
#: The systems by their key, with what the picture calls them and the color of their line, on white and on black.
SYSTEMS = {
    "images": ("surgeon, 1,024 unlabeled images", "#1f6feb", "#58a6ff"),
    "nothing": ("surgeon, no data", "#2da44e", "#3fb950"),
    "peer tuned": ("Torch-Pruning and an epoch with 58,000 labels", "#e8893a", "#f0a35e"),
    "peer": ("Torch-Pruning, no training", "#8c959f", "#8b949e"),
}
SECONDS = 4.0
_SIZE = (760, 400)
_PLOT = (64, 24, 726, 344)
#: The accuracies that the picture shows; what is worse is written at its foot.
BOTTOM, TOP = 0.80, 0.94

Row = dict[str, Any]


def make(key: str, files: Path) -> Row:
    """Measure one row."""
    system, ratio = key.rsplit(":", 1)
    subject = Subject(NETWORK, 0)
    model, told = _made(system, float(ratio), subject)
    base, slim = files / "base.onnx", files / f"{key.replace(' ', '-')}.onnx"
    for path, each in ((base, subject.model), (slim, model)):
        surgeon.export(each, path, example_inputs=subject.inputs)
    found = measured(base, slim, SECONDS)
    return {
        "row": key, "accuracy": subject.accuracy(model), "macs": macs(model, subject.inputs) / subject.macs,
        "dense": dense(NETWORK), **told, **{name: found[name] for name in ("ratio", "low", "high", "base_ms")},
    }


def _made(system: str, ratio: float, subject: Subject) -> tuple[nn.Module, Row]:
    """The smaller model, and what is to be told of it."""
    if system == "images":
        return subject.shrink(ratio), {}
    if system == "nothing":
        example = torch.randn(subject.inputs.shape, generator=torch.Generator().manual_seed(subject.seed))
        return surgeon.shrink(subject.model, ratio, example_inputs=example), {}
    torch.manual_seed(subject.seed)
    _, best = peers.best(
        subject.model, (subject.inputs,), [dataclasses.replace(each, round_to=16) for each in recipes(subject)],
        lambda model: macs(model, subject.inputs), (1 - ratio) * subject.macs,
        lambda model: models.accuracy(model, subject.images[:COMPARED], subject.labels[:COMPARED]),
    )
    if best is None:
        raise RuntimeError(f"Torch-Pruning comes nowhere near {1 - ratio:.0%} of the MACs at multiples of 16")
    if system == "peer":
        return best[1], {"criterion": best[0]}
    trained = accuracy_tune.trained(subject, best[1])
    return trained, {"criterion": best[0]}


def draw(rows: Mapping[str, Row]) -> str:
    """The picture, as an SVG that follows the reader's light or dark mode; empty systems are left out.

    >>> row = {"accuracy": 0.9, "ratio": 2.0, "base_ms": 1.0, "dense": 0.92}
    >>> picture = draw({"images:0.5": row, "peer:0.5": row | {"accuracy": 0.2}})
    >>> "surgeon, 1,024 unlabeled images" in picture, "surgeon, no data" in picture
    (True, False)
    """
    base = statistics.median(row["base_ms"] for row in rows.values())
    whole = next(iter(rows.values()))["dense"]
    lines = {
        system: sorted((base / row["ratio"], row["accuracy"]) for key, row in rows.items() if _system(key) == system)
        for system in SYSTEMS
    }
    right = 1.06 * base
    left, upper, wide, low = _PLOT

    def place(ms: float, accuracy: float) -> tuple[float, float]:
        across, up = ms / right, (accuracy - BOTTOM) / (TOP - BOTTOM)
        return left + across * (wide - left), low - up * (low - upper)

    parts = [_axes(place, right)]
    for system, points in lines.items():
        if not points:
            continue
        name, _, _ = SYSTEMS[system]
        drawn = [place(*point) for point in points]
        kind = system.replace(" ", "-")
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*drawn, place(base, whole)])
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in drawn)
        shapes = f'<title>{escape(name)}</title><polyline points="{path}"/>{dots}'
        parts.append(f'<g class="{kind}" clip-path="url(#plot)">{shapes}</g>')
        parts += [
            f'<text x="{place(ms, 0)[0]:.1f}" y="{low - 8}" text-anchor="middle">↓ {accuracy:.0%}</text>'
            for ms, accuracy in points if accuracy < BOTTOM
        ]
    x, y = place(base, whole)
    parts.append(f'<circle class="ink" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
    parts.append(f'<text x="{x:.1f}" y="{y - 12:.1f}" text-anchor="middle">original, {whole:.1%}</text>')
    parts.append(_legend([system for system in SYSTEMS if lines[system]]))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIZE[0]} {_SIZE[1]}" role="img" '
        f'aria-label="Accuracy against latency">\n<style>\n{_style()}</style>\n'
        f'<clipPath id="plot"><rect x="{left}" y="0" width="{wide - left}" height="{low}"/></clipPath>\n'
        + "\n".join(parts) + "\n</svg>\n"
    )


def _system(key: str) -> str:
    return key.rsplit(":", 1)[0]


def _axes(place: Any, right: float) -> str:
    parts = []
    for percent in range(round(100 * BOTTOM), round(100 * TOP) + 1, 2):
        (x0, y), (x1, _) = place(0, percent / 100), place(right, percent / 100)
        parts.append(f'<line class="grid" x1="{x0:.1f}" x2="{x1:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{x0 - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{percent} %</text>')
    step = next(each for each in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0) if right / each <= 9)
    for count in range(int(right / step) + 1):
        x, y = place(count * step, BOTTOM)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{count * step:g}</text>')
    x, y = place(right / 2, BOTTOM)
    parts.append(f'<text x="{x:.1f}" y="{y + 40:.1f}" text-anchor="middle">'
                 "milliseconds an image, onnxruntime, one thread</text>")
    return "\n".join(parts)


def _legend(shown: Sequence[str]) -> str:
    parts = []
    x, y = _PLOT[0] + 14, _PLOT[3] - 22 * len(shown) - 4
    for row, system in enumerate(shown):
        at = y + 22 * row
        kind = system.replace(" ", "-")
        parts.append(f'<g class="{kind}"><polyline points="{x},{at} {x + 22},{at}"/><circle cx="{x + 11}" cy="{at}" '
                     f'r="4"/></g><text x="{x + 30}" y="{at + 4}">{escape(SYSTEMS[system][0])}</text>')
    return "\n".join(parts)


def _style() -> str:
    def colors(index: int, ink: str, grid: str) -> str:
        each = "".join(
            f".{system.replace(' ', '-')}{{stroke:{SYSTEMS[system][index]};fill:{SYSTEMS[system][index]}}}\n"
            for system in SYSTEMS
        )
        return f"text,.ink{{fill:{ink}}}\n.grid{{stroke:{grid}}}\n{each}"

    return (
        "text{font:13px system-ui,sans-serif}\npolyline{fill:none;stroke-width:2.5}\n"
        + colors(1, "#24292f", "#d8dee4")
        + "@media (prefers-color-scheme: dark){\n" + colors(2, "#e6edf3", "#30363d") + "}\n"
    )


def main() -> None:
    """The command."""
    options = command(__doc__).parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    keys = [f"{system}:{ratio:g}" for ratio in RATIOS for system in SYSTEMS]
    with tempfile.TemporaryDirectory() as folder:
        for key in () if options.table else to_run(keys, options.only, options.redo, last(RESULTS, "row")):
            append(RESULTS, make(key, Path(folder)))
    PICTURE.write_text(draw(last(RESULTS, "row")), encoding="utf-8")
    sys.stdout.write(f"{PICTURE.name} is drawn\n")


if __name__ == "__main__":
    main()
