"""The demo: shrinks a trained network, and compares accuracy, size and latency on real images, in three ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import surgeon
from surgeon.errors import InvalidArgument
from surgeon.frontend.parameters import data as inputs
from surgeon.support.files import StrPath, replace_many
from surgeon.support.progress import stage
from surgeon.support.scratch import temporary_folder

SECONDS = 4.0
"""The duration of the benchmark."""


IMAGES = 512
"""The unlabeled images of the last way."""


def run(
    network: str, ratio: float, *, data: Any = None, samples: int = IMAGES, threads: int | None = None,
    out: StrPath | None = None, quiet: bool = False,
) -> dict[str, Any]:
    """Shrink one of the trained reference networks in three ways and print accuracy, size and measured latency.

    The ways are the plain cut, the default, which needs no data, and with 512 unlabeled images, or with `samples` of
    `data`, which are taken as by `surgeon.shrink`. Accuracy is on the 10,000 test images of Fashion-MNIST, or on 9,488
    of them where the 512 images are of these too: the training images come with Debian's package
    dataset-fashion-mnist. With `out`, the ONNX files are kept there, and of the default the plan, the weights and the
    report. With `quiet`, nothing is printed. Returns the numbers, by way.

    Raises:
        InvalidArgument: there is no such network, its weights are missing, or the data are none.
        InvalidInputs: the data do not fit the network.
        OutputError: `out` can't be written.
    """
    console = Console(highlight=False, soft_wrap=True, quiet=quiet)
    with temporary_folder() if out is None else replace_many(out) as folder:
        model, images, labels, unlabeled, accuracy = _load(network, data)
        example = images[:2]
        with stage("accuracy before"):
            before = accuracy(model, images, labels)
        exported = surgeon.export(model, folder / "base.onnx", example_inputs=example)
        ways: dict[str, dict[str, Any]] = {
            "plain cut": {"compensate": False}, "default": {},
            ("with data" if data is not None else f"{min(samples, len(unlabeled))} images"): {
                "data": unlabeled, "samples": samples,
            },
        }
        head = [("original", f"{before:.2%}", "", exported.bytes, "")]
        rows, verdicts = [], {}
        numbers: dict[str, Any] = {"original": {"accuracy": before, "bytes": exported.bytes}}
        for name, options in ways.items():
            slim, report = surgeon.shrink(model, ratio, example_inputs=example, return_report=True, **options)
            with stage("accuracy after"):
                after = accuracy(slim, images, labels)
            path = folder / ("slim.onnx" if name == "default" else f"{name.replace(' ', '-')}.onnx")
            found = surgeon.export(slim, path, example_inputs=example)
            with stage("benchmark"):
                verdicts[name] = surgeon.benchmark(
                    folder / "base.onnx", path, threads=threads, seconds=SECONDS, peak_memory=False
                )
            seconds = f"{sum(report.seconds.values()):.1f} s"
            numbers[name] = {
                "accuracy": after, "bytes": found.bytes, "macs_removed": report.reached,
                "ms": [verdicts[name].base.median, verdicts[name].slim.median], "speed_up": verdicts[name].ratio.value,
                "seconds": sum(report.seconds.values()),
            }
            rows.append((name, f"{after:.2%}", f"{verdicts[name].slim.median:.3f} ms", found.bytes, seconds))
            if name == "default":
                shown = report
                if out is not None:
                    surgeon.save(slim, folder)
                    report.save(folder / "report.json")
    console.print(f"{shown.model}, trained on Fashion-MNIST: {shown.reached:.0%} of its MACs removed\n")
    table = Table(box=None, pad_edge=False)
    verdict = verdicts["default"]
    latency = f"{verdict.clock}, {verdict.threads} thread{'s' if verdict.threads > 1 else ''}"
    for title in ("", f"accuracy, {len(images):,} images", latency, "ONNX file", "shrunk in"):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    base = verdict.base.median
    for name, right, ms, size, seconds in [*head, *rows]:
        table.add_row(name, right, ms or f"{base:.3f} ms", f"{size / 1e3:,.0f} kB", seconds)
    console.print(table)
    console.print(
        f"\nMACs an image: {shown.macs.before:,} to {shown.macs.after:,}; parameters: {shown.params.before:,} to "
        f"{shown.params.after:,}\nlatency: {verdict.decision}, {verdict.ratio}, with its 95 % interval; measuring the "
        f"base against itself is off by {verdict.noise:.1%}\n\ncertificate of the default's cut, float64:"
    )
    console.print(f"{shown.certificate}", markup=False)
    console.print(
        f"\nNothing was trained with labels (guessing gives {1 / len(labels.unique()):.0%}). The plain cut ranks units "
        "by their weights and makes up for nothing (--no-compensate); the default chooses units and fits layers on "
        "noise; with unlabeled images (--data), layers are then fine-tuned toward the original's outputs."
    )
    if out is not None:
        console.print(f"\nThe files are in {out}", markup=False)
    return numbers


def _load(network: str, data: Any) -> tuple[nn.Module, torch.Tensor, torch.Tensor, Any, Callable[..., float]]:
    """The network, test images and labels, unlabeled inputs, and the function that computes the accuracy.

    Unlabeled inputs are `data`; or images of the training set, where that is installed; else test images, which are
    then not tested.
    """
    from surgeon import reference
    from surgeon.reference import data as pictures

    try:
        model, (images, labels) = reference.load(network), pictures.load_test()
        if data is not None:
            return model, images, labels, inputs("data", data), reference.accuracy
        if pictures.TRAIN_FOLDER.is_dir():
            return model, images, labels, pictures.load_train(limit=IMAGES)[0], reference.accuracy
    except ValueError as error:
        raise InvalidArgument(str(error)) from error
    count = min(IMAGES, len(images) // 2)
    return model, images[:-count], labels[:-count], images[-count:], reference.accuracy
