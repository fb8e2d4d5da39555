"""A trained network on real images, before and after: what it costs, and what it still knows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import surgeon
from surgeon.device.benchmark import Verdict
from surgeon.errors import InvalidArgument
from surgeon.support.files import StrPath, ensure_folder
from surgeon.support.progress import stage

SECONDS = 4.0
"""What the benchmark may take."""


def run(network: str, ratio: float, *, threads: int = 1, out: StrPath | None = None) -> None:
    """Shrink one of the repository's trained networks and print accuracy, size, cost and measured latency.

    Accuracy is of all 10,000 test images of Fashion-MNIST, before and directly after cutting: nothing is trained
    in between. With `out`, the two ONNX files, the plan, the weights and the report are kept there.

    Raises:
        InvalidArgument: there is no such network, or the repository's `models` is not installed.
        OutputError: `out` can't be written.
    """
    console = Console(highlight=False, soft_wrap=True)
    with _folder(out) as folder:
        model, images, labels = _load(network)
        example = images[:2]
        with stage("accuracy before"):
            before = _accuracy(model, images, labels)
        slim, report = surgeon.shrink(model, ratio, example_inputs=example, return_report=True)
        with stage("accuracy after"):
            after = _accuracy(slim, images, labels)
        sizes = {}
        for name, each in (("base", model), ("slim", slim)):
            with stage(f"export {name}"):
                sizes[name] = surgeon.export(each, folder / f"{name}.onnx", example_inputs=example).bytes
        with stage("benchmark"):
            verdict = surgeon.benchmark(
                folder / "base.onnx", folder / "slim.onnx", threads=threads, seconds=SECONDS
            )
        if out is not None:
            surgeon.save(slim, folder)
            report.save(folder / "report.json")
    console.print(
        f"{report.model}, trained on Fashion-MNIST: {report.reached:.0%} of its MACs removed in "
        f"{sum(report.seconds.values()):.1f} s\n"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("", "before", "after", ""):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    table.add_row(f"accuracy, {len(images):,} images", f"{before:.2%}", f"{after:.2%}", "not fine-tuned")
    for name, change in (("parameters", report.params), ("MACs an image", report.macs)):
        table.add_row(name, f"{change.before:,}", f"{change.after:,}", _times(change.before, change.after))
    table.add_row("ONNX file", *(f"{size / 1e3:,.0f} kB" for size in sizes.values()), _times(*sizes.values()))
    table.add_row(_measured(threads), *_latencies(verdict), f"{verdict.ratio}")
    console.print(table)
    console.print(
        f"\nlatency: {verdict.decision}; the ratio has its 95 % interval, and the base against itself is off by "
        f"{verdict.noise:.1%}\n\ncertificate, float64:"
    )
    console.print(f"{report.certificate}", markup=False)
    console.print(
        f"\nThe accuracy after is that of the cut alone (guessing gives {1 / len(labels.unique()):.0%}): units were "
        "ranked by their weights, no image was looked at, and nothing was trained since. Fine-tune it next, as any "
        "module."
    )
    if out is not None:
        console.print(f"\nThe files are in {folder}", markup=False)


def _load(network: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    try:
        import models
        from models.data import load_test
    except ImportError as error:
        raise InvalidArgument(
            f"the demo's networks can't be imported ({error}); they come with surgeon's repository"
        ) from error
    try:
        return models.load(network), *load_test()
    except ValueError as error:
        raise InvalidArgument(str(error)) from error


def _accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    import models

    return models.accuracy(model, images, labels)


@contextmanager
def _folder(out: StrPath | None) -> Iterator[Path]:
    if out is not None:
        yield ensure_folder(out)
        return
    with tempfile.TemporaryDirectory(prefix="surgeon-demo-") as folder:
        yield Path(folder)


def _times(before: float, after: float) -> str:
    return f"{before / after:.2f} x smaller"


def _measured(threads: int) -> str:
    return f"latency, batch 1, {threads} thread{'s' if threads > 1 else ''}"


def _latencies(verdict: Verdict) -> tuple[str, str]:
    return f"{verdict.base.median:.3f} ms", f"{verdict.slim.median:.3f} ms"
