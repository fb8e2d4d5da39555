"""What single operators cost at given widths: tiny graphs, timed in turn."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime as ort

from surgeon.device.clock import ONE_THREAD, Clock
from surgeon.device.onnx_editing import entry, repeated, strip
from surgeon.device.onnx_protobuf import elementwise, parse
from surgeon.device.ort_session import ORT_ERRORS, make_feeds, open_optimized, open_session, quickest_run
from surgeon.device.statistics import LOW
from surgeon.errors import BenchmarkError, InvalidArgument, SurgeonError
from surgeon.support.process_wide import uncollected

ROUNDS = 12
"""The least number of timings of a point; if they scatter, up to twice as many are taken."""

MIN_SECONDS = 5e-4
"""A timing shorter than this repeats the graph."""

COLD_FLUSH = 16 << 20
"""Bytes to read before a run that should find cold caches: a model is not run without pauses, and where two are
compared in turn, each finds the other's data there."""

ROW_SECONDS = 2e-3
"""With several threads, an operator is repeated in a row that takes about so long: in a model, only the first one wakes
the threads, which then spin until there is more to do."""

AWAKE = (1, 1 << 17)
"""The shape of a tensor on which an elementwise operator is large enough for several threads."""

_ROUNDS_A_PASS = 3
_LONGEST_ROW = 64
_SCATTER = 0.1  # from this spread on, a point gets further passes
_WARM_UP = 2
_KEPT_BYTES = 256 << 20  # graphs up to this total size stay open from pass to pass

Key = tuple[str, tuple[int, ...]]
Layout = tuple[bool, bool]  # runs in the NCHWc layout, and returns its result in it


@dataclasses.dataclass(frozen=True)
class Point:
    """An operator at given widths, as a tiny ONNX graph.

    `inputs` gives the shapes of the graph's inputs where it leaves them open. `copies` is the number of independent
    copies of the operator in the graph: one alone may be too short to be timed. Before each timed run, `flush` bytes
    of other memory are read, so that the operator finds cold caches. Operators that lead to a value named `feed_…`
    aren't timed; see `surgeon.device.onnx_editing.strip`. A `whole` model is timed as by `surgeon.benchmark`: its time
    includes the overhead of a run, and where it is so short that a timing takes several runs, `flush` comes before
    the first of them. A `threaded` point is measured only where there are several threads.
    """

    operator: str
    widths: tuple[int, ...]
    model: bytes
    inputs: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    copies: int = 1
    flush: int = 0
    whole: bool = False
    threaded: bool = False

    @property
    def key(self) -> Key:
        """The key of a point's sample."""
        return self.operator, self.widths

    def __str__(self) -> str:
        return f"{self.operator} at {', '.join(map(str, self.widths))}"


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole model as ONNX, the shapes of its inputs where it leaves them open, and what it is, in words.

    Without its bytes, it is too large to be timed, and only named.
    """

    model: bytes
    inputs: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    about: str = ""


def whole_point(operator: str, widths: tuple[int, ...], model: bytes, size: int = 0) -> Point:
    """A whole model, timed with the caches in the state that two others of its size, run in turn with it, leave.

    `size` is the number of its bytes, where `model` does not hold the weights.
    """
    return Point(operator, widths, model, flush=min(COLD_FLUSH, 2 * (size or len(model))) // 8 * 8, whole=True)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Microseconds per copy, by the clock of its profile: the 10th percentile of `rounds` timings, without the overhead
    of a run.

    `spread` is the median's relative distance from it. `blocked` says that onnxruntime runs the graph in the NCHWc
    layout, `ends_blocked` that its result is in that layout too.
    """

    us: float
    spread: float
    blocked: bool
    rounds: int
    ends_blocked: bool = False


Progress = Callable[[Key, Sample, int, int], None]


def measure_all(
    points: Sequence[Point],
    clock: Clock = ONE_THREAD,
    *,
    known: Mapping[Key, Sample] | None = None,
    on_sample: Progress | None = None,
    seed: int = 0,
) -> dict[Key, Sample]:
    """The samples of the points, by their keys.

    Each pass times all points a few times, in a random order, so that a drift of the machine spreads over all of
    them. After each point `on_sample` is called with its key, its sample so far, how many turns are done and how
    many there are. The samples that it gets can be passed as `known` to resume an interrupted measurement: points
    with enough rounds there aren't measured again.

    Raises `InvalidArgument` for points that share a key or hold no ONNX model, and `BenchmarkError` if
    onnxruntime can't run one.
    """
    if len({point.key for point in points}) < len(points):
        twice = [str(point) for point in points if sum(point.key == other.key for other in points) > 1]
        raise InvalidArgument(f"points must differ in operator or widths; given twice: {sorted(set(twice))}")
    prior = dict(known or {})
    samples = {point.key: prior[point.key] for point in points if point.key in prior}
    todo = [point for point in points if _turns(samples.get(point.key))]
    if not todo:
        return samples
    rng = np.random.default_rng(seed)
    bench = _Bench(clock)
    timings: dict[Key, list[float]] = {point.key: [] for point in todo}
    done = 0
    flushes = sorted({point.flush for point in todo if not point.whole})
    with uncollected():
        bench.time_nothing(flushes)
        while todo:
            total = done + count_turns(todo, samples)
            for index in rng.permutation(len(todo)):
                point = todo[index]
                seconds, layout = bench.time(point)
                timings[point.key] += seconds
                sample = bench.sample(timings[point.key], point, layout)
                samples[point.key] = _join(prior.get(point.key), sample)
                done += 1
                if on_sample is not None:
                    on_sample(point.key, samples[point.key], done, total)
            bench.time_nothing(flushes)
            todo = [point for point in todo if _turns(samples[point.key])]
    # the overhead of a run is known best at the end
    for point in points:
        if timings.get(point.key):
            known_layout = samples[point.key].blocked, samples[point.key].ends_blocked
            sample = bench.sample(timings[point.key], point, known_layout)
            samples[point.key] = _join(prior.get(point.key), sample)
    return {point.key: samples[point.key] for point in points}


def count_turns(points: Sequence[Point], known: Mapping[Key, Sample]) -> int:
    """How many turns `measure_all` will take, unless points scatter."""
    return sum(_turns(known.get(point.key)) for point in points)


def _turns(sample: Sample | None) -> int:
    """How many passes a point still needs."""
    if sample is None:
        return ROUNDS // _ROUNDS_A_PASS
    scatters = sample.spread > _SCATTER and sample.rounds >= ROUNDS
    missing = (2 * ROUNDS if scatters else ROUNDS) - sample.rounds
    return max(0, -(-missing // _ROUNDS_A_PASS))


def _join(before: Sample | None, now: Sample) -> Sample:
    """Two measurements of a point as one sample, weighted by their rounds."""
    if before is None:
        return now
    rounds = before.rounds + now.rounds
    us = (before.us * before.rounds + now.us * now.rounds) / rounds
    spread = (before.spread * before.rounds + now.spread * now.rounds) / rounds
    return dataclasses.replace(now, us=us, spread=spread, rounds=rounds)


@dataclasses.dataclass
class _Loaded:
    """A graph ready to be timed: bound to its inputs and outputs, with the number of runs in a timing."""

    session: ort.InferenceSession
    binding: ort.IOBinding
    layout: Layout
    flush: np.ndarray
    repeats: int = 1
    feeds: dict[str, np.ndarray] | None = None  # of a whole model, which gets them in each run

    def chill(self) -> None:
        """Evict what the graph reads from the caches."""
        self.flush.sum()

    def run(self) -> None:
        for _ in range(self.repeats):
            if self.feeds is None:
                self.session.run_with_iobinding(self.binding)
            else:
                self.session.run(None, self.feeds)


class _Bench:
    """Times points; keeps their sessions as far as memory allows, and measures the overhead of a run."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._seconds = clock, clock.fine()
        self._open: dict[Key, _Loaded] = {}
        self._bytes = 0
        self._rows: dict[Key, int] = {}  # how often a point's graph is repeated in one run
        self._nothing: dict[tuple[int, int, bool], list[float]] = {}  # by operators, flush, and whether threads wake
        self._flush: dict[int, np.ndarray] = {}

    def time(self, point: Point) -> tuple[list[float], Layout]:
        """Seconds per run of a few timings, and whether the graph runs, and ends, in the NCHWc layout."""
        loaded = self._open.get(point.key)
        try:
            if loaded is None:
                loaded = self._load(point)
            return self._timings(loaded), loaded.layout
        except ORT_ERRORS as error:
            raise BenchmarkError(f"{point}: onnxruntime can't run it: {error}") from error

    def time_nothing(self, flushes: Sequence[int]) -> None:
        """Time runs of one and of nine operators on almost no data, for the overhead of a run.

        Done for each size of memory that is read before a run, since that makes onnxruntime's code cold too; and with
        several threads for operators that are large enough to wake them.
        """
        kinds = [(flush, False) for flush in flushes]
        if self._clock.wall:
            kinds = [*dict.fromkeys([*kinds, (0, False)]), (0, True)]
        for length, (flush, awake) in itertools.product((1, 9), kinds):
            key = ("", (length, flush, awake))
            if key not in self._open:
                session = self._session(elementwise(["Neg"] * length, AWAKE if awake else (1, 16)))
                self._open[key] = self._ready(session, make_feeds(session), (False, False), flush)
            self._nothing.setdefault((length, flush, awake), []).extend(self._timings(self._open[key]))

    def sample(self, seconds: Sequence[float], point: Point, layout: Layout) -> Sample:
        low, median = np.percentile(seconds, (LOW, 50))
        copies = point.copies * self._rows.get(point.key, 1)
        us = max(0.0, float(low) - (0.0 if point.whole else self._overhead(point.flush))) / copies * 1e6
        return Sample(us, float(median / low) - 1, layout[0], len(seconds), layout[1])

    def _overhead(self, flush: int) -> float:
        """The seconds of a run of nothing; with those that threads take to wake, unless a row makes up for that."""
        found = self._of_nothing(flush, awake=False)
        if self._clock.wall and flush:
            found += max(0.0, self._of_nothing(0, awake=True) - self._of_nothing(0, awake=False))
        return found

    def _of_nothing(self, flush: int, awake: bool) -> float:
        one, nine = (float(np.percentile(self._nothing[length, flush, awake], LOW)) for length in (1, 9))
        return max(0.0, one - max(0.0, nine - one) / 8)

    def _session(self, model: bytes) -> ort.InferenceSession:
        """A session of a graph that is optimized already."""
        return open_session(model, threads=self._clock.threads, spin=self._clock.spin, optimize=False)

    def _timings(self, loaded: _Loaded) -> list[float]:
        loaded.session.run_with_iobinding(loaded.binding)  # to have its code and data in the caches
        seconds = []
        for _ in range(_ROUNDS_A_PASS):
            loaded.chill()
            start = self._seconds()
            loaded.run()
            seconds.append((self._seconds() - start) / loaded.repeats)
        if not all(seconds):
            raise BenchmarkError("this system's CPU clock is too coarse: a run took no time by it")
        return seconds

    def _load(self, point: Point) -> _Loaded:
        """The point's optimized graph without what isn't timed, opened; kept open if there is room."""
        try:
            session, model = open_optimized(point.model, self._clock.threads, self._clock.spin)
            feeds = make_feeds(session, shapes=point.inputs)  # the others by the model's own
            if (before := entry(model)) is not None:
                prepare = self._session(before)
                names = [output.name for output in prepare.get_outputs()]
                needed = {item.name: feeds[item.name] for item in prepare.get_inputs()}
                feeds |= dict(zip(names, prepare.run(None, needed)))
            stripped = strip(model)
            if stripped != model:
                session = self._session(stripped)
            loaded = self._ready(session, feeds, _layout(model, stripped), point.flush, point.whole)
            if self._clock.wall and not (point.whole or point.flush):
                if point.key not in self._rows:
                    a_run = quickest_run(loaded.run, _WARM_UP) / loaded.repeats
                    self._rows[point.key] = min(max(1, int(np.ceil(ROW_SECONDS / max(a_run, 1e-9)))), _LONGEST_ROW)
                if (times := self._rows[point.key]) > 1:
                    loaded = self._ready(self._session(repeated(stripped, times)), feeds, loaded.layout)
        except SurgeonError as error:
            raise type(error)(f"{point}: {error}") from error
        if self._bytes + len(model) <= _KEPT_BYTES:
            self._bytes += len(model)
            self._open[point.key] = loaded
        return loaded

    def _ready(
        self, session: ort.InferenceSession, feeds: Mapping[str, np.ndarray], layout: Layout, flush: int = 0,
        whole: bool = False,
    ) -> _Loaded:
        """Bound to memory that onnxruntime allocates, aligned as inside of a model."""
        binding = session.io_binding()
        feeds = {item.name: feeds[item.name] for item in session.get_inputs()}
        outputs = session.run(None, feeds)
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, _aligned(value))
        for item, value in zip(session.get_outputs(), outputs):
            binding.bind_ortvalue_output(item.name, _aligned(value))
        if flush not in self._flush:
            self._flush[flush] = np.ones(flush // 8, dtype=np.int64)
        loaded = _Loaded(session, binding, layout, self._flush[flush], feeds=feeds if whole else None)
        quickest = quickest_run(loaded.run, _WARM_UP)
        if whole or not flush:
            loaded.repeats = max(1, int(np.ceil(MIN_SECONDS / max(quickest, 1e-9))))
        return loaded


def _layout(optimized: bytes, stripped: bytes) -> Layout:
    """Whether a graph runs in the NCHWc layout, and whether its first output is in it once it is stripped."""
    before, after = parse(optimized), parse(stripped)
    return after.blocked, after.blocked and list(before.outputs)[:1] != list(after.outputs)[:1]


def _aligned(value: np.ndarray) -> ort.OrtValue:
    result = ort.OrtValue.ortvalue_from_shape_and_type(value.shape, value.dtype.type, "cpu", 0)
    result.update_inplace(np.ascontiguousarray(value))
    return result
