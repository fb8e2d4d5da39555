"""What the commands share: their options, how they load a model and report an error."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

import surgeon
from surgeon.cli.terms import in_terms
from surgeon.errors import InvalidArgument, SurgeonError
from surgeon.frontend import model_loading as sources
from surgeon.frontend.infer_inputs import infer
from surgeon.plans.plan import Plan, plan_of

Spec = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="timm:NAME, torchvision:NAME, package.module:FACTORY, or the file of a torch.export program, "
        "NAME.pt2. A .pt2 file is checked, and nothing in it is unpickled, evaluated or imported; a FACTORY is run.",
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
_DATA = typer.Option(
    metavar="FILE|FOLDER|MODULE:NAME|synthetic",
    help="Unlabeled inputs as for inference: .npy, .npz or .safetensors, a folder of such files, what yields "
    "batches in your own Python, such as package.module:LOADER, or synthetic: made from the model alone.",
)
Data = Annotated[str | None, _DATA]
NeededData = Annotated[str, _DATA]
Samples = Annotated[int, typer.Option(help="How many of the data to use at most.")]
Ignore = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Module or parameter to leave alone; may be given several times."),
]


@contextmanager
def reported() -> Iterator[None]:
    """Turn an error that surgeon raises on purpose into its message, in the command line's terms, and exit code 1."""
    try:
        yield
    except SurgeonError as error:
        sys.stderr.write(f"surgeon: {in_terms(str(error))}\n")
        raise typer.Exit(1) from error


def load(spec: str, shapes: Sequence[str], pretrained: bool, seed: int) -> tuple[nn.Module, Any]:
    """The model, and example inputs as the Python API takes them."""
    sizes = [_sizes(shape) for shape in shapes]
    model, known = sources.load(spec, pretrained=pretrained, seed=seed)
    if sizes:
        generator = torch.Generator().manual_seed(seed)
        return model, tuple(torch.randn(size, generator=generator) for size in sizes)
    if known is not None:
        return model, known
    args, kwargs = infer(model)
    return model, args or kwargs


def load_slim(folder: Path, model: nn.Module) -> tuple[nn.Module, Plan]:
    """The smaller model in a folder, and the plan that it was made by: of one version, also while it is replaced."""
    slim = surgeon.load(folder, model)
    plan = plan_of(slim, None)
    assert plan is not None  # a model that was loaded carries it
    return slim, plan


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise InvalidArgument(f"--shape {text!r} is no shape; give positive sizes, such as 1,3,224,224")
    return sizes


def least_widths(texts: Sequence[str]) -> Any:
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


def show(report: object) -> None:
    Console(highlight=False, soft_wrap=True).print(report)
