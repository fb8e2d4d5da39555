"""Searches by measurement, not by name, which operators to quantize."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from surgeon.device.benchmark import MIN_SAMPLE_SECONDS
from surgeon.device.clock import Clock
from surgeon.device.ort_session import ORT_ERRORS, make_feeds, open_session
from surgeon.device.statistics import LOW
from surgeon.errors import BenchmarkError, ExportError, InvalidArgument
from surgeon.quantization.accuracy import Accuracy
from surgeon.quantization.calibration import Feeds
from surgeon.quantization.quantizer import Method, Recipe, Source
from surgeon.support.progress import stage

ROUNDS = 24
HOPELESS = 1.3
"""A file this many times slower than the fastest is no longer timed after `_FEW` rounds."""
_FEW = 4
WORTH = 0.02
"""A recipe replaces a simpler one if it is faster by this share; less is noise."""

_REMEDIES: dict[Method, tuple[dict[str, Any], ...]] = {
    "static": (
        {},
        {"seven_bits": True},
        {"ranges": "Percentile"},
        {"ranges": "Percentile", "seven_bits": True},
        {"ranges": "Entropy"},
    ),
    "dynamic": ({}, {"seven_bits": True}),
}
"""What to try in turn until the fastest recipe of a method is accurate enough; none of it changes the speed."""
_JUDGED = 8
"""The number of recipes, fastest first, whose accuracy is measured at most."""

_FAILURES: tuple[type[Exception], ...] = (BenchmarkError, InvalidArgument, *ORT_ERRORS)

Timer = Callable[[Sequence[Path]], list[float]]
"""Measures files side by side, in milliseconds per run."""


@dataclass(frozen=True)
class Trial:
    """A recipe that was tried: its time as a share of float32's, measured beside it, or why it failed."""

    recipe: str
    share: float | None
    failure: str = ""


def search(
    source: Source,
    methods: Iterable[Method],
    feeds: Feeds,
    measure: Callable[[Path], Accuracy],
    *,
    threads: int,
    seconds: float,
    seed: int,
) -> tuple[Recipe | None, Accuracy | None, tuple[Trial, ...]]:
    """The fastest recipe that is accurate enough, or else the most accurate, and all recipes that were timed."""
    tried: list[Trial] = []

    def timer(paths: Sequence[Path]) -> list[float]:
        return times(paths, feeds, threads=threads, seconds=seconds, seed=seed)

    ranked: list[tuple[float, Recipe]] = []  # with the share of float32's time
    for method in methods:
        with stage(f"try {method} int8"):
            ranked += _explore(source, method, timer, tried)
    ranked.sort(key=lambda each: each[0])
    worthwhile = [recipe for share, recipe in ranked if share < 1] or [recipe for _, recipe in ranked[:1]]
    fallback: tuple[Recipe, Accuracy] | None = None
    helped: set[Method] = set()
    with stage("judge int8"):
        for recipe in worthwhile[:_JUDGED]:
            remedies = ({},) if recipe.method in helped else _REMEDIES[recipe.method]
            helped.add(recipe.method)
            for remedy in remedies:
                remedied = replace(recipe, **remedy)
                try:
                    accuracy = measure(source.write(remedied))
                except (ExportError, BenchmarkError) as error:
                    tried.append(Trial(str(remedied), None, str(error)))
                    continue
                if accuracy.enough:
                    return remedied, accuracy, tuple(tried)
                if fallback is None or accuracy.deviation < fallback[1].deviation:
                    fallback = remedied, accuracy
    return (*(fallback or (None, None)), tuple(tried))


def times(paths: Sequence[Path], feeds: Feeds, *, threads: int, seconds: float, seed: int) -> list[float]:
    """Milliseconds per run of each file, as the 10th percentile by the clock for so many threads, interleaved in random
    order.

    A file that onnxruntime can't run takes infinitely long.
    """
    clock = Clock.of(threads)
    seconds_now = clock.seconds()
    quickest = float("inf")
    sessions: list[tuple[ort.InferenceSession, Feeds] | None] = []
    for path in paths:
        try:
            session = open_session(path, threads=threads, spin=clock.spin)
            given = make_feeds(session, seed=seed, feeds=feeds)
            session.run(None, given)
            start = time.perf_counter()
            session.run(None, given)
            quickest = min(quickest, time.perf_counter() - start)
            sessions.append((session, given))
        except _FAILURES:
            sessions.append(None)
    repeats = max(1, int(np.ceil(MIN_SAMPLE_SECONDS / max(quickest, 1e-9))))
    rng = np.random.default_rng(seed)
    taken: list[list[float]] = [[] for _ in paths]
    hopeless: set[int] = set()
    end = time.perf_counter() + seconds
    for index in range(ROUNDS):
        for which in rng.permutation(len(paths)):
            if (opened := sessions[which]) is None or which in hopeless:
                continue
            start = seconds_now()
            for _ in range(repeats):
                opened[0].run(None, opened[1])
            taken[which].append((seconds_now() - start) / repeats)
        if index == _FEW:
            least = min((min(each) for each in taken if each), default=0.0)
            hopeless = {which for which, each in enumerate(taken) if each and min(each) > HOPELESS * least}
        if index > _FEW and time.perf_counter() > end:
            break
    return [float(np.percentile(each, LOW)) * 1e3 if each else float("inf") for each in taken]


def _explore(source: Source, method: Method, timer: Timer, tried: list[Trial]) -> list[tuple[float, Recipe]]:
    """Recipes of a method with their latest times, as shares of float32's.

    First the number of operators with weights that stay in float is varied in powers of two, and the first convolution
    is folded. Then intermediate numbers are tried, and each kind of operator is left in float, and finally all kinds
    together that gained by it.
    """
    plain = Recipe(method)
    if not source.heavy or not source.kinds(plain):
        return []
    shares: dict[Recipe, float] = {}
    best, near = plain, []
    if method == "static":
        depths = [0, *_depths(source.heavy)]
        first = [replace(plain, float_until=depth) for depth in depths]
        first += [replace(plain, folded=True)] if source.folds else []
        if not (found := _time(source, first, timer, tried)):
            return []
        shares |= found
        best = _fastest(found)
        near = [replace(best, float_until=best.float_until + step) for step in _steps(best.float_until, depths)]
    without = [
        recipe
        for base in dict.fromkeys([best, plain])
        for kind in source.kinds(base)
        if source.kinds(recipe := replace(base, float_kinds=(kind,)))
    ]
    if not (found := _time(source, list(dict.fromkeys([plain, best, *near, *without])), timer, tried)):
        return []
    shares |= found
    best = replace(_fastest(found), float_kinds=())
    reached = found.get(best, 1.0)
    kinds = {r.float_kinds[0]: s for r, s in found.items() if r.float_kinds and replace(r, float_kinds=()) == best}
    gaining = sorted((kind for kind, share in kinds.items() if share < (1 - WORTH) * reached), key=kinds.__getitem__)
    combined = [replace(best, float_kinds=tuple(gaining[:count])) for count in range(1, len(gaining) + 1)]
    combined = [recipe for recipe in combined if source.kinds(recipe)]
    if len(combined) > 1:
        found = _time(source, [best, *combined], timer, tried)
        shares |= found
    best = _fastest({recipe: found[recipe] for recipe in (best, *combined) if recipe in found} or shares)
    # The simplest of the equally fast recipes comes first.
    shares[best] = min(shares.values())
    return [(shares.pop(best), best), *((share, recipe) for recipe, share in shares.items())]


def _time(source: Source, recipes: Sequence[Recipe], timer: Timer, tried: list[Trial]) -> dict[Recipe, float]:
    """The times of the recipes that run, as shares of float32's, which is measured beside them."""
    written: list[tuple[Recipe, Path]] = []
    for recipe in recipes:
        try:
            written.append((recipe, source.write(recipe)))
        except ExportError as error:
            tried.append(Trial(str(recipe), None, str(error)))
    reference, *taken = timer([source.path, *(path for _, path in written)])
    shares: dict[Recipe, float] = {}
    for each, (recipe, _) in zip(taken, written, strict=True):
        if np.isfinite(each):
            shares[recipe] = each / reference
            tried.append(Trial(str(recipe), each / reference))
        else:
            tried.append(Trial(str(recipe), None, "onnxruntime can't run it"))
    return shares


def _fastest(shares: Mapping[Recipe, float]) -> Recipe:
    """The first of the recipes that are the fastest, up to noise."""
    least = min(shares.values())
    return next(recipe for recipe, share in shares.items() if share <= least * (1 + WORTH))


def _depths(heavy: int) -> list[int]:
    """1, 2, 4, 8 … below the number of operators with weights.

    >>> _depths(54)
    [1, 2, 4, 8, 16, 32]
    """
    return [2**power for power in range(16) if 2**power < heavy]


def _steps(depth: int, depths: Sequence[int]) -> list[int]:
    """The differences to the midpoints between a depth and its neighbors among those tried."""
    place = depths.index(depth)
    below = depths[place - 1] - depth if place else 0
    above = (depths[place + 1] if place + 1 < len(depths) else depth) - depth
    return [step for step in (below // 2, above // 2) if step]
