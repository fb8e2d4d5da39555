"""What is measured in each row of `benchmarks.latency`, all but the kit."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import surgeon
from benchmarks import peers
from benchmarks.latency_subject import MODES, Subject, load, measured
from surgeon.cost.cost import Cost
from surgeon.deploy.workloads import Workload
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import couple
from surgeon.pipeline.timing import Timing
from surgeon.plans.plan import Plan

PLANS = 21
ODD = range(PLANS)[len(MODES) - 1 :: len(MODES)]
"""The random plans with odd widths."""
HALF = 0.5
"""The share of the MACs at which the peer is met."""
REDUCTION = 3.6
HALF_WIDTH = 3.9
"""How many times fewer MACs half of every width comes to, about: what int8 is put on top of."""
ROUNDED = {"torch-pruning": None, "torch-pruning, round_to=16": 16}
CALIBRATION = 64
RUNS = ((1, 3, 224, 224), (8, 3, 224, 224), (1, 3, 320, 320))
"""Shapes of runs that plans are made for, each in turn."""
SAME_PHASE = 0.08
"""How far the base's time may be from that of its profile."""
RETRIES = 3

Row = dict[str, Any]


def prepare(kind: str, subject: Subject, plans: int = PLANS) -> None:
    """Make those files of a row that depend on no measurement: they may be made while the machine is busy."""
    assert subject.base.exists()
    match kind:
        case "predict":
            for index in range(plans):
                subject.file(str(index), subject.draw(index)[1])
        case "equal_macs":
            for system in ROUNDED:
                _peer(subject, system)
        case "align":
            for index in ODD[:plans]:
                subject.file(str(index), subject.draw(index)[1])


def predict(subject: Subject, seconds: float, plans: int = PLANS) -> Row:
    """Predicted against measured latency of random plans, relative to the base; with a fresh profile."""
    export_seconds, profile_seconds = subject.export_base(), subject.take_profile()
    latency, macs = subject.latency(), subject.cost.macs
    whole = latency.ms({})
    rows = []
    for index in range(plans):
        mode, widths = subject.draw(index)
        found, again = _in_phase(subject, subject.file(str(index), widths), seconds)
        rows.append({
            "plan": index, "mode": mode, "predicted": latency.ms(widths) / whole, "measured": 1 / found["ratio"],
            "macs": macs(widths) / subject.macs, "noise": found["noise"], "base_ms": found["base_ms"], "again": again,
        })
    predicted, actual, by_macs = (np.array([row[key] for row in rows]) for key in ("predicted", "measured", "macs"))
    errors = predicted / actual - 1
    profile = subject.profile
    return {
        "mean": float(np.abs(errors).mean()), "worst": float(np.abs(errors).max()), "bias": float(errors.mean()),
        "rank": _rank_correlation(predicted, actual),
        "mean_by_mode": {
            mode: float(np.abs(errors[start :: len(MODES)]).mean()) for start, mode in enumerate(MODES[: len(rows)])
        },
        "macs_mean": float(np.abs(by_macs / actual - 1).mean()), "macs_rank": _rank_correlation(by_macs, actual),
        "profile_seconds": profile_seconds, "export_seconds": export_seconds, "points": len(profile.samples),
        "profile_ms": profile.models[subject.mark]["ms"], "base_ms": float(np.median([r["base_ms"] for r in rows])),
        "plans": rows,
    }


def _in_phase(subject: Subject, path: Path, seconds: float) -> tuple[Row, int]:
    """The measurement of a file, and how often it was taken again.

    It is, where the base takes another time than when it was profiled: a machine that others share has minutes in which
    all is slower, and not all of it by the same factor.
    """
    profiled = subject.profile.models[subject.mark]["ms"]
    tried: list[Row] = []
    while len(tried) <= RETRIES:
        tried.append(subject.measured(path, seconds))
        if abs(tried[-1]["base_ms"] / profiled - 1) <= SAME_PHASE:
            break
    return min(tried, key=lambda row: abs(row["base_ms"] / profiled - 1)), len(tried) - 1


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's, for values of which no two are equal."""
    first, second = (values.argsort().argsort() for values in (one, other))
    return float(np.corrcoef(first, second)[0, 1])


def land(subject: Subject, left: float, seconds: float) -> Row:
    """What `shrink` makes of a budget of the share `left` of the latency, on a profile of its own; and measured again.

    `within` is what shrink itself measured over what was asked for, `ratio` what a longer run beside the base says.
    """
    start = time.perf_counter()
    slim, report = surgeon.shrink(
        subject.model, 1 - left, example_inputs=subject.inputs, budget="latency", threads=subject.threads,
        compensate=False, return_report=True,
    )
    taken = time.perf_counter() - start
    timing = report.latency
    assert isinstance(timing, Timing)
    path = subject.files / f"{subject.name}_land_{left:g}.onnx"
    surgeon.export(slim, path, example_inputs=subject.inputs)
    found = subject.measured(path, seconds)
    return {
        "outcome": timing.landed.value,
        "within": None if timing.measured is None else timing.measured / timing.requested,
        "ratio": 1 / found["ratio"] / left, "low": 1 / found["high"] / left, "high": 1 / found["low"] / left,
        "predicted": timing.predicted / timing.base, "requested": left, "corrections": timing.corrections,
        "gap": timing.bound, "removed": report.macs.removed, "params_removed": report.params.removed,
        "base_ms": found["base_ms"], "slim_ms": found["slim_ms"], "noise": found["noise"], "fallen": found["fallen"],
        "seconds": taken, "stages": dict(report.seconds), "notes": list(timing.notes),
    }


def shapes(subject: Subject, seconds: float) -> Row:
    """Plans for half the latency of one image, of a batch of 8, and of a larger image, each measured on all of them.

    `left` is the share of the whole model's time by plan and by run; a plan is best where that is what was asked for.
    """
    runs = {"×".join(map(str, shape)): shape for shape in RUNS}
    profile = surgeon.profile(subject.model, subject.inputs, threads=subject.threads, shapes=[*RUNS])
    (given,) = Workload(subject.groups).shapes(subject.model)
    left: dict[str, dict[str, float]] = {}
    facts: dict[str, Any] = {}
    for name, shape in runs.items():
        slim, report = surgeon.shrink(
            subject.model, HALF, example_inputs=subject.inputs, budget="latency", device=profile, shapes=shape,
            compensate=False, return_report=True,
        )
        path = subject.files / f"{subject.name}_for_{name}.onnx"
        surgeon.export(slim, path, example_inputs=subject.inputs)
        left[name], noises = {}, []
        for other, sizes in runs.items():
            feeds = {given: np.random.default_rng(0).standard_normal(sizes).astype(np.float32)}
            verdict = surgeon.benchmark(
                subject.base, path, threads=subject.threads, seconds=seconds, feeds=feeds, peak_memory=False
            )
            left[name][other] = 1 / verdict.ratio.value
            noises.append(verdict.noise)
        facts[name] = {
            "macs": report.macs.removed, "noise": max(noises), "outcome": report.latency.landed.value,
            "predicted": report.latency.predicted / report.latency.base,
        }
    off = {run: abs(left[run][run] / HALF - 1) for run in runs}
    return {"ratio": max(off.values()), "asked": HALF, "left": left, "plans": facts}


def equal_macs(subject: Subject, seconds: float) -> Row:
    """The peer at half the MACs, without and with rounding, over ours at the MACs where it landed."""
    row: Row = {}
    for system in ROUNDED:
        path, facts = _peer(subject, system)
        widths = subject.at_macs(facts["macs"])
        ours = subject.file(f"macs_{facts['macs']:.0f}", widths)
        row[system] = {
            **measured(path, ours, seconds, subject.threads), "macs": [facts["macs"], subject.cost.macs(widths)],
            "channels": facts["channels"], "left": facts["macs"] / subject.macs,
        }
    default = row["torch-pruning"]
    return {"ratio": default["ratio"], "peers": row}


def _peer(subject: Subject, system: str) -> tuple[Path, Row]:
    """The peer's file, and the MACs that it has by our count."""
    path = subject.files / f"{subject.name}_{system}.onnx"
    facts = path.with_suffix(".json")
    if not (path.exists() and facts.exists()):
        model, inputs = load(subject.name)

        def macs(slim: nn.Module) -> float:
            return Cost(couple(trace(slim, inputs))).macs({})

        recipe = peers.Recipe(round_to=ROUNDED[system])
        found = peers.land(lambda ratio: peers.cut(model, inputs, ratio, recipe), macs, subject.macs * HALF)
        surgeon.export(found.model, path, example_inputs=inputs)
        facts.write_text(json.dumps({"macs": found.macs, "channels": found.ratio}), encoding="utf-8")
    return path, json.loads(facts.read_text(encoding="utf-8"))


def reduced(subject: Subject, times: float) -> tuple[Path, float]:
    """The model with about so many times fewer MACs, by a latency budget, and the MACs that it has."""
    widths = subject.at_macs(subject.macs / times)
    return subject.file(f"reduced_{times:g}", widths), subject.cost.macs(widths)


def efficiency(subject: Subject, seconds: float) -> Row:
    """How much of the reduction in MACs arrives on the clock; and of that by the same share of every group."""
    path, macs = reduced(subject, REDUCTION)
    found = subject.measured(path, seconds)
    reduction = subject.macs / macs
    widths = subject.uniform(subject.macs / REDUCTION)
    speedup = subject.measured(subject.file("uniform", widths), seconds)["ratio"]
    even = {"speedup": speedup, "reduction": subject.macs / subject.cost.macs(widths)}
    return {
        **found, "speedup": found["ratio"], "reduction": reduction, "ratio": found["ratio"] / reduction, "uniform": even
    }


def align(subject: Subject, seconds: float, plans: int = 3) -> Row:
    """Odd random plans after `Plan.align`, over themselves."""
    rows = []
    for index in ODD[:plans]:
        _, widths = subject.draw(index)
        start = time.perf_counter()
        plan = Plan.of(subject.groups, subject.first(widths), model=subject.model)
        aligned = plan.align(subject.profile, subject.model, subject.inputs).keep(subject.groups)
        taken = time.perf_counter() - start
        wider = {leaf: len(aligned.get(leaf, range(size))) for leaf, size in subject.cost.sizes.items()}
        before, after = subject.file(str(index), widths), subject.file(f"{index}_aligned", wider)
        found = measured(before, after, seconds, subject.threads)
        rows.append({
            "plan": index, "left": 1 / found["ratio"], "noise": found["noise"], "seconds": taken,
            "fewer": sum(wider[leaf] < width for leaf, width in widths.items()),
            "units": sum(wider.values()) / sum(widths.values()) - 1,
            "macs": subject.cost.macs(wider) / subject.cost.macs(widths) - 1,
            "odd_ms": found["base_ms"], "aligned_ms": found["slim_ms"],
        })
    ratios = [row["left"] for row in rows]
    return {
        "ratio": float(np.mean(ratios)), "worst": max(ratios), "best": min(ratios),
        "fewer": sum(row["fewer"] for row in rows), "macs": float(np.mean([row["macs"] for row in rows])),
        "plans": rows,
    }


def int8(subject: Subject, seconds: float) -> Row:
    """Pruned and quantized: the speed-up over the whole model in float32, of pruning alone and of both."""
    path, macs = reduced(subject, HALF_WIDTH)
    images = torch.randn(CALIBRATION, *subject.inputs[0].shape[1:], generator=torch.Generator().manual_seed(0))
    target = subject.files / f"{subject.name}_int8.onnx"
    start = time.perf_counter()
    # By deviation: what a network with random weights sees on top says nothing.
    made = surgeon.quantize(
        path, images.split(16), path=target, judge="deviation", threads=subject.threads, seconds=seconds
    )
    taken = time.perf_counter() - start
    both, pruned = subject.measured(target, seconds), subject.measured(path, seconds)
    step = made.verdict
    return {
        "ratio": both["ratio"], "low": both["low"], "high": both["high"], "pruned": pruned["ratio"],
        "reduction": subject.macs / macs, "accepted": made.accepted, "recipe": made.recipe, "reason": made.reason,
        "step": None if step is None else step.ratio.value, "step_decision": None if step is None else step.decision,
        "deviation": None if made.accuracy is None else made.accuracy.deviation,
        "against_float": measured(path, target, seconds, subject.threads)["decision"] if made.accepted else "kept",
        "base_ms": both["base_ms"], "slim_ms": both["slim_ms"], "mb": [made.float_bytes / 1e6, made.bytes / 1e6],
        "seconds": taken,
    }
