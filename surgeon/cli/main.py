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
from surgeon.cli import study as study_commands
from surgeon.cli import sweep as sweep_commands
from surgeon.cli.options import (
    Data,
    Ignore,
    NeededData,
    Out,
    Pretrained,
    Samples,
    Seed,
    Shape,
    Spec,
    Threads,
    least_widths,
    load,
    load_slim,
    reported,
    show,
)
from surgeon.cli.terms import running
from surgeon.reporting.report import document
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


class Budget(StrEnum):
    """What `--ratio` is a share of."""

    MACS = "macs"
    PARAMS = "params"
    CHANNELS = "channels"
    LATENCY = "latency"


class Scope(StrEnum):
    """Whether groups are compared with one another."""

    GLOBAL = "global"
    LOCAL = "local"
    ISOMORPHIC = "isomorphic"


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
def shrink(
    spec: Spec,
    out: Out,
    ratio: Annotated[float | None, typer.Option(help="Share of the budget to remove.")] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="Instead of a ratio: the milliseconds that the result may take.")
    ] = None,
    budget: Annotated[Budget, typer.Option(help="What the ratio is a share of.")] = Budget.MACS,
    ignore: Ignore = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="[GLOB=]N", help="Least width (16) or share (0.25) of a group, or of those named."),
    ] = None,
    align: Annotated[int | None, typer.Option(help="Widths as multiples of this; 1 switches it off.")] = None,
    importance: Annotated[
        str | None, typer.Option(help="What ranks units; default: reconstruction with data, else magnitude.")
    ] = None,
    scope: Annotated[Scope, typer.Option(help="Compare all groups, none, or those of one structure.")] = Scope.GLOBAL,
    seed: Seed = 0,
    pretrained: Pretrained = False,
    shape: Shape = None,
    data: Data = None,
    samples: Samples = 256,
    project: Annotated[
        bool, typer.Option("--project/--no-project", help="With data: rotate linear streams before the cut.")
    ] = True,
    compensate: Annotated[
        bool, typer.Option("--compensate/--no-compensate", help="With data: fit layers to make up for the cut.")
    ] = True,
    distil: Annotated[
        bool, typer.Option("--distil/--no-distil", help="With data: then move the fitted layers together.")
    ] = True,
    device: Annotated[
        Path | None,
        typer.Option(
            metavar="PROFILE", help="For a latency: the profile of the CPU where the model will run; default: here."
        ),
    ] = None,
    threads: Threads = 1,
    bench: Annotated[bool, typer.Option("--bench/--no-bench", help="Measure the speed-up.")] = True,
) -> None:
    """Write base.onnx, slim.onnx, plan.json, weights.safetensors and report.json to a folder."""
    least = least_widths(keep or [])
    with collect() as seconds, replace_many(out) as scratch:
        model, inputs = load(spec, shape or [], pretrained, seed)
        slim, report = surgeon.shrink(
            model,
            ratio,
            example_inputs=inputs,
            budget=budget.value,
            ignore=ignore or (),
            keep=least,
            align=align,
            importance=importance,
            data=None if data is None else batches.read(data),
            samples=samples,
            project=project,
            compensate=compensate,
            distil=distil,
            scope=scope.value,
            seed=seed,
            latency_ms=latency_ms,
            device=device,
            threads=threads if latency_ms is not None or budget is Budget.LATENCY else None,
            return_report=True,
        )
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
        found = surgeon.export(better, scratch / "slim.onnx", example_inputs=inputs)
        found = dataclasses.replace(found, path=out / "slim.onnx")
        text = document("surgeon-recovery", recovery=report, exports={"slim": found})
        write_text(scratch / "report.json", text + "\n")
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
        found = surgeon.export(slim, scratch / "slim.onnx", example_inputs=inputs)
        found = dataclasses.replace(found, path=out / "slim.onnx")
        text = document("surgeon-application", certificate=certificate, exports={"slim": found})
        write_text(scratch / "report.json", text + "\n")
    print(found)
    print(certificate)


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
study_commands.add_commands(app)
sweep_commands.add_commands(app)
