"""Points are measured in turns, on a clock that the test moves: so much a run, so much an operator."""

import os
from typing import Any

import pytest

from surgeon.device import microbenchmark as points_module
from surgeon.device.clock import Clock
from surgeon.device.microbenchmark import COLD_FLUSH, ROUNDS, Key, Point, Sample, count_turns, measure_all, whole_point
from surgeon.device.onnx_protobuf import elementwise, parse
from surgeon.device.ort_session import open_session
from surgeon.errors import BenchmarkError, InvalidArgument
from tests.device.tiny import impossible, pointwise_conv

A_RUN, AN_OPERATOR, A_COLD_RUN, WAKING = 3e-6, 5e-6, 40e-6, 30e-6
SEVERAL = Clock(2, wall=True)


class Stopped:
    """Stands still but for the runs of sessions."""

    def __init__(self) -> None:
        self.seconds = 1.0
        self.slower: dict[int, float] = {}  # operators in a graph, seconds that its runs take longer from now on
        self.runs: list[int] = []
        self.cold = False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Stopped:
    clock = Stopped()

    class Session:
        def __init__(self, session: Any, operators: int, wakes: bool) -> None:
            self._session, self._operators, self._wakes = session, operators, wakes

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

        def run(self, names: Any, feeds: Any) -> Any:
            self.run_with_iobinding(None)
            return self._session.run(names, feeds)

        def run_with_iobinding(self, binding: Any) -> None:
            clock.runs.append(self._operators)
            clock.seconds += A_COLD_RUN if clock.cold else A_RUN
            clock.seconds += AN_OPERATOR * self._operators + clock.slower.get(self._operators, 0.0)
            clock.seconds += WAKING if self._wakes else 0.0
            clock.cold = False

    def opened(model: bytes | os.PathLike[str], **settings: Any) -> Any:
        assert isinstance(model, bytes)
        assert settings.get("spin", False) is (settings["threads"] > 1)
        graph = parse(model)
        wakes = settings["threads"] > 1 and graph.inputs.get("x") != (1, 16)  # on more than almost no data
        return Session(open_session(model, **settings), len(graph.nodes), wakes)

    def chill(loaded: Any) -> None:
        clock.cold = loaded.flush.size > 0

    monkeypatch.setattr("surgeon.device.microbenchmark._Loaded.chill", chill)
    monkeypatch.setattr(points_module, "open_session", opened)
    monkeypatch.setattr("surgeon.device.ort_session.open_session", opened)
    monkeypatch.setattr("surgeon.device.clock.time.thread_time", lambda: clock.seconds)
    monkeypatch.setattr("surgeon.device.clock.time.perf_counter", lambda: clock.seconds)
    return clock


def copies(number: int) -> Point:
    return Point("conv", (number,), pointwise_conv(32, 32, copies=number), copies=number)


def a_copy(sample: Sample) -> float:
    """Microseconds of a copy: where there is no blocked layout nothing is cut off, and what makes the weight counts."""
    return AN_OPERATOR * 1e6 * (1 if sample.blocked else 2)


def test_a_sample_is_the_time_of_a_copy_without_that_of_a_run(clock: Stopped) -> None:
    samples = measure_all([copies(2), copies(5)])
    for sample in samples.values():
        assert sample.us == pytest.approx(a_copy(sample))
        assert sample.spread == pytest.approx(0) and sample.rounds == ROUNDS
    assert list(samples) == [("conv", (2,)), ("conv", (5,))]


def test_a_cold_run_is_not_taken_for_the_operators(clock: Stopped) -> None:
    cold = Point("cold", (2,), pointwise_conv(32, 32, copies=2), copies=2, flush=1 << 20)
    for sample in measure_all([copies(2), cold]).values():
        assert sample.us == pytest.approx(a_copy(sample))


def test_several_threads_wake_once_for_a_row_of_operators(clock: Stopped) -> None:
    """Before a run of cold inputs, there is no row; what it takes them to wake is taken off."""
    cold = Point("cold", (2,), pointwise_conv(32, 32, copies=2), copies=2, flush=1 << 20)
    warm, chilled = measure_all([copies(2), cold], SEVERAL).values()
    assert warm.us == pytest.approx(a_copy(warm), rel=0.05) and warm.us > a_copy(warm)
    assert chilled.us == pytest.approx(a_copy(chilled))
    # those of CPU time, which a wait does not add to, are timed one by one
    assert measure_all([copies(2)])["conv", (2,)].us == pytest.approx(a_copy(warm))


@pytest.mark.parametrize("flush", [0, 1 << 16])
def test_operators_that_know_no_blocks_are_timed_as_they_are(clock: Stopped, flush: int) -> None:
    """On any CPU, whatever layouts it has."""
    point = Point("neg", (4,), elementwise(["Neg"] * 4, (1, 16)), copies=4, flush=flush)
    sample = measure_all([point])[point.key]
    assert sample.us == pytest.approx(AN_OPERATOR * 1e6) and not sample.blocked


def test_a_whole_model_is_timed_with_what_a_run_costs(clock: Stopped) -> None:
    model = elementwise(["Neg"] * 4, (1, 16))
    point = Point("whole", (), model, whole=True)
    assert measure_all([point])[point.key].us == pytest.approx((A_RUN + 4 * AN_OPERATOR) * 1e6)
    # what two others of its size leave in the caches
    assert whole_point("whole", (), model).flush == 2 * len(model) // 8 * 8
    assert whole_point("whole", (), model, size=1 << 40).flush == COLD_FLUSH


def test_whether_the_result_is_in_blocks_is_seen() -> None:
    sample = measure_all([Point("c", (32, 32), pointwise_conv(32, 32), flush=1 << 16)])["c", (32, 32)]
    assert sample.ends_blocked is sample.blocked


def test_passes_are_interleaved(clock: Stopped) -> None:
    turns: list[tuple[Key, int, int]] = []
    points = [copies(2), copies(3), copies(4)]
    measure_all(points, on_sample=lambda key, sample, done, total: turns.append((key, done, total)))
    assert len(turns) == count_turns(points, {}) == turns[0][2]
    assert [done for _, done, _ in turns] == list(range(1, len(turns) + 1))
    passes = [turns[start : start + 3] for start in range(0, len(turns), 3)]
    assert all({key for key, _, _ in one} == {point.key for point in points} for one in passes)


def test_a_point_that_scatters_gets_more_rounds(clock: Stopped) -> None:
    points = [copies(2), copies(3)]
    operators = {point.key: 0 for point in points}

    def disturb(key: Key, sample: Sample, done: int, total: int) -> None:
        operators[key] = clock.runs[-1]
        clock.slower[operators["conv", (3,)]] = 1e-3 * done

    samples = measure_all(points, on_sample=disturb)
    assert samples["conv", (3,)].spread > 0.1 and samples["conv", (3,)].rounds == 2 * ROUNDS
    assert samples["conv", (2,)].rounds == ROUNDS


def test_an_interrupted_measurement_is_resumed() -> None:
    points = [copies(1), copies(2)]
    known: dict[Key, Sample] = {}

    def interrupt(key: Key, sample: Sample, done: int, total: int) -> None:
        known[key] = sample
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_all(points, on_sample=interrupt)
    assert sorted(sample.rounds for sample in known.values()) == [3, 6]
    turns: list[int] = []
    samples = measure_all(points, known=known, on_sample=lambda key, sample, done, total: turns.append(done))
    assert all(sample.rounds >= ROUNDS for sample in samples.values())
    assert len(turns) >= count_turns(points, known) == 5


def test_what_is_known_is_not_measured_again() -> None:
    point = Point("conv", (1,), b"not even read")
    known = {point.key: Sample(7.0, 0.0, True, ROUNDS), ("other", (1,)): Sample(1.0, 0.0, True, ROUNDS)}
    assert measure_all([point], known=known) == {point.key: known[point.key]}
    assert measure_all([]) == {}


def test_open_sizes_are_given_with_the_point(clock: Stopped) -> None:
    point = Point("conv", (16, 16), pointwise_conv(16, 16, size="size"), {"x": (1, 16, 5, 5)})
    assert measure_all([point])[point.key].rounds == ROUNDS


@pytest.mark.parametrize(
    "points, error, message",
    [
        ([copies(1), copies(1)], InvalidArgument, r"given twice: \['conv at 1'\]"),
        ([Point("conv", (3, 4), impossible())], BenchmarkError, "^conv at 3, 4: "),
        ([Point("conv", (3, 4), b"garbage")], InvalidArgument, "^conv at 3, 4: "),
        ([Point("conv", (3, 4), b"")], InvalidArgument, "^conv at 3, 4: "),
        ([Point("c", (1,), pointwise_conv(4, 4), {"x": (1, 5, 4, 4)})], InvalidArgument, "^c at 1: .*shape"),
    ],
)
def test_errors_name_the_point(points: list[Point], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        measure_all(points)
