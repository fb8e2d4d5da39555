"""The commands about the device: profile it, write a kit for it, benchmark, quantize, and draw a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import surgeon
from surgeon.cli import data as batches
from surgeon.cli.onnx_file import feeds_to_measure
from surgeon.cli.options import (
    CpuTime,
    Fixed,
    Json,
    Layout,
    Mean,
    Pretrained,
    Resize,
    Seed,
    Shape,
    Shapes,
    Spec,
    Std,
    Threads,
    load,
    told,
    weighted,
)
from surgeon.errors import InvalidArgument
from surgeon.support.files import write_text


def profile(
    spec: Spec,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="Where to write; an unfinished profile is resumed.")
    ],
    threads: Threads = None,
    cpu_time: CpuTime = False,
    shapes: Shapes = None,
    shape: Shape = None,
    fixed: Fixed = None,
    pretrained: Pretrained = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure how long a model's operators take on this CPU; `shrink --device FILE` chooses widths by it."""
    model, inputs = load(spec, shape or [], pretrained, seed, fixed or ())
    made = surgeon.profile(
        model, inputs, threads=threads, cpu_time=cpu_time, shapes=weighted(shapes or ()), path=out
    )
    told(
        json, "surgeon-profiled", f"{out}: {made}", f"it answers for {made.answers}", path=out, cpu=made.cpu,
        threads=made.threads, clock=made.clock, spin=made.spin, answers=list(made.about.values()),
    )


def kit(
    spec: Spec,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE.pyz", help="The file to copy to the device.")],
    shapes: Shapes = None,
    shape: Shape = None,
    fixed: Fixed = None,
    pretrained: Pretrained = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Write a file that measures a model's operators on a device that has only Python, numpy and onnxruntime."""
    model, inputs = load(spec, shape or [], pretrained, seed, fixed or ())
    made = surgeon.kit(model, out, inputs, shapes=weighted(shapes or ()))
    told(
        json, "surgeon-kit",
        f"{made}: run `python {made.name} -o device.json` on the device, then `surgeon shrink --device device.json`",
        path=made,
    )


def bench(
    base: Annotated[Path, typer.Argument(help="An ONNX file.")],
    slim: Annotated[Path, typer.Argument(help="Another one, with the same inputs.")],
    threads: Threads = None,
    cpu_time: CpuTime = False,
    shape: Shape = None,
    json: Json = False,
) -> None:
    """Benchmark two ONNX files against each other: the ratio, its interval, a verdict, and what slowed one down."""
    feeds = feeds_to_measure(base, shape or [])
    verdict = surgeon.benchmark(base, slim, threads=threads, feeds=feeds, cpu_time=cpu_time)
    print(verdict.to_json() if json else verdict)
    if feeds is not None and not json:
        print("inputs    " + ", ".join(f"{name} {array.shape}" for name, array in feeds.items()))


def quantize(
    model: Annotated[Path, typer.Argument(help="A float32 ONNX file.")],
    calibration: Annotated[
        str | None,
        typer.Option(
            "--data", "--calibration", metavar="FILE|FOLDER|MODULE:NAME",
            help="Unlabeled inputs, as for `surgeon shrink`; without them, only dynamic int8 is tried.",
        ),
    ] = None,
    float16: Annotated[
        bool, typer.Option("--float16", help="Half the bytes, instead of int8; kept if accurate, whatever its speed.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FILE",
            help="Where to write; default: MODEL.int8.onnx beside it, or .mixed.onnx or .float32.onnx, by precision.",
        ),
    ] = None,
    base: Annotated[Path | None, typer.Option(help="An ONNX file to measure the result against too.")] = None,
    threads: Threads = None,
    mean: Mean = None,
    std: Std = None,
    layout: Layout = None,
    resize: Resize = None,
    json: Json = False,
) -> None:
    """Quantize a model to int8 if that is measured to be faster and accurate enough; else it stays float32.

    The measurements are written beside it, to NAME.report.json.
    """
    inputs = None if calibration is None else batches.read(calibration)
    if isinstance(inputs, str) and Path(inputs).is_dir():  # of pictures, the file's inputs tell what becomes
        inputs = batches.fitting(inputs, surgeon.load_onnx(model), mean, std, layout, resize)
    elif mean or std or layout or resize:
        raise InvalidArgument("--mean, --std, --layout and --resize are for a folder of pictures as --data")
    made = surgeon.quantize(
        model, inputs, path=out, base=base, threads=threads, kind="float16" if float16 else "auto"
    )
    write_text(made.path.with_name(f"{made.path.stem}.report.json"), made.to_json() + "\n")
    print(made.to_json() if json else made)


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `surgeon shrink` wrote; the page goes there.")],
    others: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER]...", help="The same model at other latencies, for a plot of the latencies."),
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Draw the report of a folder: an HTML page and figures of where the time goes, before and after."""
    from surgeon.reporting.page import write_page

    made = write_page(folder, others=others or (), threads=threads)
    told(json, "surgeon-pages", *made, paths=made)
