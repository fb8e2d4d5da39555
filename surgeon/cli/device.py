"""The commands about the device: profile it, write a kit for it, benchmark, quantize, and draw a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import surgeon
from surgeon.cli import data as batches
from surgeon.cli.onnx_file import feeds_to_measure
from surgeon.cli.options import (
    FORMS,
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
from surgeon.support.files import find, write_text
from surgeon.support.scratch import temporary_folder


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
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", metavar="FILE", help="The file to copy to the device, .pyz; with --ssh the profile to "
            "fetch, which is resumed if it is there.",
        ),
    ],
    ssh: Annotated[
        str | None,
        typer.Option(
            metavar="HOST", help="Run it there and fetch the profile, over this machine's ssh: user@name, "
            "ssh://user@name:port, or a host of ssh's configuration, where its key stands too.",
        ),
    ] = None,
    remote_python: Annotated[
        str | None, typer.Option(metavar="PATH", help="With --ssh: the Python there; default: python3.")
    ] = None,
    ssh_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --ssh: ssh's configuration, instead of the user's.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="With --ssh: threads of onnxruntime there, as the kit's own --threads.")
    ] = None,
    shapes: Shapes = None,
    shape: Shape = None,
    fixed: Fixed = None,
    pretrained: Pretrained = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Write a file that measures a model's operators on a device that has only Python, numpy and onnxruntime.

    With --ssh HOST it is copied there, run, and removed, and the profile is fetched.
    """
    if ssh is None and any(value is not None for value in (remote_python, ssh_config, threads)):
        raise InvalidArgument("--remote-python, --ssh-config and --threads go with --ssh; a kit has its own --threads")
    if ssh is not None:
        from surgeon.deploy.over_ssh import profile_over_ssh, require_ssh

        require_ssh(ssh)  # before the model is traced
    model, inputs = load(spec, shape or [], pretrained, seed, fixed or ())
    if ssh is not None:
        with temporary_folder() as folder:
            there = profile_over_ssh(
                surgeon.kit(model, folder / "kit.pyz", inputs, shapes=weighted(shapes or ())), ssh, out,
                threads=threads, remote_python=remote_python or "python3", ssh_config=ssh_config,
            )
        told(json, "surgeon-profiled", f"{out}: {there}", path=out, cpu=there.cpu, threads=there.threads)
        return
    made = surgeon.kit(model, out, inputs, shapes=weighted(shapes or ()))
    told(
        json, "surgeon-kit",
        f"{made}: run `python {made.name} -o device.json` on the device, then `surgeon shrink --device device.json`",
        path=made,
    )


def bench(
    base: Annotated[Path, typer.Argument(metavar="BASE|FOLDER", help="An ONNX file, or what `surgeon shrink` wrote.")],
    slim: Annotated[
        Path | None, typer.Argument(metavar="[SLIM]", help="Another one, with the same inputs; not with a FOLDER.")
    ] = None,
    threads: Threads = None,
    cpu_time: CpuTime = False,
    shape: Shape = None,
    json: Json = False,
) -> None:
    """Benchmark two ONNX files against each other: the ratio, its interval, a verdict, and what slowed one down."""
    if slim is None:
        if not base.is_dir():
            raise InvalidArgument(f"{base}: give a second ONNX file, or the FOLDER that `surgeon shrink` wrote")
        base, slim = find(base, "base.onnx"), find(base, "slim.onnx")
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
            "--data", "--calibration", metavar=FORMS,
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
