"""Verdicts on timings, layouts and sessions. No test looks at how long anything takes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from surgeon.deploy.export import export
from surgeon.device import benchmark as benchmark_module
from surgeon.device.benchmark import benchmark
from surgeon.device.layout import Convolution, Layout, compare, layout
from surgeon.device.ort_session import make_feeds, open_session
from surgeon.device.peak_memory import peak_memory
from surgeon.device.statistics import compare_timings
from surgeon.errors import BenchmarkError, InvalidArgument
from surgeon.support.arguments import cpus

#: Several, where this machine has them.
THREADS = 2
several = pytest.mark.skipif(cpus() < THREADS, reason="this machine has one CPU")


def conv_net(first: int, second: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, first, 3, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, first, 3, padding=1, groups=first, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, second, 1, bias=False),
        nn.BatchNorm2d(second),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(second, 5),
    ).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    x = torch.rand(1, 3, 8, 8)
    for name, widths in {"even": (32, 48), "odd": (33, 47)}.items():
        export(conv_net(*widths), folder / f"{name}.onnx", example_inputs=x, dynamic="batch")
    export(conv_net(32, 48), folder / "other.onnx", example_inputs=torch.rand(1, 3, 9, 8), dynamic="batch")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "garbage.onnx").write_bytes(b"this is no protobuf\xff\xfe\x00" * 9)
    (folder / "truncated.onnx").write_bytes((folder / "even.onnx").read_bytes()[:-500])
    unknown = helper.make_node("NoSuchOperator", ["x"], ["y"], domain="nowhere")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([unknown], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nowhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "unknown.onnx")
    return folder


def timings(seed: int, factor: float, *, rounds: int = 60, spread: float = 0.05) -> list[np.ndarray]:
    """Base, slim and control: a floor, a lognormal spread, a drift of the machine and rare interruptions."""
    rng = np.random.default_rng(seed)
    drift = 1 + 0.3 * rng.random(rounds).cumsum() / rounds
    result = []
    for scale in (factor, 1.0, factor):
        spikes = np.where(rng.random(rounds) < 0.1, rng.exponential(3, rounds), 0)
        result.append(scale * drift * (rng.lognormal(0, spread, rounds) + spikes))
    return result


@pytest.mark.parametrize("factor, decision", [(2.0, "faster"), (0.5, "slower")])
def test_a_clear_difference_is_seen(factor: float, decision: str) -> None:
    for seed in range(20):
        comparison = compare_timings(*timings(seed, factor), seed=seed)
        assert comparison.decision == decision
        assert comparison.ratio.low < comparison.ratio.high
        assert comparison.ratio.value == pytest.approx(factor, rel=0.15)


@pytest.mark.parametrize("rounds, spread", [(30, 0.02), (60, 0.05), (60, 0.3)])
def test_the_same_model_twice_is_no_difference(rounds: int, spread: float) -> None:
    decisions = [
        compare_timings(*timings(seed, 1.0, rounds=rounds, spread=spread), seed=seed).decision for seed in range(100)
    ]
    assert decisions.count("no reliable difference") >= 95


def test_a_small_difference_needs_many_rounds() -> None:
    def seen(rounds: int) -> list[str]:
        return [compare_timings(*timings(seed, 1.05, rounds=rounds)).decision for seed in range(20)]

    assert seen(2000).count("faster") == 20
    assert seen(30).count("faster") < 20 and "slower" not in seen(30)


def test_a_biased_control_forbids_a_verdict() -> None:
    base, slim, control = timings(0, 1.1, rounds=500, spread=0.01)
    assert compare_timings(base, slim, control).decision == "faster"
    biased = compare_timings(base, slim, control * 1.2)
    assert biased.decision == "no reliable difference" and biased.noise > 0.15


def two_modes(seed: int, slow: int, slim: float) -> list[np.ndarray]:
    """Base, slim and control whose runs are quick or slow, as threads are woken or not: the base's `slow` of 100 rounds
    are slow ones, the slim model's are all alike."""
    rng = np.random.default_rng(seed)
    mode = np.where(np.arange(100) < slow, 2.0, 1.0)
    return [times * rng.lognormal(0, 0.005, 100) for times in (mode, np.full(100, slim), mode)]


@pytest.mark.parametrize("slow, slim, contradicts", [(60, 1.2, True), (60, 0.8, False), (40, 1.2, False)])
def test_an_interval_holds_the_ratio_of_the_medians(slow: int, slim: float, contradicts: bool) -> None:
    base, other, control = two_modes(0, slow, slim)
    found = compare_timings(base, other, control)
    assert found.ratio.low <= float(np.median(base) / np.median(other)) <= found.ratio.high
    assert (found.decision == "no reliable difference") is contradicts
    assert ("too noisy to tell: by the 10th percentiles 0.8" in found.doubt) is contradicts


def test_a_wall_clock_that_contradicts_undoes_a_verdict() -> None:
    base, slim, control = timings(0, 1.5, rounds=200, spread=0.01)
    assert compare_timings(base, slim, control).decision == "faster"
    found = compare_timings(base, slim, control, others={"medians of wall time": 0.9})
    assert found.decision == "no reliable difference"
    assert found.doubt.startswith("too noisy to tell") and found.doubt.endswith("by the medians of wall time 0.90x")
    # as much or more on the same side is told, and contradicts nothing
    found = compare_timings(base, slim, control, others={"medians of wall time": 9.0})
    assert found.decision == "faster" and found.doubt == "by the medians of wall time 9.00x" and found.ratio.high < 2


def test_verdict(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    times = iter(range(10**9))
    monkeypatch.setattr("surgeon.device.benchmark.time.thread_time", lambda: float(next(times)))
    verdict = benchmark(
        files / "even.onnx",
        files / "odd.onnx",
        threads=1,
        runs=30,
        progress=lambda done, total: seen.append((done, total)),
    )
    # The clock moves by one second a look, whichever model runs.
    assert verdict.decision == "no reliable difference" and verdict.ratio.value == 1.0
    assert verdict.base.low == verdict.slim.low == pytest.approx(1000.0 / verdict.repeats)
    assert verdict.runs == 30 and seen[-1] == (30, 30)
    loaded = json.loads(verdict.to_json())
    assert loaded["decision"] == verdict.decision and loaded["threads"] == 1
    assert loaded["ratio"] == dataclasses.asdict(verdict.ratio)
    assert set(loaded["layout"]) == {"base", "slim", "fallen"}
    text = str(verdict)
    for word in (
        "10th percentile",
        "1.00x",
        "verdict   no reliable",
        "1 thread",
        "noise",
        "blocked convolutions",
    ):
        assert word in text


@several
@pytest.mark.parametrize("cpu_time, clock, steps", [(False, "wall time", 1.0), (True, "CPU time", 2.0)])
def test_several_threads_are_compared_on_the_wall(
    files: Path, monkeypatch: pytest.MonkeyPatch, cpu_time: bool, clock: str, steps: float
) -> None:
    walls, cpus = iter(range(10**9)), iter(range(0, 10**9, 2))
    spun: list[bool] = []
    monkeypatch.setattr("surgeon.device.benchmark.time.perf_counter", lambda: float(next(walls)))
    monkeypatch.setattr("surgeon.device.benchmark.time.process_time", lambda: float(next(cpus)))

    def watched(path: Path, threads: int, spin: bool) -> Any:
        spun.append(spin)
        return open_session(path, threads=threads, spin=spin)

    monkeypatch.setattr("surgeon.device.benchmark.open_session", watched)
    feeds = {"input": np.zeros((4, 3, 8, 8), np.float32)}
    verdict = benchmark(
        files / "even.onnx", files / "odd.onnx", threads=THREADS, runs=30, feeds=feeds, cpu_time=cpu_time
    )
    assert (verdict.clock, verdict.batch, spun) == (clock, 4, [not cpu_time] * 3)
    assert verdict.base.low == pytest.approx(steps * 1000 / verdict.repeats)
    assert verdict.base.wall == verdict.base.p99 == pytest.approx(1000 / verdict.repeats)
    assert verdict.base.throughput == pytest.approx(4 * verdict.repeats)
    assert f"{clock}, 10th percentile" in str(verdict) and "batch of 4" in str(verdict)
    assert str(verdict).count("wall time, median") == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell")
def test_peak_memory_is_that_of_a_file_alone(files: Path) -> None:
    many, one = ({"input": np.zeros((rows, 3, 8, 8), np.float32)} for rows in (4096, 1))
    large, small = (peak_memory(files / "even.onnx", feeds) for feeds in (many, one))
    assert large is not None and small is not None
    assert large - small > 4096 * 32 * 8 * 8 * 4 / 2**20  # the output of its first convolution
    with pytest.raises(BenchmarkError, match="a process of its own"):
        peak_memory(files / "even.onnx", {"other": one["input"]})
    verdict = benchmark(files / "even.onnx", files / "odd.onnx", threads=1, runs=30, feeds=one)
    assert all(each is not None and each > 0 for each in verdict.peak_memory) and "MiB" in str(verdict)
    verdict = benchmark(files / "even.onnx", files / "odd.onnx", threads=1, runs=30, peak_memory=False)
    assert verdict.peak_memory == (None, None) and "peak memory" in str(verdict)


def test_sessions_are_interleaved_and_shuffled(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    sessions = [open_session(files / "even.onnx") for _ in range(3)]
    feeds = make_feeds(sessions[0])

    class Recorder:
        def __init__(self, index: int) -> None:
            self.index = index

        def run(self, names: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            orders.append(self.index)
            return sessions[self.index].run(names, feeds)

    clock = iter(range(10**9))
    recorders = tuple(Recorder(index) for index in range(3))
    benchmark_module._measure(recorders, feeds, 40, 1, lambda: float(next(clock)), 0, None)
    rounds = [tuple(orders[i : i + 3]) for i in range(0, len(orders), 3)]
    assert len(rounds) == 40 and all(sorted(order) == [0, 1, 2] for order in rounds)
    assert len(set(rounds)) == 6


def test_a_clock_that_stands_still_is_an_error(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgeon.device.benchmark.time.thread_time", lambda: 1.0)
    with pytest.raises(BenchmarkError, match="too coarse"):
        benchmark(files / "even.onnx", files / "odd.onnx", threads=1, runs=30)


REFUSED: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "missing": ("missing.onnx", {}, InvalidArgument, "no such file"),
    "empty": ("empty.onnx", {}, InvalidArgument, "empty"),
    "garbage": ("garbage.onnx", {}, InvalidArgument, "not an ONNX model"),
    "truncated": ("truncated.onnx", {}, InvalidArgument, "not an ONNX model"),
    "unknown operator": ("unknown.onnx", {}, BenchmarkError, "NoSuchOperator"),
    "other inputs": ("other.onnx", {}, InvalidArgument, "same inputs"),
    "threads": ("odd.onnx", {"threads": 0}, InvalidArgument, "threads=0"),
    "more threads than CPUs": ("odd.onnx", {"threads": 1 << 20}, InvalidArgument, "threads=1048576: .*process has"),
    "runs": ("odd.onnx", {"runs": 5}, InvalidArgument, "at least 30"),
    "seconds": ("odd.onnx", {"seconds": 0.0}, InvalidArgument, "above 0"),
    "unknown feed": ("odd.onnx", {"feeds": {"y": np.zeros(1)}}, InvalidArgument, "'y'"),
    "feed's shape": ("odd.onnx", {"feeds": {"input": np.zeros((1, 3, 8))}}, InvalidArgument, "has shape"),
    "feed's type": ("odd.onnx", {"feeds": {"input": np.zeros((1, 3, 8, 8))}}, InvalidArgument, "float64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(files: Path, name: str) -> None:
    path, arguments, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        benchmark(files / "even.onnx", files / path, **arguments)


def test_feeds_follow_the_signature(files: Path, tmp_path: Path) -> None:
    kinds = {"ids": TensorProto.INT64, "x": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(name, kind, ["batch", 5]) for name, kind in kinds.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])
    nodes = [helper.make_node("Cast", ["ids"], ["c"], to=1), helper.make_node("Add", ["c", "x"], ["y"])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, [output]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "m.onnx")
    session = open_session(tmp_path / "m.onnx")
    feeds = make_feeds(session, seed=3)
    assert feeds["ids"].dtype == np.int64 and feeds["ids"].shape == (1, 5) and not feeds["ids"].any()
    assert feeds["x"].dtype == np.float32 and feeds["x"].std() > 0
    np.testing.assert_array_equal(make_feeds(session, seed=3)["x"], feeds["x"])
    ids = np.ones((1, 5), np.int64)
    np.testing.assert_array_equal(session.run(None, make_feeds(session, feeds={"ids": ids}, seed=3))[0], feeds["x"] + 1)


def test_layout_counts_every_convolution(files: Path) -> None:
    for name in ("even", "odd"):
        found = layout(files / f"{name}.onnx")
        assert found.blocked + found.plain + found.fused == len(found.convolutions) == 3
        assert found.blocked == sum(convolution.blocked for convolution in found.convolutions)
        assert [c.name for c in found.convolutions] == ["0.weight", "3.weight", "6.weight"]
    widths = [(c.in_channels, c.out_channels, c.group) for c in layout(files / "odd.onnx").convolutions]
    assert widths == [(3, 33, 1), (33, 33, 33), (33, 47, 1)]


def test_odd_widths_fall_out_of_the_blocked_layout(files: Path) -> None:
    even, odd = layout(files / "even.onnx"), layout(files / "odd.onnx")
    if not even.blocked:
        pytest.skip("onnxruntime has no blocked layout on this CPU")
    comparison = compare(even, odd)
    assert "3.weight" in [convolution.name for convolution in comparison.fallen]
    assert "3.weight (33 to 33 channels, 33 groups)" in str(comparison)
    assert compare(even, even).fallen == ()


def test_layout_of_a_file_with_batch_norms(tmp_path: Path) -> None:
    """onnxruntime folds them itself and computes the weights anew under other names."""
    path = tmp_path / "m.onnx"
    with torch.no_grad():
        program = torch.onnx.export(
            conv_net(33, 47), (torch.rand(1, 3, 8, 8),), dynamo=True, verbose=False, optimize=False
        )
    assert program is not None
    program.save(path)
    assert any(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)
    found = layout(path)
    assert len(found.convolutions) == 3
    assert found.blocked == sum(convolution.blocked for convolution in found.convolutions)


def test_comparison_matches_by_name() -> None:
    def make(**blocked: bool) -> Layout:
        convolutions = tuple(Convolution(name, 8, 8, 1, value) for name, value in blocked.items())
        return Layout(convolutions, 0, 0, 0, 0, 0)

    base = make(a=True, b=False, c=True, d=True)
    slim = make(d=False, a=False, b=False, e=False)
    assert [c.name for c in compare(base, slim).fallen] == ["d", "a"]
