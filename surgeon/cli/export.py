"""The command that writes an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import surgeon
from surgeon.cli.options import Json, Pretrained, Seed, Shape, Spec, load, load_slim, told
from surgeon.errors import InvalidArgument


class Free(StrEnum):
    """Which axes of the inputs are free."""

    ALL = "all"
    BATCH = "batch"
    NONE = "none"


def export(
    spec: Spec,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE.onnx", help="Where to write.")],
    slim: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write the smaller model that `surgeon shrink` or `apply` put there."),
    ] = None,
    free: Annotated[
        Free, typer.Option(help="The axes of the inputs that may have any size: all that the model leaves free.")
    ] = Free.ALL,
    axis: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT:AXIS=NAME", help="Insist that an axis is free, and name it, as x:2=height."),
    ] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT[:AXIS]", help="Fix an axis, or all of an input, at the example's size."),
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX's opset; torch.onnx writes 18 to 23.")] = 20,
    input_names: Annotated[
        list[str] | None, typer.Option("--input-name", metavar="NAME", help="An input's name, once for each.")
    ] = None,
    output_names: Annotated[
        list[str] | None, typer.Option("--output-name", metavar="NAME", help="An output's name, once for each.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="How far an output may be off PyTorch's, by its largest.")] = 1e-3,
    shape: Shape = None,
    pretrained: Pretrained = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Write a model to an ONNX file that is held against PyTorch, at other sizes too, and say which sizes are free."""
    dynamic = _dynamic(free, axis or (), fix or ())
    model, inputs = load(spec, shape or [], pretrained, seed)
    if slim is not None:
        model, _ = load_slim(slim, model)
    found = surgeon.export(
        model, out, example_inputs=inputs, dynamic=dynamic, opset=opset, input_names=input_names or None,
        output_names=output_names or None, tolerance=tolerance, seed=seed,
    )
    told(json, "surgeon-export", found, export=found)


def _dynamic(free: Free, named: Sequence[str], fixed: Sequence[str]) -> Any:
    """The argument `dynamic` of `surgeon.export`."""
    if not named and not fixed:
        return {Free.ALL: None, Free.BATCH: "batch", Free.NONE: False}[free]
    if free is not Free.ALL:
        raise InvalidArgument(f"--axis and --fix name axes one by one, and don't go with --free {free}; leave that out")
    found: dict[str, Any] = {}
    for text, option in [*((each, "--axis") for each in named), *((each, "--fix") for each in fixed)]:
        place, _, name = text.partition("=")
        tensor, _, number = place.rpartition(":") if ":" in place else (place, "", "")
        whole = option == "--fix" and not number
        if not tensor or not (whole or number.isdecimal()) or bool(name) != (option == "--axis"):
            wanted = "INPUT:AXIS=NAME, such as x:2=height" if option == "--axis" else "INPUT:AXIS or INPUT, such as x:2"
            raise InvalidArgument(f"{option} {text}: give {wanted}")
        if whole:
            found[tensor] = False
        elif found.setdefault(tensor, {}) is not False:
            found[tensor][int(number)] = name or False
    return found
