"""What masks and sweeps must hold exactly: dead neurons by an independent count, and masked models against surgery.

    python -m benchmarks.method_masked                      # all rows, resuming where a run was broken off
    python -m benchmarks.method_masked --only timm:swin --redo
    python -m benchmarks.method_masked --table              # print the tables of the results so far

A sweep row trains a fully connected network, prunes its connections and sweeps it. A masked row takes a model of the
list, masks half of each group's units in the user's own modules, cuts the same units off, and compares the outputs of
the two, each traced as it is and run in float64. A process a model; a line of JSON a row in
`benchmarks/results/method_masked.jsonl`.
"""

from __future__ import annotations

import copy
import importlib
import json
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import surgeon
from benchmarks import coverage
from benchmarks.method_tasks import Connected, clothes
from benchmarks.rows import command, last, last_line, publish, to_run
from surgeon.errors import SurgeonError
from surgeon.pipeline.decision import prepare
from surgeon.pipeline.options import Options
from surgeon.surgery.build import carry_out
from surgeon.training.unit_masks import UnitMasks
from surgeon.verification.check import relative
from testbed import zoo

RESULTS = Path(__file__).parent / "results" / "method_masked.jsonl"
TABLE = Path(__file__).parent / "results" / "method_masked.md"
SEEDS = (0, 1, 2)
AMOUNT = 0.9
#: The penalty on the magnitude of weights, and the magnitude below which they count as zero afterwards.
PENALTY, THRESHOLD = 1e-3, 1e-3
EPOCHS = 4
SHARE = 0.5
#: Seconds a model.
LIMIT = 900

Row = dict[str, Any]


def trained(seed: int, penalty: float = 0.0) -> nn.Module:
    """The fully connected network of the study after a few epochs, in float64; with an L1 penalty on its weights."""
    torch.manual_seed(seed)
    task = Connected()
    model, batches = task.model(), task.batches()
    optimizer = task.optimizer(model.parameters(), retraining=False)
    for _ in range(EPOCHS if not penalty else 4 * EPOCHS):
        for batch in batches:
            optimizer.zero_grad()
            l1 = sum(p.abs().sum() for p in model.parameters() if p.dim() > 1)
            (task.loss(model, batch) + penalty * l1).backward()
            optimizer.step()
    return model.double()


def dead(model: nn.Module) -> list[int]:
    """How many neurons of each hidden layer no path leads to, or from: by products of boolean matrices alone."""
    weights = [p.detach().ne(0).numpy() for p in model.parameters() if p.dim() == 2]
    reached = [np.ones(weights[0].shape[1], dtype=bool)]
    for weight in weights:
        reached.append(weight @ reached[-1])
    reaching = [np.ones(weights[-1].shape[0], dtype=bool)]
    for weight in reversed(weights):
        reaching.insert(0, weight.T @ reaching[0])
    return [int((~(a & b)).sum()) for a, b in zip(reached[1:-1], reaching[1:-1], strict=True)]


def swept(case: str, seed: int) -> Row:
    """A network whose connections were pruned, or that was trained with a penalty, and what a sweep makes of it."""
    threshold = 0.0
    if case == "L1":
        sparse, threshold = trained(seed, PENALTY), THRESHOLD
        with torch.no_grad():
            for parameter in sparse.parameters():
                parameter.masked_fill_(parameter.abs() < threshold, 0)
    else:
        sparse = surgeon.prune_connections(
            trained(seed), AMOUNT, scope=case, example_inputs=clothes()[1][0][:2].double()
        )
    images = clothes()[1][0].double()
    slim, report = surgeon.sweep(sparse, images[:2], threshold=threshold, return_report=True)
    widths = [[m.out_features for m in model.modules() if isinstance(m, nn.Linear)] for model in (sparse, slim)]
    weights = [p for p in sparse.parameters() if p.dim() == 2]
    with torch.no_grad():
        deviation = relative(sparse(images), slim(images))
    task = Connected()
    return {
        "zeros": sum(int(p.eq(0).sum()) for p in weights) / sum(p.numel() for p in weights), "widths": widths,
        "dead": dead(sparse), "removed": [a - b for a, b in zip(*widths, strict=True)][:-1], "left": dead(slim),
        "constant": report.constant, "unread": report.unread, "deviation": deviation,
        "params": [report.params_before, report.params_after],
        "accuracy": [task.metric(copy.deepcopy(model).float()) for model in (sparse, slim)],
    }


def masked(library: str, name: str) -> Row:
    """A model of the list, masked, against its surgery."""
    model, inputs = zoo.load(library, name)
    coverage.redraw(model)
    options = Options.of(ratio=SHARE, budget="channels", importance="l1", scope="local")
    made = prepare(model, options, inputs).decide()
    masks = UnitMasks(model, made.groups)
    masks.set(made.keep)
    operation, _ = carry_out(masks.bare(), made.groups, masks.keep)
    hooked = sum(bool(module._forward_pre_hooks) for module in model.modules())
    return {
        "units": [sum(g.size for g in made.groups), sum(len(kept) for kept in masks.keep.values())],
        "groups": len(masks.keep), "form": operation.form, "notes": list(masks.notes), "hooked": hooked,
        "deviation": masks.deviation(operation.module),
    }


def rows(only: tuple[str, ...] = (), redo: bool = False) -> dict[str, Row]:
    """All rows by name; those that are missing are run, the quick ones first, and written down one by one."""
    zoo.define_torchvision_operators()
    for library in zoo.LIBRARIES:
        importlib.import_module(library)  # once, before processes are forked
    todo: dict[str, tuple[Callable[..., Row], tuple[Any, ...]]] = {
        f"sweep:{case}:{seed}": (swept, (case, seed)) for case in ("global", "local", "L1") for seed in SEEDS
    }
    took = {name: row.get("seconds", LIMIT) for name, row in coverage.ordered().items()}
    listed = [(library, name) for library, name, _ in zoo.entries()]
    for library, name in sorted(listed, key=lambda entry: took.get(":".join(entry), LIMIT)):
        todo[f"masked:{library}:{name}"] = (masked, (library, name))
    done = last(RESULTS, "row")
    for key in to_run(todo, only, redo, done):
        function, arguments = todo[key]
        done[key] = {"row": key, **_apart(function, arguments)}
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done[key]) + "\n")
        found = done[key].get("error", f"deviation {done[key].get('deviation', 0):.1e}")
        sys.stderr.write(f"{key:48} {done[key]['seconds']:5.0f} s  {str(found)[-160:]}\n")
    return {key: done[key] for key in todo if key in done}


def _apart(function: Callable[..., Row], arguments: tuple[Any, ...]) -> Row:
    """Run a row in a process of its own, for at most `LIMIT` seconds: a model that needs too much fails alone."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, function, arguments))
    start = time.perf_counter()
    process.start()
    sender.close()
    try:
        row = receiver.recv() if receiver.poll(LIMIT) else {"error": f"unfinished after {LIMIT} s"}
    except EOFError:
        row = {"error": "the process died (out of memory?)"}
    process.kill()
    process.join()
    return {**row, "seconds": round(time.perf_counter() - start, 1)}


def _child(connection: Any, function: Callable[..., Row], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        connection.send(function(*arguments))
    except SurgeonError as error:
        connection.send({"error": f"{type(error).__name__}: {error}"})
    except Exception:  # noqa: BLE001  (a crash is a result too)
        connection.send({"error": traceback.format_exc()[-1500:]})


def table(found: dict[str, Row]) -> str:
    """Both tables in Markdown."""
    return "\n".join([*_sweeps(found), "", *_masks(found)]) + "\n"


def _sweeps(found: dict[str, Row]) -> list[str]:
    lines = [
        f"**Sweeps** of the fully connected network: {AMOUNT:.0%} of its connections pruned by magnitude, or trained "
        f"with an L1 penalty and cut at {THRESHOLD:g}. Dead neurons are counted beside by paths through boolean "
        "matrices; outputs are compared in float64 on 5,000 test images.",
        "",
        "| pruned | seed | zeros | widths | dead | removed | still dead | parameters | top-1 | outputs apart |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, row in found.items():
        if not key.startswith("sweep:") or "error" in row:
            continue
        _, case, seed = key.split(":")
        widths = " → ".join("-".join(map(str, each)) for each in row["widths"])
        before, after = row["accuracy"]
        lines.append(
            f"| {case} | {seed} | {row['zeros']:.1%} | {widths} | {row['dead']} | {row['removed']} | {row['left']} "
            f"| {row['params'][0]:,} → {row['params'][1]:,} | {before:.2%} → {after:.2%} | {row['deviation']:.0e} |"
        )
    return lines


def _masks(found: dict[str, Row]) -> list[str]:
    own = {key.partition(":")[2]: row for key, row in found.items() if key.startswith("masked:")}
    good = {name: row for name, row in own.items() if row.get("deviation", 1.0) <= 1e-9 and not row["notes"]}
    worst = max((row["deviation"] for row in good.values()), default=0.0)
    lines = [
        f"**Masked models against surgery**, half of each group's units: {len(good)} of {len(own)} models run of the "
        f"list of {sum(1 for _ in zoo.entries())} are equal to 1e-9 in float64; the largest deviation of these is "
        f"{worst:.0e}.",
        "",
        "| model | groups | units | modules with hooks | form of the smaller one | outputs apart |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in own.items():
        if "error" in row:
            lines.append(f"| {name} | | | | | **{last_line(row['error'])[:120]}** |")
            continue
        note = f" ({'; '.join(row['notes'])})" if row["notes"] else ""
        lines.append(
            f"| {name} | {row['groups']} | {row['units'][0]:,} → {row['units'][1]:,} | {row['hooked']} | {row['form']} "
            f"| {row['deviation']:.0e}{note} |"
        )
    return lines


def main() -> None:
    """The command."""
    options = command(__doc__).parse_args()
    torch.set_num_threads(1)
    found = last(RESULTS, "row") if options.table else rows(tuple(options.only), options.redo)
    publish(table(found), TABLE)


if __name__ == "__main__":
    main()
