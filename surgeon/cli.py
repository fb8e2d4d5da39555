"""The command line. Each command checks where it will write before it works, and ends in one message if it can't."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgeon.errors import InvalidArgument, SurgeonError

if TYPE_CHECKING:
    from torch import nn

# What takes seconds to import is imported in the command that needs it: `surgeon --help` answers at once.
app = typer.Typer(
    help="Make a PyTorch model smaller, prove that it is the same function less the removed units, "
    "export it, and measure the speed-up.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Budget(StrEnum):
    """What `--ratio` is a share of."""

    MACS = "macs"
    PARAMS = "params"
    CHANNELS = "channels"


class Scope(StrEnum):
    """Whether groups are compared with one another."""

    GLOBAL = "global"
    LOCAL = "local"


class Network(StrEnum):
    """The reference networks of the demo."""

    RESIDUAL = "residual"
    DEPTHWISE = "depthwise"
    TRANSFORMER = "transformer"


Spec = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="timm:NAME, torchvision:NAME, package.module:FACTORY, or the file of a torch.export program, "
        "NAME.pt2. A .pt2 file is read without unpickling anything but tensors.",
    ),
]
Shape = Annotated[
    list[str] | None,
    typer.Option(metavar="1,3,224,224", help="Shape of an input, once for each; inferred where that is safe."),
]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Take the zoo's published weights.")]
Seed = Annotated[int, typer.Option(help="Draws a zoo's random weights, and what a criterion draws.")]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Where to write; created if missing.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of onnxruntime while measuring.")]
Ignore = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Module or parameter to leave alone; may be given several times."),
]


@contextmanager
def _reported() -> Iterator[None]:
    """Turn an error that surgeon raises on purpose into its message and exit code 1."""
    try:
        yield
    except SurgeonError as error:
        sys.stderr.write(f"surgeon: {error}\n")
        raise typer.Exit(1) from error


@contextmanager
def _published(folder: Path) -> Iterator[Path]:
    """A temporary folder, whose files go to `folder` when the block succeeds; `folder` is created no sooner.

    Raises `OutputError` before the block if nothing could be written there.
    """
    from surgeon.files import ensure_folder, replace_many

    # lexists: a link to nowhere stands in the way of a folder
    nearest = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    with tempfile.TemporaryDirectory(prefix=".surgeon-", dir=ensure_folder(nearest)) as made:
        yield Path(made)
        with replace_many(folder) as scratch:
            for file in Path(made).iterdir():
                os.replace(file, scratch / file.name)


@app.command()
@_reported()
def demo(
    network: Annotated[Network, typer.Option(help="Which of the trained networks.")] = Network.RESIDUAL,
    ratio: Annotated[float, typer.Option(help="Share of the MACs to remove.")] = 0.5,
    threads: Threads = 1,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FOLDER", help="Keep the files that it makes.")
    ] = None,
) -> None:
    """Shrink a trained network, and show accuracy, size and measured latency before and after."""
    from surgeon.demo import run

    run(network.value, ratio, threads=threads, out=out)


@app.command()
@_reported()
def shrink(
    spec: Spec,
    ratio: Annotated[float, typer.Option(help="Share of the budget to remove.")],
    out: Out,
    budget: Annotated[Budget, typer.Option(help="What the ratio is a share of.")] = Budget.MACS,
    ignore: Ignore = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="[GLOB=]N", help="Least width (16) or share (0.25) of a group, or of those named."),
    ] = None,
    align: Annotated[int | None, typer.Option(help="Widths as multiples of this; 1 switches it off.")] = None,
    importance: Annotated[str, typer.Option(help="The criterion that ranks units.")] = "magnitude",
    scope: Annotated[Scope, typer.Option(help="Compare all groups, or cut each alike.")] = Scope.GLOBAL,
    seed: Seed = 0,
    pretrained: Pretrained = False,
    shape: Shape = None,
    threads: Threads = 1,
    bench: Annotated[bool, typer.Option("--bench/--no-bench", help="Measure the speed-up.")] = True,
) -> None:
    """Write base.onnx, slim.onnx, plan.json, weights.safetensors and report.json to a folder."""
    import surgeon
    from surgeon.progress import collect, stage

    least = _keep(keep or [])
    with collect() as seconds, _published(out) as scratch:
        model, inputs = _load(spec, shape or [], pretrained, seed)
        slim, report = surgeon.shrink(
            model,
            ratio,
            example_inputs=inputs,
            budget=budget.value,
            ignore=ignore or (),
            keep=least,
            align=align,
            importance=importance,
            scope=scope.value,
            seed=seed,
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
    _show(report)


@app.command()
@_reported()
def inspect(spec: Spec, shape: Shape = None, ignore: Ignore = None) -> None:
    """Print the groups of coupled units, and every pinned axis with the reason."""
    import surgeon

    model, inputs = _load(spec, shape or [], pretrained=False, seed=0)
    print(surgeon.inspect(model, example_inputs=inputs, ignore=ignore or ()))


@app.command()
@_reported()
def apply(
    spec: Spec,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan.json to replay.")],
    out: Out,
    shape: Shape = None,
    pretrained: Pretrained = False,
    seed: Seed = 0,
) -> None:
    """Replay a plan on a model of the same architecture; write slim.onnx, plan.json and weights.safetensors."""
    import surgeon

    with _published(out) as scratch:
        made = surgeon.Plan.load(plan)
        model, inputs = _load(spec, shape or [], pretrained, seed)
        slim = made.apply(model, example_inputs=inputs)
        certificate = surgeon.verify(model, slim, made, example_inputs=inputs)
        surgeon.save(slim, scratch)
        found = surgeon.export(slim, scratch / "slim.onnx", example_inputs=inputs)
    print(dataclasses.replace(found, path=out / "slim.onnx"))
    print(certificate)


@app.command()
@_reported()
def verify(
    spec: Spec,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `surgeon shrink` wrote.")],
    shape: Shape = None,
    pretrained: Pretrained = False,
    seed: Seed = 0,
) -> None:
    """Prove that the model in a folder is SPEC less the removed units. Give the options of `surgeon shrink`."""
    import surgeon

    model, inputs = _load(spec, shape or [], pretrained, seed)
    plan = surgeon.Plan.load(folder / "plan.json")
    slim = surgeon.load(folder, model)
    print(surgeon.verify(model, slim, plan, example_inputs=inputs))


@app.command()
@_reported()
def bench(
    base: Annotated[Path, typer.Argument(help="An ONNX file.")],
    slim: Annotated[Path, typer.Argument(help="Another one, with the same inputs.")],
    threads: Threads = 1,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure two ONNX files against each other: the ratio, its interval, and a verdict."""
    import surgeon

    verdict = surgeon.benchmark(base, slim, threads=threads)
    print(verdict.to_json() if json else verdict)


def _load(spec: str, shapes: Sequence[str], pretrained: bool, seed: int) -> tuple[nn.Module, Any]:
    """The model, and example inputs as the Python API takes them."""
    import torch

    from surgeon.inputs import infer
    from surgeon.sources import load

    sizes = [_sizes(shape) for shape in shapes]
    model, known = load(spec, pretrained=pretrained, seed=seed)
    if sizes:
        generator = torch.Generator().manual_seed(seed)
        return model, tuple(torch.randn(size, generator=generator) for size in sizes)
    if known is not None:
        return model, known
    args, kwargs = infer(model)
    return model, args or kwargs


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise InvalidArgument(f"--shape {text!r} is no shape; give positive sizes, such as 1,3,224,224")
    return sizes


def _keep(texts: Sequence[str]) -> Any:
    """`keep` as the Python API takes it: for all groups where no glob is given."""
    named: dict[str, float | int] = {}
    for text in texts:
        glob, equals, number = text.rpartition("=")
        try:
            value = float(number) if "." in number else int(number)
        except ValueError as error:
            raise InvalidArgument(
                f"--keep {text!r} is neither a width (16) nor a share (0.25), nor GLOB= and one of them"
            ) from error
        named[glob if equals else "*"] = value
    return named or None


def _show(report: object) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(report)
