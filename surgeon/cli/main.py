"""The command line. Each command checks where it will write before it works, and ends in one message if it can't."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import surgeon
from surgeon.cli import data as batches
from surgeon.cli import device as device_commands
from surgeon.cli import export as export_commands
from surgeon.cli import study as study_commands
from surgeon.cli import sweep as sweep_commands
from surgeon.cli.options import (
    Ignore,
    NeededData,
    Out,
    Pretrained,
    Samples,
    Seed,
    Shape,
    Spec,
    Threads,
    load,
    load_slim,
    reported,
    show,
    with_options,
)
from surgeon.cli.terms import running
from surgeon.pipeline.options import Options
from surgeon.support import interrupts
from surgeon.support.files import replace_many, write_text
from surgeon.support.progress import collect, stage


class _App(typer.Typer):
    """Ends in one line, with its files put away, when a signal asks for it."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        interrupts.unwind(lambda: super(_App, self).__call__(*args, **kwargs))


app = _App(
    help="Make a PyTorch model smaller, prove that it is the same function less the removed units, "
    "export it, and measure the speed-up.\n\n"
    "Files from somebody else (.pt2, ONNX, arrays, plans, profiles, weights) are checked before they are acted on: "
    "nothing in them is unpickled, evaluated or imported. What is not checked: what a model computes, and what "
    "onnxruntime does with a valid file. What is trusted: package.module:NAME, which is run, and kit.pyz. "
    "See docs/security.md.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(surgeon.__version__)
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    """What is given before a command."""
    group: Any = context.command
    context.with_resource(running(context.invoked_subcommand or "", group.commands))


class Network(StrEnum):
    """The reference networks of the demo."""

    RESIDUAL = "residual"
    DEPTHWISE = "depthwise"
    TRANSFORMER = "transformer"


@app.command()
@reported()
def demo(
    network: Annotated[Network, typer.Option(help="Which of the trained networks.")] = Network.RESIDUAL,
    ratio: Annotated[float, typer.Option(help="Share of the MACs to remove.")] = 0.5,
    threads: Threads = 1,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FOLDER", help="Keep the files that it makes.")
    ] = None,
) -> None:
    """Shrink a trained network, and show accuracy, size and measured latency before and after."""
    from surgeon.cli.demo import run

    run(network.value, ratio, threads=threads, out=out)


@app.command()
@reported()
@with_options
def shrink(
    spec: Spec,
    out: Out,
    pretrained: Pretrained = False,
    shape: Shape = None,
    bench: Annotated[bool, typer.Option("--bench/--no-bench", help="Measure the speed-up.")] = True,
    **options: Any,
) -> None:
    """Write base.onnx, slim.onnx, plan.json, weights.safetensors and report.json to a folder."""
    threads = options["threads"]
    if options["latency_ms"] is None and options["budget"] != "latency":
        options["threads"] = None
    Options.of(**options)  # refuses what is wrong before the model is loaded
    with collect() as seconds, replace_many(out) as scratch:
        model, inputs = load(spec, shape or [], pretrained, options["seed"])
        slim, report = surgeon.shrink(model, example_inputs=inputs, return_report=True, **options)
        with stage("save"):
            surgeon.save(slim, scratch)
        exports = {}
        for name, each in (("base", model), ("slim", slim)):
            with stage(f"export {name}"):
                found = surgeon.export(each, scratch / f"{name}.onnx", example_inputs=inputs)
            exports[name] = dataclasses.replace(found, path=out / found.path.name)
        verdict = None
        if bench:
            with stage("benchmark"):
                threads = threads or (report.latency.threads if report.latency is not None else 1)
                verdict = surgeon.benchmark(scratch / "base.onnx", scratch / "slim.onnx", threads=threads)
        taken = {**report.seconds, **seconds}
        report = dataclasses.replace(report, exports=exports, benchmark=verdict, seconds=taken)
        report.save(scratch / "report.json")
    show(report)


@app.command()
@reported()
def recover(
    spec: Spec,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `surgeon apply` or `surgeon shrink` wrote.")],
    data: NeededData,
    out: Out,
    samples: Samples = 256,
    shape: Shape = None,
    pretrained: Pretrained = False,
    seed: Seed = 0,
) -> None:
    """Fit the layers that are left to make up for what a plan removed, from unlabeled inputs, without labels.

    Writes slim.onnx, plan.json, weights.safetensors and report.json.
    """
    with replace_many(out) as scratch:
        model, inputs = load(spec, shape or [], pretrained, seed)
        slim, plan = load_slim(folder, model)
        better, report = surgeon.recover(
            model, slim, plan, batches.read(data), samples=samples, example_inputs=inputs, return_report=True
        )
        surgeon.save(better, scratch, plan)
        found = _with_report(better, inputs, scratch, out, "surgeon-recovery", recovery=report)
    print(found)
    print(report)


@app.command()
@reported()
def inspect(spec: Spec, shape: Shape = None, ignore: Ignore = None) -> None:
    """Print the groups of coupled units, and every pinned axis with the reason."""
    model, inputs = load(spec, shape or [], pretrained=False, seed=0)
    print(surgeon.inspect(model, example_inputs=inputs, ignore=ignore or ()))


@app.command()
@reported()
def apply(
    spec: Spec,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan.json to replay.")],
    out: Out,
    shape: Shape = None,
    pretrained: Pretrained = False,
    seed: Seed = 0,
) -> None:
    """Replay a plan on a model of the same architecture; write what `surgeon recover` does."""
    with replace_many(out) as scratch:
        made = surgeon.Plan.load(plan)
        model, inputs = load(spec, shape or [], pretrained, seed)
        slim = made.apply(model, example_inputs=inputs)
        certificate = surgeon.verify(model, slim, made, example_inputs=inputs)
        surgeon.save(slim, scratch)
        found = _with_report(slim, inputs, scratch, out, "surgeon-application", certificate=certificate)
    print(found)
    print(certificate)


def _with_report(slim: Any, inputs: Any, scratch: Path, out: Path, kind: str, **said: Any) -> Any:
    """Export a smaller model to `scratch`, which becomes `out`, and write what is said of it beside the file."""
    from surgeon.reporting.report import document

    found = surgeon.export(slim, scratch / "slim.onnx", example_inputs=inputs)
    found = dataclasses.replace(found, path=out / "slim.onnx")
    write_text(scratch / "report.json", document(kind, **said, exports={"slim": found}) + "\n")
    return found


@app.command()
@reported()
def verify(
    spec: Spec,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `surgeon shrink` wrote.")],
    shape: Shape = None,
    pretrained: Pretrained = False,
    seed: Seed = 0,
) -> None:
    """Prove that the model in a folder is SPEC less the removed units. Give the options of `surgeon shrink`.

    Of weights that data have fitted since the cut, or that were rotated before it, nothing can be proved.
    """
    model, inputs = load(spec, shape or [], pretrained, seed)
    slim, plan = load_slim(folder, model)
    print(surgeon.verify(model, slim, plan, example_inputs=inputs))


device_commands.add_commands(app)
export_commands.add_commands(app)
study_commands.add_commands(app)
sweep_commands.add_commands(app)
