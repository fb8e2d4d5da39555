"""The commands about the device: profile it, carry a kit to it, measure, quantize, and draw what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import surgeon
from surgeon.cli import data as batches
from surgeon.cli.options import Pretrained, Seed, Shape, Spec, Threads, load, reported
from surgeon.support.files import write_text


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    for command in (profile, kit, bench, quantize, report):
        app.command()(reported()(command))


def profile(
    spec: Spec,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="The profile; one that is there is resumed.")
    ],
    threads: Threads = 1,
    shape: Shape = None,
    pretrained: Pretrained = False,
    seed: Seed = 0,
) -> None:
    """Measure what this CPU takes for a model's operators; `shrink --device FILE` chooses widths by it."""
    model, inputs = load(spec, shape or [], pretrained, seed)
    print(f"{out}: {surgeon.profile(model, inputs, threads=threads, path=out)}")


def kit(
    spec: Spec,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE.pyz", help="The file to copy to the device.")],
    shape: Shape = None,
    pretrained: Pretrained = False,
    seed: Seed = 0,
) -> None:
    """Write one file that measures a model's operators on a device with Python, numpy and onnxruntime alone."""
    model, inputs = load(spec, shape or [], pretrained, seed)
    made = surgeon.kit(model, out, inputs)
    print(f"{made}: run `python {made.name} -o device.json` on the device, then `surgeon shrink --device device.json`")


def bench(
    base: Annotated[Path, typer.Argument(help="An ONNX file.")],
    slim: Annotated[Path, typer.Argument(help="Another one, with the same inputs.")],
    threads: Threads = 1,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure two ONNX files against each other: the ratio, its interval, a verdict, and what slowed one down."""
    verdict = surgeon.benchmark(base, slim, threads=threads)
    print(verdict.to_json() if json else verdict)


def quantize(
    model: Annotated[Path, typer.Argument(help="A float32 ONNX file.")],
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|FOLDER|MODULE:NAME",
            help="Unlabeled inputs, as --data of `surgeon shrink`; without them, only dynamic.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FILE",
            help="Where to write; default: MODEL.int8.onnx beside it, or .mixed.onnx, .float32.onnx, by what it is.",
        ),
    ] = None,
    base: Annotated[Path | None, typer.Option(help="An ONNX file to measure the result against too.")] = None,
    threads: Threads = 1,
) -> None:
    """Write a model in int8 where that is measured faster and accurate enough; what is not stays float32.

    The numbers that decided it go beside it, to NAME.report.json.
    """
    inputs = None if calibration is None else batches.read(calibration)
    made = surgeon.quantize(model, inputs, path=out, base=base, threads=threads)
    write_text(made.path.with_name(f"{made.path.stem}.report.json"), made.to_json() + "\n")
    print(made)


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `surgeon shrink` wrote; the page goes there.")],
    others: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER]...", help="The same model at other latencies: asked for against measured."),
    ] = None,
    threads: Threads = 1,
) -> None:
    """Draw a folder's report: one HTML page and pictures of where the time went, before and after."""
    from surgeon.reporting.page import write_page

    for path in write_page(folder, others=others or (), threads=threads):
        print(path)
