"""A model under the clock: its groups, its profile, random plans of it, and the ONNX files made of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

import surgeon
from benchmarks.coverage import redraw
from surgeon.allocation.latency_budget import allocate_latency
from surgeon.cost.cost import Cost
from surgeon.deploy.profiling import profile_workloads
from surgeon.deploy.workloads import Workload
from surgeon.device.clock import Clock
from surgeon.device.profile import Profile
from surgeon.errors import Infeasible
from surgeon.groups.analyze import analyze
from surgeon.latency.model import Latency
from surgeon.scoring import score
from surgeon.surgery import operate
from testbed import zoo

TIMM = ("vit_small_patch16_224",)
MODES = ("multiples of 16", "any", "odd")
LEAST = 0.3
"""Random plans keep a share of each group between this and 1."""
STEPS = 14
CLOSE = 0.003

Inputs = tuple[Tensor, ...]
Kept = dict[int, tuple[int, ...]]
Widths = Mapping[int, int]


def load(name: str) -> tuple[nn.Module, Inputs]:
    """A torchvision or timm model with random weights, none of them constant, and one image."""
    model, inputs = zoo.load("timm" if name in TIMM else "torchvision", name)
    redraw(model)
    assert isinstance(inputs, tuple)
    return model, tuple(value[:1] for value in inputs)


class Subject:
    """One model, traced once; its files are in the folder `files`, and are used again where they fit.

    What is measured of it is with `threads` threads: one's CPU time, or with several the time on the wall.
    """

    def __init__(self, name: str, files: Path, threads: int = 1) -> None:
        self.name, self.files, self.threads = name, files, threads
        self.model, self.inputs = load(name)
        self.groups = analyze(self.model, self.inputs)
        self.cost = Cost(self.groups)
        self.mark = Workload(self.groups).mark(self.model)
        self.macs = self.cost.macs({})

    @cached_property
    def base(self) -> Path:
        """The whole model as ONNX."""
        path = self.files / f"{self.name}.onnx"
        if not path.exists():
            self.export_base()
        return path

    def export_base(self) -> float:
        """Export the whole model anew; the seconds that it took."""
        start = time.perf_counter()
        surgeon.export(self.model, self.files / f"{self.name}.onnx", example_inputs=self.inputs)
        return time.perf_counter() - start

    @cached_property
    def profile(self) -> Profile:
        """The profile in the folder; where there is none, a fresh one."""
        path = self._profile_path
        if path.exists():
            found = Profile.load(path)
            whole = "ms" in found.models.get(self.mark, {})
            if whole and found.timed == Clock.of(self.threads) and not found.warnings_here():
                return found
        self.take_profile()
        return Profile.load(path)

    def take_profile(self) -> float:
        """Take a fresh profile into the folder; the seconds that it took, without the export of the model."""
        base = self.base
        start = time.perf_counter()
        taken = profile_workloads(
            self.model, [Workload(self.groups)], threads=self.threads, bases=lambda run: base
        )
        seconds = time.perf_counter() - start
        taken.save(self._profile_path)
        vars(self).pop("profile", None)  # the one at hand is older
        return seconds

    @property
    def _profile_path(self) -> Path:
        several = f".{self.threads}threads" if self.threads > 1 else ""
        return self.files / f"{self.name}{several}.profile.json"

    def latency(self, profile: Profile | None = None) -> Latency:
        """The milliseconds of any widths, by the profile in the folder or another one."""
        return Latency.of(self.groups, profile or self.profile, self.cost, self.mark)

    @cached_property
    def scores(self) -> dict[int, np.ndarray]:
        """What the units are worth, as `shrink` has it by default."""
        return dict(score(self.groups, "magnitude", 0))

    def draw(self, index: int) -> tuple[str, dict[int, int]]:
        """A random plan's kind, one of `MODES` in turn, and the width of every group."""
        rng = np.random.default_rng(index)
        mode = MODES[index % len(MODES)]
        widths = {}
        for leaf, size in self.cost.sizes.items():
            width = round(size * rng.uniform(LEAST, 1))
            if mode == MODES[0] and size >= 32:
                width = max(16, width // 16 * 16)
            if mode == MODES[2] and size > 8:
                width = width // 2 * 2 - 1
            widths[leaf] = min(max(width, 1), size)
        return mode, widths

    def first(self, widths: Widths) -> Kept:
        """The first units of each group that loses some: which ones is nothing to the clock."""
        return {leaf: tuple(range(widths[leaf])) for leaf, size in self.cost.sizes.items() if widths[leaf] < size}

    def file(self, name: str, widths: Widths) -> Path:
        """The model at these widths as ONNX, with the widths beside it."""
        path, note = self.files / f"{self.name}_{name}.onnx", self.files / f"{self.name}_{name}.json"
        order = [widths.get(leaf, size) for leaf, size in self.cost.sizes.items()]
        if path.exists() and note.exists() and json.loads(note.read_text(encoding="utf-8"))["widths"] == order:
            return path
        slim = operate(self.model, self.groups, self.first(widths)).module
        surgeon.export(slim, path, example_inputs=self.inputs)
        note.write_text(json.dumps({"widths": order}), encoding="utf-8")
        return path

    def at_ms(self, ms: float, latency: Latency) -> dict[int, int]:
        """The widths that a budget of `ms` leads to, by the profile alone."""
        return allocate_latency(self.groups, self.scores, self.cost, latency, ms=ms)[0]

    def at_macs(self, target: float) -> dict[int, int]:
        """The widths that some latency budget leads to, of all budgets tried those nearest to `target` MACs.

        The budget is bisected; nothing is cut or measured in between.
        """
        latency = self.latency()
        whole = latency.ms({})
        low, high = 0.0, whole
        ms = whole * target / self.macs
        best: dict[int, int] | None = None
        for _ in range(STEPS):
            try:
                widths = self.at_ms(ms, latency)
            except Infeasible:
                low = ms
            else:
                macs = self.cost.macs(widths)
                if best is None or abs(macs - target) < abs(self.cost.macs(best) - target):
                    best = widths
                if abs(macs / target - 1) <= CLOSE:
                    break
                low, high = (low, ms) if macs > target else (ms, high)
            ms = (low + high) / 2
        if best is None:
            raise Infeasible(f"{self.name}: no latency budget leads to {target:.3g} MACs")
        return best

    def uniform(self, target: float) -> dict[int, int]:
        """The same share of every group, at multiples of 16 where a group is so wide, at about `target` MACs."""
        low, high = 0.0, 1.0
        widths: dict[int, int] = {}
        for _ in range(STEPS):
            share = (low + high) / 2
            widths = {
                leaf: max(16, round(size * share / 16) * 16) if size >= 32 else size
                for leaf, size in self.cost.sizes.items()
            }
            low, high = (low, share) if self.cost.macs(widths) > target else (share, high)
        return widths

    def measured(self, path: Path, seconds: float) -> dict[str, Any]:
        """The whole model's time over a file's, as `measured`."""
        return measured(self.base, path, seconds, self.threads)


def measured(base: Path, slim: Path, seconds: float, threads: int = 1) -> dict[str, Any]:
    """The base's time over the other's, in one interleaved run, by the clock for so many threads; 95 % interval."""
    verdict = surgeon.benchmark(base, slim, threads=threads, seconds=seconds, peak_memory=False)
    return {
        "ratio": verdict.ratio.value, "low": verdict.ratio.low, "high": verdict.ratio.high,
        "decision": verdict.decision, "noise": verdict.noise, "runs": verdict.runs,
        "base_ms": verdict.base.low, "slim_ms": verdict.slim.low,
        "base_blocked": verdict.layout.base.blocked, "slim_blocked": verdict.layout.slim.blocked,
        "fallen": len(verdict.layout.fallen),
    }
