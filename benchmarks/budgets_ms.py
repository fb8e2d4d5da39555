"""Asks twelve networks for a share of their milliseconds each, and tells what was measured then, or why it was refused.

    python -m benchmarks.budgets_ms [NETWORK …] [--ratios R …] [--threads N]

Rows go to `benchmarks/results/budgets_ms.jsonl` as they come, and those that are there are not measured again; the
table of all rows goes to `benchmarks/results/budgets_ms.md`. With several threads, milliseconds are those on the wall,
and the files are `budgets_ms_2threads.jsonl` and `.md`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import models
import surgeon
from benchmarks import rows
from surgeon.device.profile import Profile
from surgeon.errors import SurgeonError
from testbed import zoo
from testbed.latency_tools import Dense, Transformer

RESULTS = Path(__file__).parent / "results" / "budgets_ms.jsonl"
RATIOS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.9, 0.99, 0.9999)
Made = tuple[nn.Module, Tensor]


def mlp(*widths: int) -> Made:
    """Linear layers with ReLUs in between, and one row."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), torch.randn(1, widths[0])


class Recurrent(nn.Module):
    """An LSTM between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.lstm, self.after = nn.Linear(32, 128), nn.LSTM(128, 128, batch_first=True), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.lstm(self.before(x).relu())[0].mean(1))


def tiny() -> Made:
    """Two convolutions on a thumbnail."""
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 10),
    )
    return net, torch.randn(1, 3, 12, 12)


def pretrained(name: str, size: int) -> Made:
    """A torchvision model with random weights, and an image of this size."""
    model, _ = zoo.load("torchvision", name)
    return model, torch.randn(1, 3, size, size)


NETWORKS: dict[str, Callable[[], Made]] = {
    "MLP of 4 layers": lambda: mlp(256, 512, 512, 512, 10),
    "narrow MLP": lambda: mlp(64, 128, 128, 128, 10),
    "wide MLP": lambda: mlp(784, 2048, 2048, 2048, 10),
    "tiny CNN": tiny,
    "dense CNN": lambda: (Dense(), torch.randn(1, 3, 32, 32)),
    "residual": lambda: (models.build("residual"), torch.randn(1, 1, 28, 28)),
    "depthwise": lambda: (models.build("depthwise"), torch.randn(1, 1, 28, 28)),
    "transformer": lambda: (models.build("transformer"), torch.randn(1, 1, 28, 28)),
    "LSTM": lambda: (Recurrent(), torch.randn(1, 16, 32)),
    "wide transformer": lambda: (Transformer(256), torch.randn(1, 3, 64, 64)),
    "mobilenet_v2": lambda: pretrained("mobilenet_v2", 224),
    "resnet18": lambda: pretrained("resnet18", 96),
}


def row(name: str, model: nn.Module, inputs: Tensor, profile: Profile, ratio: float) -> dict[str, Any]:
    """What became of one budget; the interval and the noise are shares of what was asked for."""
    start = time.perf_counter()
    found: dict[str, Any] = {"key": f"{name} {ratio}", "network": name, "ratio": ratio, "load": os.getloadavg()[0]}
    try:
        plan_of = surgeon.shrink(
            model, ratio, example_inputs=inputs, budget="latency", device=profile, compensate=False, return_report=True
        )
    except SurgeonError as error:
        found |= {"outcome": "refused", "why": str(error)}
    else:
        timing = plan_of[1].latency
        low, high = timing.interval
        found |= {
            "outcome": timing.landed.value, "base": timing.base, "requested": timing.requested,
            "possible": timing.possible, "measured": timing.measured, "landed": timing.measured / timing.requested,
            "low": low / timing.requested, "high": high / timing.requested, "noise": timing.verdict.noise,
            "predicted": timing.predicted, "corrections": timing.corrections, "notes": list(timing.notes),
        }
    return found | {"seconds": time.perf_counter() - start}


def table(found: Sequence[dict[str, Any]], threads: int = 1) -> str:
    """All rows as Markdown."""
    outcomes = ("met", "may be", "too noisy", "not", "refused")
    counts = {each: sum(r["outcome"] == each for r in found) for each in outcomes}
    clock = f"{threads} threads, wall time" if threads > 1 else "one thread's CPU time"
    lines = [
        f"**Budgets in milliseconds**: `shrink(model, ratio, budget=\"latency\")`, {clock}. Landed: "
        "measured over what was asked for, with its 95 % interval, medians included. Met: 98 to 100 %. May be: the "
        "interval reaches that. Too noisy: the base differs from itself by more than 5 %. Not: one step more of a "
        "group's widths takes too long. Noise: the base against itself. Load: processes that wanted one of the 2 CPUs "
        "meanwhile.",
        "",
        f"{len(found)} budgets: " + ", ".join(f"{each} {count}" for each, count in counts.items()) + ".",
        "",
        "| network | removed | asked, ms | possible | landed | interval | outcome | noise | chosen anew | load |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in found:
        if each["outcome"] == "refused":
            why = each["why"].splitlines()
            nearest = next((line.strip() for line in why if "nearest" in line), "").removeprefix("the nearest that ")
            lines.append(
                f"| {each['network']} | {each['ratio']:g} | | | | | refused: {why[0].split(':')[0]}; {nearest} | | | "
                f"{each['load']:.0f} |"
            )
            continue
        lines.append(
            f"| {each['network']} | {each['ratio']:g} | {each['requested']:.4g} | {each['possible']:.4g} | "
            f"**{each['landed']:.3f}** | {each['low']:.3f}–{each['high']:.3f} | {each['outcome']} | "
            f"{each['noise']:.1%} | {each['corrections']} | {each['load']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    several = f"_{given.threads}threads" if given.threads > 1 else ""
    results = RESULTS.with_stem(f"{RESULTS.stem}{several}")
    torch.set_num_threads(1)
    for name in given.networks or NETWORKS:
        known = rows.last(results, "key")
        missing = [ratio for ratio in given.ratios if f"{name} {ratio}" not in known]
        if not missing:
            continue
        torch.manual_seed(0)
        model, inputs = NETWORKS[name]()
        model.eval()
        profile = surgeon.profile(model, inputs, threads=given.threads)
        for ratio in missing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = row(name, model, inputs, profile, ratio)
            print(found, flush=True)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
    order = [*NETWORKS]
    done = sorted(rows.last(results, "key").values(), key=lambda each: (order.index(each["network"]), each["ratio"]))
    text = table(done, given.threads)
    results.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
