"""Iterative pruning with retraining: the residual CNN at a quarter of its MACs, beside Torch-Pruning in the same loop.

    python -m benchmarks.method_iterative               # all rows, resuming where a run was broken off
    python -m benchmarks.method_iterative --only taylor:0 --redo
    python -m benchmarks.method_iterative --table       # print the table of the results so far

Every method starts from the trained network and removes 3/4 of its MACs, at any width, in `CUTS` cuts during the first
part of `EPOCHS` passes over the training images of Fashion-MNIST; it is trained all along, and retrained after the last
cut. The loop, its learning rate, its losses and its order of images are the same for all: cross entropy, and
distillation from the dense network. What the loop is made of was chosen by runs of one epoch of "surgeon taylor" with
seed 0, on the same test images; nothing was chosen for Torch-Pruning. One line of JSON a row, `METHOD:SEED`, in
`benchmarks/results/method_iterative.jsonl`.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models
from benchmarks import peers
from benchmarks.accuracy_rows import macs
from benchmarks.rows import command, last, publish, to_run
from models.data import load_test, load_train
from models.train import BATCH, RECIPES, SMOOTHING, optimizer_for
from surgeon.training import schedules
from surgeon.training.pruner import Pruner

RESULTS = Path(__file__).parent / "results" / "method_iterative.jsonl"
TABLE = Path(__file__).parent / "results" / "method_iterative.md"
TARGET = 0.75
EPOCHS = 2
CUTS = 6
#: The share of the steps after which the last cut is made.
PRUNED_AFTER = 0.1
RATE = 0.05
TEMPERATURE, TEACHER = 4.0, 0.9
SEEDS = (0, 1, 2)
PEER = "Torch-Pruning"
#: Its names of the criteria, and how many images it takes gradients of at each cut.
PEERS = {"taylor": "Taylor", "magnitude": "L2"}
LABELED = 512
METHODS = ("surgeon taylor", f"{PEER} taylor", f"{PEER} magnitude", "surgeon magnitude")

Row = dict[str, Any]
#: Told of the model after a step, and of which one it is; gives the model to go on with.
Cutter = Callable[[nn.Module, int], nn.Module]


@dataclass(frozen=True)
class Lesson:
    """Training images (N, 1, 28, 28), their labels, and the dense network's logits of them, mirrored too (2, N, 10)."""

    images: Tensor
    labels: Tensor
    logits: Tensor

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Epoch after epoch in random order, each image mirrored half of the time."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            for chosen in torch.randperm(len(self.images), generator=generator).split(BATCH):
                if len(chosen) == BATCH:
                    mirrored = torch.randint(2, (BATCH,), generator=generator)
                    images = self.images[chosen]
                    images = torch.where(mirrored.bool().view(-1, 1, 1, 1), images.flip(-1), images)
                    yield images, self.labels[chosen], self.logits[mirrored, chosen]


@cache
def lesson(limit: int | None = None) -> Lesson:
    """What all runs learn from."""
    teacher = models.load("residual").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = load_train(limit=limit)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        parts = [[teacher(part).float() for part in each.split(500)] for each in (images, images.flip(-1))]
    return Lesson(images, labels, torch.stack([torch.cat(part) for part in parts]).clone())


def row(method: str, seed: int, epochs: float = EPOCHS, limit: int | None = None) -> Row:
    """The accuracy of one run, and what is left of the MACs."""
    dense, learnt, (images, labels) = models.load("residual"), lesson(limit), load_test()
    total = int(epochs * (len(learnt.images) // BATCH))
    start = time.perf_counter()
    name, importance = method.split()
    model = models.load("residual")
    cutter = _peer(model, importance, total, learnt, seed) if name == PEER else _surgeon(model, importance, total, seed)
    slim = fit(model, learnt, total, seed, cutter)
    return {
        "dense": models.accuracy(dense, images, labels),
        "accuracy": models.accuracy(slim, images, labels),
        "macs": macs(slim, images[:2]) / macs(dense, images[:2]),
        "epochs": total * BATCH / len(learnt.images),
        "seconds": time.perf_counter() - start,
    }


def fit(model: nn.Module, learnt: Lesson, total: int, seed: int, cutter: Cutter) -> nn.Module:
    """Train for `total` steps, and ask `cutter` after each; the optimizer starts anew with a new model."""
    model = model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = optimizer_for(model, RECIPES["residual"])
    for step, (inputs, targets, wanted) in zip(range(1, total + 1), learnt.batches(seed), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(10 * step / total, (1 + math.cos(math.pi * (step - 1) / total)) / 2)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(inputs.contiguous(memory_format=torch.channels_last)).float()
        optimizer.zero_grad()
        _loss(logits, targets, wanted).backward()
        optimizer.step()
        found = cutter(model, step)
        if found is not model:
            model = found.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            optimizer = optimizer_for(model, RECIPES["residual"])
    return model.eval()


def _loss(logits: Tensor, targets: Tensor, wanted: Tensor) -> Tensor:
    """As `surgeon.training.distillation`, with logits of the dense network that are there already."""
    hard = F.cross_entropy(logits, targets, label_smoothing=SMOOTHING)
    soft = F.kl_div(
        F.log_softmax(logits / TEMPERATURE, 1), F.softmax(wanted / TEMPERATURE, 1), reduction="batchmean"
    )
    return (1 - TEACHER) * hard + TEACHER * TEMPERATURE**2 * soft


def _cuts(total: int) -> list[int]:
    """The steps after which something goes."""
    end = int(PRUNED_AFTER * total)
    return [max(1, end * (index + 1) // CUTS) for index in range(CUTS)]


def _surgeon(model: nn.Module, importance: str, total: int, seed: int) -> Cutter:
    cuts = _cuts(total)
    schedule = schedules.steps(cuts[0], cuts[-1], CUTS)
    example = torch.zeros(2, 1, 28, 28)
    pruner = Pruner(
        model, TARGET, schedule=schedule, importance=importance, example_inputs=example, align=1, seed=seed
    )

    def cut(now: nn.Module, step: int) -> nn.Module:
        if now is not model:  # committed
            return now
        if decision := pruner.step():
            sys.stderr.write(f"  {decision}\n")
        return pruner.commit() if pruner.done else now

    return cut


def _peer(model: nn.Module, importance: str, total: int, learnt: Lesson, seed: int) -> Cutter:
    """Its pruner cuts the weights themselves; which ratio of channels leads to the MACs is searched for at each cut."""
    cuts, example = _cuts(total), torch.zeros(2, 1, 28, 28)
    whole = macs(model, example)
    generator = torch.Generator().manual_seed(seed)

    def cut(now: nn.Module, step: int) -> nn.Module:
        if step not in cuts:
            return now
        chosen = torch.randperm(len(learnt.images), generator=generator)[:LABELED]
        recipe = peers.Recipe(PEERS[importance], labeled=(learnt.images[chosen], learnt.labels[chosen]))
        share = TARGET * (cuts.index(step) + 1) / CUTS
        found = peers.land(
            lambda ratio: peers.cut(now, (example,), ratio, recipe),
            lambda slim: macs(slim, example), (1 - share) * whole,
        )
        sys.stderr.write(f"  step {step}: {found.macs / whole:.1%} of the MACs left\n")
        return found.model

    return cut


def rows(only: tuple[str, ...] = (), redo: bool = False) -> dict[str, Row]:
    """All rows by `METHOD:SEED`; those that are missing are run, and written down one by one."""
    done = last(RESULTS, "row")
    for key in to_run([f"{method}:{seed}" for seed in SEEDS for method in METHODS], only, redo, done):
        method, _, seed = key.partition(":")
        done[key] = {"row": key, **row(method, int(seed))}
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done[key]) + "\n")
        sys.stderr.write(f"{key:28} {done[key]['accuracy']:.2%}, {done[key]['seconds']:.0f} s\n")
    return done


def table(found: dict[str, Row]) -> str:
    """Means over the seeds, and how far the seeds lie apart."""
    lines = [
        f"The residual CNN on the 10,000 test images of Fashion-MNIST after {EPOCHS} epochs in all, {CUTS} cuts in the "
        f"first {PRUNED_AFTER:.0%} of them: mean over seeds ± half the range. The same loop for all; its settings were "
        "chosen by short runs of surgeon taylor, seed 0, on the same test images.",
        "",
        "| method | MACs left | top-1 | below dense | seeds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method in METHODS:
        seeds = [found[key] for seed in SEEDS if (key := f"{method}:{seed}") in found]
        if not seeds:
            continue
        values = [each["accuracy"] for each in seeds]
        mean, spread = statistics.mean(values), (max(values) - min(values)) / 2
        left = statistics.mean(each["macs"] for each in seeds)
        below = 100 * (seeds[0]["dense"] - mean)
        lines.append(f"| {method} | {left:.1%} | {mean:.2%} ± {100 * spread:.2f} | {below:.2f} | {len(seeds)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    options = command(__doc__).parse_args()
    torch.set_num_threads(1)
    found = last(RESULTS, "row") if options.table else rows(tuple(options.only), options.redo)
    publish(table(found), TABLE)


if __name__ == "__main__":
    main()
