"""How often equal models are called faster or slower: `python -m benchmarks.latency_aa --trials 200 [--threads 2]`.

With several threads the clock is the one on the wall: let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

import surgeon
from surgeon.device.statistics import NO_DIFFERENCE, NOISY


def nets() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Three small networks, of a tenth of a millisecond to a few, and the shapes of their inputs."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 64, 1)]
    dense = [nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)]
    deep = [layer for _ in range(6) for layer in (nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())]
    return {
        "convolutions": (nn.Sequential(*convolutions), (1, 3, 32, 32)),
        "dense": (nn.Sequential(*dense), (1, 64, 256)),
        "deep": (nn.Sequential(*deep), (1, 64, 28, 28)),
    }


def aa(trials: int = 200, seconds: float = 0.5, threads: int = 1) -> dict[str, Any]:
    """Measure small models against copies of themselves, `trials` times in all, and count the verdicts.

    Each trial is what `surgeon bench` does with `seconds` of time. Returns the counts by verdict, the share called
    faster or slower, and the medians of the ratio and of the noise by network.
    """
    counts: Counter[str] = Counter()
    ratios: dict[str, list[float]] = {}
    noises: dict[str, list[float]] = {}
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        for name, (net, shape) in nets().items():
            for copy in ("base", "copy"):
                surgeon.export(net, Path(folder) / f"{name}-{copy}.onnx", example_inputs=torch.randn(shape))
        for trial in range(trials):
            name = list(nets())[trial % 3]
            files = [Path(folder) / f"{name}-{copy}.onnx" for copy in ("base", "copy")]
            verdict = surgeon.benchmark(*files, threads=threads, seconds=seconds, seed=trial, peak_memory=False)
            counts[verdict.decision] += 1
            ratios.setdefault(name, []).append(verdict.ratio.value)
            noises.setdefault(name, []).append(verdict.noise)
    called = trials - counts[NO_DIFFERENCE]
    loud = sum(noise > NOISY for found in noises.values() for noise in found)
    return {
        "trials": trials,
        "verdicts": dict(counts),
        "called": called / trials,
        "too noisy": loud / trials,
        "networks": {
            name: {
                "ratio": sorted(found)[len(found) // 2],
                "furthest ratio": max(found, key=lambda each: abs(each - 1)),
                "noise": sorted(noises[name])[len(found) // 2],
            }
            for name, found in ratios.items()
        },
        "seconds a trial": (time.time() - start) / trials,
        "threads": threads,
    }


def main() -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(aa(options.trials, options.seconds, options.threads), indent=1))


if __name__ == "__main__":
    main()
