"""The command that makes a model smaller: a folder of everything, or one ONNX file."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

import surgeon
from surgeon.cli import data as batches
from surgeon.cli.onnx_file import feeds_of, feeds_of_most, of_these_sizes
from surgeon.cli.options import (
    Fixed,
    Json,
    Layout,
    Mean,
    Pretrained,
    Resize,
    Shape,
    Spec,
    Std,
    load,
    show,
    with_options,
)
from surgeon.errors import BenchmarkError, InvalidArgument
from surgeon.pipeline.options import Options
from surgeon.support.files import replace_beside, replace_many
from surgeon.support.progress import collect, stage
from surgeon.support.scratch import temporary_folder

FASTER = "faster"


@with_options
def shrink(
    spec: Spec,
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", metavar="FOLDER|FILE.onnx",
            help="Where to write: a folder, created if missing, or an ONNX file alone, only if it is measured to be "
            "faster, or predicted to be on another CPU, by its profile. Of an ONNX file, that is the file itself, less "
            "what was removed.",
        ),
    ],
    pretrained: Pretrained = False,
    shape: Shape = None,
    fixed: Fixed = None,
    bench: Annotated[bool, typer.Option("--bench/--no-bench", help="Measure the speed-up.")] = True,
    mean: Mean = None,
    std: Std = None,
    layout: Layout = None,
    resize: Resize = None,
    force: Annotated[bool, typer.Option("--force", help="Write FILE.onnx even if it is not faster.")] = False,
    json: Json = False,
    **options: Any,
) -> None:
    """Write base.onnx, slim.onnx, plan.json, weights.safetensors and report.json to a folder; or one ONNX file."""
    threads, cpu_time = options["threads"], options["cpu_time"]
    if options["latency_ms"] is None and options["budget"] != "latency":
        options["threads"], options["cpu_time"] = None, False
    Options.of(**options)  # invalid options fail before the model is loaded
    to_file = out.suffix == ".onnx"
    if to_file and Path(spec).exists() and out.exists() and out.samefile(spec):
        raise InvalidArgument(f"-o {out} is the file that is to be made smaller; give another name")
    if force and not to_file:
        raise InvalidArgument("--force writes a FILE.onnx that is not faster; a FOLDER is written in any case")
    replaced = replace_beside if to_file else replace_many
    with collect() as seconds, replaced(out) as scratch, temporary_folder() as aside:
        model, inputs = load(spec, shape or [], pretrained, options["seed"], fixed or ())
        for name, beside in (("data", "metric_data"), ("metric_data", "data")):
            options[name] = batches.fitting(
                options[name], model, mean, std, layout, resize, beside=options[beside] is not None
            )
        if not shape:
            inputs = of_these_sizes(model, inputs, options["data"])
        slim, report = surgeon.shrink(model, example_inputs=inputs, return_report=True, **options)
        if not to_file:
            with stage("save"):
                surgeon.save(slim, scratch)
        small = scratch / (out.name if to_file else "slim.onnx")
        large = (aside if to_file else scratch) / "base.onnx"
        exports = {}
        for name, each, path in (("base", model, large), ("slim", slim, small)):
            with stage(f"export {name}"):
                exports[name] = surgeon.export(each, path, example_inputs=inputs)
        if to_file:
            exports = {"slim": dataclasses.replace(exports["slim"], path=out)}
        else:
            exports = {name: dataclasses.replace(each, path=out / each.path.name) for name, each in exports.items()}
        verdict, timing = None, report.latency
        predicted = timing is not None and timing.measured is None
        if bench and not (to_file and predicted):
            with stage("benchmark"):
                threads = threads or (None if timing is None or predicted else timing.threads)
                verdict = surgeon.benchmark(
                    large, small, threads=threads, cpu_time=cpu_time,
                    feeds=feeds_of_most(large, options["shapes"]) or feeds_of(model, inputs),
                )
        taken = {**report.seconds, **seconds}
        report = dataclasses.replace(
            report, exports=exports, benchmark=verdict, seconds=taken, command=shlex.join(["surgeon", *sys.argv[1:]]),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if to_file and predicted:
            report = dataclasses.replace(report, notes=(*report.notes, f"verdict: {timing.prediction}"))
        elif to_file and verdict is not None and verdict.decision != FASTER and not force:
            why = f"{verdict.decision}; {verdict.doubt}" if verdict.doubt else verdict.decision
            remedy = "remove more, or write it all the same with --force"
            if verdict.threads > 1:
                remedy = "remove more, give --threads 1 on a busy machine, or write it all the same with --force"
            raise BenchmarkError(f"{out} was not written: its speed-up is {verdict.ratio}, {why}; {remedy}")
        if not to_file:
            report.save(scratch / "report.json")
    show(report, json)
