"""The command that removes dead units."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import surgeon
from surgeon.cli.options import Ignore, Json, Out, Pretrained, Seed, Shape, Spec, load, show
from surgeon.support.files import replace_many, write_text


class Rank(StrEnum):
    """The connections that are ranked together."""

    GLOBAL = "global"
    LOCAL = "local"


def sweep(
    spec: Spec,
    out: Out,
    amount: Annotated[
        float | None, typer.Option(help="Share of the connections to set to zero first, by magnitude.")
    ] = None,
    scope: Annotated[Rank, typer.Option(help="Rank all connections together, or those of each weight.")] = Rank.GLOBAL,
    ignore: Ignore = None,
    threshold: Annotated[float, typer.Option(help="Entries of parameters below it in magnitude count as zero.")] = 0.0,
    seed: Seed = 0,
    pretrained: Pretrained = False,
    shape: Shape = None,
    json: Json = False,
) -> None:
    """Remove dead neurons and channels; write base.onnx, slim.onnx, plan.json, weights.safetensors and report.json."""
    with replace_many(out) as scratch:
        model, inputs = load(spec, shape or [], pretrained, seed)
        if amount is not None:
            model = surgeon.prune_connections(model, amount, scope.value, None, ignore or (), example_inputs=inputs)
        slim, report = surgeon.sweep(model, inputs, threshold=threshold, return_report=True)
        surgeon.save(slim, scratch)
        for name, each in (("base", model), ("slim", slim)):
            surgeon.export(each, scratch / f"{name}.onnx", example_inputs=inputs)
        write_text(Path(scratch) / "report.json", report.to_json() + "\n")
    show(report if json else str(report), json)
