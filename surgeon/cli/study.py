"""The command that runs a study."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from surgeon.cli.options import Json, told

Names = list[str]


def study(
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="package.module:NAME or folder/file.py:NAME; see surgeon.study.Task.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Where to write; a study there resumes.")],
    ratio: Annotated[list[float], typer.Option(help="Share of the MACs to remove; may be given several times.")],
    criterion: Annotated[Names, typer.Option(help="What ranks units: magnitude, l1, l2, taylor, …")] = ["magnitude"],
    scope: Annotated[Names, typer.Option(help="global, or local for the same share of each layer.")] = ["global"],
    schedule: Annotated[Names, typer.Option(help="one-shot, steps:N, cubic:N or exponential:N.")] = ["one-shot"],
    survivors: Annotated[Names, typer.Option(help="kept, rewound or reinitialized.")] = ["kept"],
    penalty: Annotated[Names, typer.Option(help="While training: none, l1:1e-5, l2:1e-4, …")] = ["none"],
    removed: Annotated[Names, typer.Option(help="units or connections.")] = ["units"],
    baseline: Annotated[Names, typer.Option(help="random, scratch, small or dense; none for none.")] = [
        "random", "scratch", "small",
    ],
    seeds: Annotated[int, typer.Option(min=1, help="The number of seeds, from 0.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="The number of processes on this machine.")] = 1,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: its address, auto, or local.")
    ] = None,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Measure latency too.")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Print the runs, and run nothing.")] = False,
    json: Json = False,
) -> None:
    """Prune and retrain in every requested combination, with baselines; write rows, a table and plots.

    Options may be given several times. Run the same command again to resume an interrupted study.
    """
    from surgeon.study import Study, figures, grid

    runs = grid(
        criteria=criterion, ratios=ratio, scopes=scope, schedules=schedule, survivors=survivors, penalties=penalty,
        removed=removed, seeds=seeds, baselines=[name for name in baseline if name != "none"],
    )
    if list_only:
        keys = [run.key for run in runs]
        told(json, "surgeon-runs", *keys, runs=keys)
        return
    made = Study(task, out, runs, measure=latency)
    rows = made.run(jobs, ray)
    paths = made.write()
    told(json, "surgeon-study-rows", made.table().rstrip("\n"), *paths, rows=rows, paths=paths)
    if not figures.available():
        sys.stderr.write('surgeon: no plots were drawn; they need matplotlib: pip install "model-surgeon[plot]"\n')
    if any("error" in row for row in rows):
        raise typer.Exit(1)
