"""The command line. Each command checks that its output can be written first, and fails with a one-line message."""

from __future__ import annotations

import dataclasses
import functools
import inspect as signatures
import warnings
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import surgeon
from surgeon.cli import data as batches
from surgeon.cli.device import bench, kit, profile, quantize, report
from surgeon.cli.export import export
from surgeon.cli.options import (
    Data,
    Fixed,
    Ignore,
    Json,
    Layout,
    Mean,
    NeededData,
    Out,
    Pretrained,
    Resize,
    Samples,
    Seed,
    Shape,
    Spec,
    Std,
    Threads,
    load,
    load_slim,
    reported,
    told,
)
from surgeon.cli.shrink import shrink
from surgeon.cli.study import study
from surgeon.cli.sweep import sweep
from surgeon.cli.terms import running
from surgeon.errors import InvalidArgument
from surgeon.support import interrupts
from surgeon.support.arguments import POSITIVE, SHARE
from surgeon.support.files import replace_many, write_text
from surgeon.support.progress import report_progress


class _App(typer.Typer):
    """Cleans up its files and ends with a one-line message if it is stopped by a signal."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        interrupts.unwind(lambda: super(_App, self).__call__(*args, **kwargs))


app = _App(
    help="Make a PyTorch model smaller, prove that it is the original less the removed units, export it, and measure "
    "the speed-up.\n\n"
    "Untrusted files (.pt2, ONNX, arrays, plans, profiles, weights) are validated before use: nothing in them is "
    "unpickled, evaluated or imported. Not validated: what a model computes, and what onnxruntime does with a valid "
    "file. Trusted: package.module:NAME, which is run, and kit.pyz. See docs/security.md.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


Quiet = Annotated[bool, typer.Option("--quiet", help="Write nothing but errors to standard error.")]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Add a command, whose errors are reported in the command line's terms, with the options that all commands have."""
    return app.command()(_quiet(reported()(function)))


def _quiet(function: Callable[..., None]) -> Callable[..., None]:
    """A command that also takes `--quiet`; without it, progress is shown in pipes too."""
    signature = signatures.signature(function, eval_str=True)
    option = signatures.Parameter("quiet", signatures.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)

    @functools.wraps(function)
    def run(*, quiet: bool, **given: Any) -> None:
        report_progress(piped=True, silent=quiet)
        try:
            with warnings.catch_warnings():
                if quiet:
                    warnings.simplefilter("ignore")
                function(**given)
        finally:
            report_progress()

    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    return run


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
    """The options before a command."""
    group: Any = context.command
    context.with_resource(running(context.invoked_subcommand or "", group.commands))


class Network(StrEnum):
    RESIDUAL = "residual"
    DEPTHWISE = "depthwise"
    TRANSFORMER = "transformer"
    ALL = "all"


@command
def demo(
    network: Annotated[Network, typer.Option(help="Which of the trained networks, or all of them.")] = Network.RESIDUAL,
    ratio: Annotated[float, typer.Option(help="Share of the MACs to remove.")] = 0.5,
    data: Data = None,
    samples: Samples = 512,
    threads: Threads = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FOLDER", help="A folder in which to keep the files.")
    ] = None,
    json: Json = False,
) -> None:
    """Shrink a trained network in three ways, and show accuracy, size and measured latency.

    The ways are the plain cut, the default, which needs no data, and with unlabeled images: the demo's own, or --data.
    """
    SHARE("ratio", ratio)
    POSITIVE("samples", samples)
    from surgeon.cli.demo import run

    every = [each.value for each in Network if each is not Network.ALL]
    names = every if network is Network.ALL else [network.value]
    shown = [
        run(
            name, ratio, data=None if data is None else batches.read(data), samples=samples, threads=threads,
            out=out / name if out is not None and len(names) > 1 else out, quiet=json,
        )
        for name in names
    ]
    if json:
        told(json, "surgeon-demo", networks=dict(zip(names, shown, strict=True)))


@command
def recover(
    spec: Spec,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `surgeon apply` or `surgeon shrink` wrote.")],
    data: NeededData,
    out: Out,
    samples: Samples = 256,
    shape: Shape = None,
    pretrained: Pretrained = False,
    seed: Seed = 0,
    mean: Mean = None,
    std: Std = None,
    layout: Layout = None,
    resize: Resize = None,
    json: Json = False,
) -> None:
    """Fit the remaining layers to make up for what a plan removed, from unlabeled inputs.

    Writes slim.onnx, plan.json, weights.safetensors and report.json.
    """
    with replace_many(out) as scratch:
        model, inputs = load(spec, shape or [], pretrained, seed)
        slim, plan = load_slim(folder, model)
        given = batches.fitting(batches.read(data), model, mean, std, layout, resize)
        better, report = surgeon.recover(
            model, slim, plan, given, samples=samples, example_inputs=inputs, return_report=True
        )
        surgeon.save(better, scratch, plan)
        found = _with_report(better, inputs, scratch, out, "surgeon-recovery", recovery=report)
    told(json, "surgeon-recovery", found, report, recovery=report, exports={"slim": found})


@command
def inspect(
    spec: Spec,
    shape: Shape = None,
    fixed: Fixed = None,
    ignore: Ignore = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Draw them on one page instead, to search and click.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="PLAN", help="For the page: a plan.json, for the widths that it leaves.")
    ] = None,
    json: Json = False,
) -> None:
    """Print the groups of coupled units, and every pinned axis with the reason."""
    if plan is not None and html is None:
        raise InvalidArgument("--plan is for the page; give --html FILE.html with it")
    model, inputs = load(spec, shape or [], pretrained=False, seed=0, fixed=fixed or ())
    groups = surgeon.inspect(model, example_inputs=inputs, ignore=ignore or ())
    if html is not None:
        from surgeon.reporting.groups_page import groups_page

        made = None if plan is None else surgeon.Plan.load(plan)
        write_text(html, groups_page(groups, type(model).__name__, made))
        told(json, "surgeon-pages", html, paths=[html])
        return
    told(json, "surgeon-groups", groups, **(groups.to_json() if json else {}))


@command
def apply(
    spec: Spec,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan.json to apply.")],
    out: Out,
    shape: Shape = None,
    pretrained: Pretrained = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Apply a plan to a model of the same architecture; writes the same files as `surgeon recover`."""
    with replace_many(out) as scratch:
        made = surgeon.Plan.load(plan)
        model, inputs = load(spec, shape or [], pretrained, seed)
        slim = made.apply(model, example_inputs=inputs)
        certificate = surgeon.verify(model, slim, made, example_inputs=inputs)
        surgeon.save(slim, scratch)
        found = _with_report(slim, inputs, scratch, out, "surgeon-application", certificate=certificate)
    told(json, "surgeon-application", found, certificate, certificate=certificate, exports={"slim": found})


def _with_report(slim: Any, inputs: Any, scratch: Path, out: Path, kind: str, **said: Any) -> Any:
    """Export a smaller model to `scratch`, which becomes `out`, and write the report on it."""
    from surgeon.reporting.report import document

    found = surgeon.export(slim, scratch / "slim.onnx", example_inputs=inputs)
    found = dataclasses.replace(found, path=out / "slim.onnx")
    write_text(scratch / "report.json", document(kind, **said, exports={"slim": found}) + "\n")
    return found


@command
def verify(
    spec: Spec,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `surgeon shrink` wrote.")],
    shape: Shape = None,
    fixed: Fixed = None,
    pretrained: Pretrained = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Prove that the model in a folder is SPEC less the removed units. Give the options of `surgeon shrink`.

    This is impossible for weights that were fitted to data after the cut, or rotated before it.
    """
    model, inputs = load(spec, shape or [], pretrained, seed, fixed or ())
    slim, plan = load_slim(folder, model)
    certificate = surgeon.verify(model, slim, plan, example_inputs=inputs)
    told(json, "surgeon-certificate", certificate, certificate=certificate)


for each in (shrink, profile, kit, bench, export, quantize, report, study, sweep):
    command(each)
