"""The demo: shrinks a trained network, and compares accuracy, size and latency on real images before and after."""

from __future__ import annotations

from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import surgeon
from surgeon.errors import InvalidArgument
from surgeon.support.files import StrPath, replace_many
from surgeon.support.progress import stage
from surgeon.support.scratch import temporary_folder

SECONDS = 4.0
"""The duration of the benchmark."""


def run(network: str, ratio: float, *, threads: int = 1, out: StrPath | None = None) -> None:
    """Shrink one of the repository's trained networks and print accuracy, size, cost and measured latency.

    Accuracy is on the 10,000 test images of Fashion-MNIST, before and directly after pruning, without fine-tuning. With
    `out`, the two ONNX files, the plan, the weights and the report are kept there.

    Raises:
        InvalidArgument: there is no such network, or the repository's `models` is not installed.
        OutputError: `out` can't be written.
    """
    console = Console(highlight=False, soft_wrap=True)
    with temporary_folder() if out is None else replace_many(out) as folder:
        model, images, labels, accuracy = _load(network)
        example = images[:2]
        with stage("accuracy before"):
            before = accuracy(model, images, labels)
        slim, report = surgeon.shrink(model, ratio, example_inputs=example, return_report=True)
        with stage("accuracy after"):
            after = accuracy(slim, images, labels)
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
    latencies = (f"{each.median:.3f} ms" for each in (verdict.base, verdict.slim))
    plural = "s" if threads > 1 else ""
    table.add_row(f"latency, batch 1, {threads} thread{plural}", *latencies, f"{verdict.ratio}")
    console.print(table)
    console.print(
        f"\nlatency: {verdict.decision}; the ratio is given with its 95 % interval, and measuring the base against "
        f"itself is off by {verdict.noise:.1%}\n\ncertificate, float64:"
    )
    console.print(f"{report.certificate}", markup=False)
    console.print(
        f"\nThe accuracy after is that directly after pruning (guessing gives {1 / len(labels.unique()):.0%}): units "
        "were ranked by their weights, without data, and nothing was trained. Fine-tune the result next, or let noise "
        'or unlabeled images make up for the cut: data="noise", data=images.'
    )
    if out is not None:
        console.print(f"\nThe files are in {out}", markup=False)


def _load(network: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor, Callable[..., float]]:
    """The network, test images and labels, and the function that computes the accuracy."""
    try:
        import models
        from models.data import load_test
    except ImportError as error:
        raise InvalidArgument(
            f"the demo's networks can't be imported ({error}); they come with surgeon's repository"
        ) from error
    try:
        return models.load(network), *load_test(), models.accuracy
    except ValueError as error:
        raise InvalidArgument(str(error)) from error


def _times(before: float, after: float) -> str:
    return f"{before / after:.2f} x smaller"
