"""How much faster one ONNX file is than another on this CPU, and how reliable that is."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from surgeon.device import peak_memory as memory
from surgeon.device.clock import CPU_TIME, WALL_TIME, Clock
from surgeon.device.explain import Explanation, explain
from surgeon.device.layout import Comparison as LayoutComparison
from surgeon.device.layout import compare as compare_layouts
from surgeon.device.layout import layout
from surgeon.device.ort_session import ORT_ERRORS, make_feeds, open_session, quickest_run
from surgeon.device.statistics import LOW, NO_DIFFERENCE, Decision, Ratio, compare_timings
from surgeon.errors import BenchmarkError, InvalidArgument
from surgeon.support.arguments import COMMON, checked, flag, function, integer, mapping, path, text
from surgeon.support.process_wide import uncollected

MIN_RUNS = 30
MAX_RUNS = 2000
MIN_SAMPLE_SECONDS = 5e-4
"""A timing shorter than this repeats the model: reading the clock takes about a microsecond."""

_WARM_UP = 3

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Latency:
    """Milliseconds a run: 10th percentile and median by the clock that is compared; of wall time, the median, the 90th
    and the 99th percentile. `throughput` is how many samples a second that median makes."""

    low: float
    median: float
    wall: float
    p90: float
    p99: float
    throughput: float


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A measured speed-up: `ratio` is the base's time over the slim model's, of 10th percentiles by `clock`; its
    interval holds the ratio of the medians too. `doubt` says which medians, of wall time for instance, differ from it.

    `control` is the same ratio of the base against itself, `noise` how far from 1 that reaches. `runs` is
    the number of timings of each model, `repeats` that of the model's runs inside one timing, `batch` the samples of
    one run. `base` and `slim` are the times in milliseconds, with so many `threads`; `decision` says whether the slim
    model is faster. `layout` counts the convolutions in the NCHWc layout, and `explanation` says which of the slim
    model's widths cost it that layout. `peak_memory` is the MiB that loading and running each file takes at most; None
    where that was not seen.

    >>> import surgeon, tempfile, torch
    >>> net, x = torch.nn.Linear(64, 64), torch.randn(1, 64)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = surgeon.export(net, f"{folder}/net.onnx", example_inputs=x).path
    ...     verdict = benchmark(path, path, threads=1, runs=30)    # a model against itself
    >>> verdict.threads, verdict.runs, verdict.batch
    (1, 30, 1)
    >>> json.loads(verdict.to_json())["clock"]
    'CPU time'
    """

    decision: Decision
    ratio: Ratio
    control: Ratio
    noise: float
    base: Latency
    slim: Latency
    threads: int
    runs: int
    repeats: int
    layout: LayoutComparison
    explanation: Explanation = dataclasses.field(default_factory=Explanation)
    doubt: str = ""
    clock: str = CPU_TIME
    batch: int = 1
    peak_memory: tuple[float | None, float | None] = (None, None)

    def __str__(self) -> str:
        before, after = self.layout.base, self.layout.slim
        reorders = [side.reorders_in + side.reorders_out for side in (before, after)]
        times = [(f"{self.clock}, {LOW}th percentile", "low"), (f"{self.clock}, median", "median")]
        if self.clock != WALL_TIME:
            times.append((f"{WALL_TIME}, median", "wall"))
        times += [(f"{WALL_TIME}, 90th percentile", "p90"), (f"{WALL_TIME}, 99th percentile", "p99")]
        rows = [
            ("", "base", "slim"),
            *((name, *(f"{getattr(side, field):.3f} ms" for side in (self.base, self.slim))) for name, field in times),
            ("samples a second", *(f"{side.throughput:,.1f}" for side in (self.base, self.slim))),
            ("peak memory", *("–" if each is None else f"{each:,.1f} MiB" for each in self.peak_memory)),
            ("blocked convolutions", str(before.blocked), str(after.blocked)),
            ("plain convolutions", str(before.plain + before.fused), str(after.plain + after.fused)),
            ("layout changes", str(reorders[0]), str(reorders[1])),
        ]
        lines = [f"{name:<26}{base:>14}{slim:>14}" for name, base, slim in rows]
        lines += [
            "",
            f"speed-up  {self.ratio}  (95 % interval, medians included)",
            f"verdict   {'' if self.decision == NO_DIFFERENCE else 'slim is '}{self.decision}"
            + (f"; {self.doubt}" if self.doubt else ""),
            f"noise     {self.noise:.1%} (the base against itself: {self.control})",
            f"measured  {self.runs} timings each, {self.repeats} runs a timing, {self.threads} "
            f"thread{'s' if self.threads > 1 else ''}, batch of {self.batch}",
        ]
        if self.explanation:
            lines += ["", str(self.explanation)]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The verdict as JSON, all fields by their names."""
        return json.dumps(dataclasses.asdict(self), indent=2)


@checked({
    **COMMON,
    "base_path": path,
    "slim_path": path,
    "runs": integer(MIN_RUNS, remedy=", which an interval needs"),
    "feeds": mapping("arrays by the names of the model's inputs", text),
    "progress": function("a function of the rounds done and their number", 2),
    "peak_memory": flag,
})
def benchmark(
    base_path: str | os.PathLike[str],
    slim_path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    runs: int | None = None,
    seconds: float = 5.0,
    feeds: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cpu_time: bool = False,
    peak_memory: bool = True,
) -> Verdict:
    """Measure two ONNX files against each other with onnxruntime, in this process.

    Each round times the base, the slim model and a second session of the base in a random order. With one thread, its
    CPU time is compared, which does not count what else runs on this machine. With more, it is what a user waits for,
    wall time, and threads spin while they wait for one another, as onnxruntime has it by default.

    Args:
        base_path: an ONNX file.
        slim_path: another one, with the same inputs.
        threads: the number of onnxruntime's threads, by default as many as it takes by itself: one for each physical
            core.
        runs: the number of rounds, at least 30; by default as many as fit into `seconds`.
        seconds: the duration of all rounds.
        feeds: inputs by name, which also set the batch and sizes; each is an array of the shape that the files take. By
            default random ones are made, of one sample.
        seed: of the random inputs, and of the order of each round.
        progress: called with the number of rounds done and their total.
        cpu_time: with several threads, compare the CPU time of the whole process, without spinning.
        peak_memory: run each file in a process of its own too, to see how much memory it takes; Linux tells.

    Raises:
        InvalidArgument: an argument is out of range, there are fewer CPUs than threads, a file is missing or not ONNX,
            or the two models have different inputs.
        BenchmarkError: a model can't be run.

    >>> import surgeon, tempfile, torch
    >>> large, small = (torch.nn.Sequential(torch.nn.Linear(64, n), torch.nn.Linear(n, 8)) for n in (512, 64))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [f"{folder}/large.onnx", f"{folder}/small.onnx"]
    ...     for net, path in zip((large, small), paths):
    ...         _ = surgeon.export(net, path, example_inputs=torch.randn(1, 64))
    ...     verdict = benchmark(*paths, threads=1, runs=30)
    >>> verdict.clock, verdict.runs
    ('CPU time', 30)
    """
    clock = Clock.of(threads, cpu_time)
    base, slim, control = (
        open_session(path, threads=clock.threads, spin=clock.spin) for path in (base_path, slim_path, base_path)
    )
    _same_inputs(base, slim, Path(base_path), Path(slim_path))
    inputs = make_feeds(base, slim, seed=seed, feeds=feeds)
    on_cpu = dataclasses.replace(clock, wall=False)
    sessions = (base, slim, control)
    try:
        estimates = [quickest_run(partial(session.run, None, inputs), _WARM_UP) for session in sessions]
        repeats = max(1, int(np.ceil(MIN_SAMPLE_SECONDS / max(min(estimates), 1e-9))))
        if runs is None:
            runs = int(np.clip(seconds / (repeats * sum(estimates)), MIN_RUNS, MAX_RUNS))
        cpu, wall = _measure(sessions, inputs, runs, repeats, on_cpu.seconds(), seed, progress)
    except ORT_ERRORS as error:
        raise BenchmarkError(f"{base_path} against {slim_path}: onnxruntime can't run them: {error}") from error
    compared = wall if clock.wall else cpu
    batch = next((len(value) for value in inputs.values() if value.ndim), 1)
    peaks = tuple(
        memory.peak_memory(path, inputs, clock.threads) if peak_memory else None for path in (base_path, slim_path)
    )
    others = {} if clock.wall else {"medians of wall time": float(np.median(wall[0]) / np.median(wall[1]))}
    comparison = compare_timings(*compared, seed=seed, others=others)
    layouts = compare_layouts(layout(base_path, clock.threads), layout(slim_path, clock.threads))
    return Verdict(
        **vars(comparison),
        base=_latency(compared[0], wall[0], batch),
        slim=_latency(compared[1], wall[1], batch),
        threads=clock.threads,
        runs=runs,
        repeats=repeats,
        layout=layouts,
        explanation=explain(layouts, base_path, slim_path, clock.threads),
        clock=clock.name,
        batch=batch,
        peak_memory=(peaks[0], peaks[1]),
    )


def _measure(
    sessions: tuple[ort.InferenceSession, ...],
    feeds: dict[str, np.ndarray],
    runs: int,
    repeats: int,
    clock: Callable[[], float],
    seed: int,
    progress: Progress | None,
) -> tuple[np.ndarray, np.ndarray]:
    """CPU and wall seconds a run, each of shape (sessions, runs)."""
    rng = np.random.default_rng(seed)
    cpu, wall = np.zeros((2, len(sessions), runs))
    with uncollected():
        for index in range(runs):
            for which in rng.permutation(len(sessions)):
                session = sessions[which]
                wall_start, cpu_start = time.perf_counter(), clock()
                for _ in range(repeats):
                    session.run(None, feeds)
                cpu[which, index] = (clock() - cpu_start) / repeats
                wall[which, index] = (time.perf_counter() - wall_start) / repeats
            if progress is not None:
                progress(index + 1, runs)
    if not cpu.all():
        raise BenchmarkError("this system's CPU clock is too coarse: a run took no time by it")
    return cpu, wall


def _latency(compared: np.ndarray, wall: np.ndarray, batch: int) -> Latency:
    low, median = np.percentile(compared, (LOW, 50)) * 1e3
    middle, p90, p99 = np.percentile(wall, (50, 90, 99)) * 1e3
    return Latency(float(low), float(median), float(middle), float(p90), float(p99), float(batch / middle * 1e3))


def _same_inputs(base: ort.InferenceSession, slim: ort.InferenceSession, base_path: Path, slim_path: Path) -> None:
    first, second = (
        {i.name: (i.type, [size if isinstance(size, int) else "any" for size in i.shape]) for i in session.get_inputs()}
        for session in (base, slim)
    )
    if first.keys() != second.keys() or not all(_alike(first[name], second[name]) for name in first):
        raise InvalidArgument(
            f"{base_path} takes {first}, {slim_path} {second}; only models with the same inputs can be compared"
        )


def _alike(one: tuple[str, list[int | str]], other: tuple[str, list[int | str]]) -> bool:
    """Whether two inputs are of a type and can be of a shape."""
    sizes = zip(one[1], other[1])
    return one[0] == other[0] and len(one[1]) == len(other[1]) and all(a == b or "any" in (a, b) for a, b in sizes)
