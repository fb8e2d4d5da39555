"""A latency as the budget: what is asked, what is measured, and what is corrected."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import surgeon
from surgeon.cost.cost import Cost
from surgeon.device.benchmark import Verdict, benchmark
from surgeon.device.profile import Profile
from surgeon.errors import Infeasible, InvalidArgument, PlanError, ProfileError
from surgeon.groups.analyze import analyze
from surgeon.ir.fingerprint import fingerprint
from surgeon.latency.landing import Landed
from surgeon.pipeline import latency_target
from surgeon.pipeline.latency_target import LatencyTarget
from surgeon.pipeline.options import Target
from surgeon.pipeline.timing import Timing
from surgeon.plans.basis import Basis, mark
from surgeon.support.arguments import cpus
from surgeon.support.scratch import temporary_folder
from surgeon.surgery import operate

Slow = Callable[[float, float], float]


class Net(nn.Module):
    """A residual network with a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.wide = nn.Conv2d(64, 128, 1)
        self.deep = nn.Conv2d(128, 128, 3, padding=1, groups=128)
        self.back = nn.Conv2d(128, 64, 1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x + self.back(self.deep(self.wide(x).relu()).relu())
        return self.head(x.mean((2, 3)))


X = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("device") / "here.json"
    surgeon.profile(Net(), X, threads=1, path=path)
    return path


@pytest.fixture
def slowed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Slow], list[float]]:
    """Smaller models take what a function of what was predicted and requested says: none is exported and run."""
    asked: list[float] = []

    def slow(times: Slow) -> list[float]:
        def measured(self: LatencyTarget, kept: Any, timing: Timing, relative: bool) -> Timing:
            asked.append(timing.predicted)
            return replace(timing, measured=times(timing.predicted, timing.requested))

        monkeypatch.setattr(LatencyTarget, "_measured", measured)
        return asked

    return slow


def quick(*args: Any, **kwargs: Any) -> Verdict:
    return benchmark(*args, **{**kwargs, "runs": 30})


def test_a_share_of_the_latency_is_removed_and_measured(taken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_target, "benchmark", quick)
    net = Net()
    slim, report = surgeon.shrink(
        net, 0.4, example_inputs=X, budget="latency", device=taken, return_report=True, compensate=False
    )
    timing = report.latency
    assert isinstance(timing, surgeon.Timing)
    assert timing.measured is not None and timing.verdict is not None
    assert 0 < timing.predicted < timing.base
    assert timing.requested == pytest.approx(0.6 * timing.base)
    assert report.budget == "latency"
    assert report.macs.after < report.macs.before
    assert surgeon.verify(net, slim, slim.surgeon_plan, example_inputs=X).deviation < 1e-9
    assert "requested" in str(report) and "measured" in str(timing)


class Halves(nn.Module):
    """Its code cuts a tensor into equal halves, of which each is read by another convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.head = nn.Conv2d(3, 128, 3, padding=1), nn.Linear(64, 10)
        self.left, self.right = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.up(x).relu().chunk(2, 1)
        return self.head((self.left(left) + self.right(right)).relu().mean((2, 3)))


def test_widths_that_the_class_cannot_hold_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    net, built = Halves(), []

    def measured(self: LatencyTarget, kept: Any, timing: Timing, relative: bool) -> Timing:
        built.append(operate(net, self._groups, kept, "module").form)
        return replace(timing, measured=timing.requested * 0.99)

    monkeypatch.setattr(LatencyTarget, "_measured", measured)
    _, report = surgeon.shrink(
        net, 0.5, example_inputs=X, budget="latency", device=surgeon.profile(net, X, threads=1), return_report=True,
        compensate=False,
    )
    assert "keep the same share" in report.form_reason
    assert built == ["module"]


@pytest.mark.parametrize("times", [1.3, 0.8])
def test_widths_are_chosen_anew_until_the_latency_is_met(taken: Path, slowed: Any, times: float) -> None:
    asked = slowed(lambda predicted, requested: times * predicted)
    _, report = surgeon.shrink(
        Net(), 0.5, example_inputs=X, budget="latency", device=taken, return_report=True, compensate=False
    )
    timing = report.latency
    assert 0 < timing.corrections < len(asked)
    assert (asked[1] < asked[0]) is (times > 1)
    assert timing.landed is Landed.MET or "one step more" in str(timing)
    assert timing.measured <= timing.requested


def test_what_is_measured_right_is_left(taken: Path, slowed: Any) -> None:
    asked = slowed(lambda predicted, requested: 0.99 * requested)
    _, report = surgeon.shrink(
        Net(), 0.3, example_inputs=X, budget="latency", device=taken, return_report=True, compensate=False
    )
    assert len(asked) == 1 and report.latency.corrections == 0


def test_what_no_widths_are_measured_to_meet_is_refused(taken: Path, slowed: Any) -> None:
    slowed(lambda predicted, requested: 2 * requested)
    with pytest.raises(Infeasible, match=r"was not met: of \d choices .* the nearest take latency_ms="):
        surgeon.shrink(Net(), 0.3, example_inputs=X, budget="latency", device=taken, compensate=False)


@pytest.mark.parametrize("times", [0.5, 1.0])
def test_a_prediction_that_refuses_is_measured_before_it_is_believed(taken: Path, slowed: Any, times: float) -> None:
    with pytest.raises(Infeasible) as caught:
        surgeon.shrink(Net(), latency_ms=1e-5, example_inputs=X, device=taken, compensate=False)
    asked = slowed(lambda predicted, requested: times * predicted)
    below = 0.8 * float(re.search(r"latency_ms=([\d.e-]+)", str(caught.value))[1])  # type: ignore[index]
    options: dict[str, Any] = {"latency_ms": below, "example_inputs": X, "device": taken, "return_report": True}
    if times == 1:
        with pytest.raises(Infeasible, match="was not met: of 1 choices"):
            surgeon.shrink(Net(), **options, compensate=False)
    else:
        _, report = surgeon.shrink(Net(), **options, compensate=False)
        assert report.latency.possible > below >= report.latency.measured
        assert report.latency.landed is Landed.MET or report.latency.notes
    assert len(asked) >= 1


def tried(*offs: float) -> list[Any]:
    """Widths that were measured to take so many milliseconds, of the one that was asked for."""
    timing = Timing("a CPU", 1, requested=1.0, base=2.0, predicted=1.0)
    return [({place: (0,)}, replace(timing, measured=off)) for place, off in enumerate(offs)]


SETTLED: list[tuple[tuple[float, ...], float, str]] = [
    ((1.1, 0.985), 0.985, ""),
    ((1.001, 0.9), 0.9, "measured 90.0% of what was asked for; one step more"),
    ((0.7, 0.97, 1.3), 0.97, "measured 97.0%"),
]


@pytest.mark.parametrize(("offs", "chosen", "note"), SETTLED)
def test_the_side_that_was_asked_for_is_kept(offs: tuple[float, ...], chosen: float, note: str) -> None:
    _, timing = latency_target._settled(tried(*offs))
    assert timing.measured == chosen and note in " ".join(timing.notes)
    assert bool(timing.notes) is bool(note)


def test_the_nearest_on_both_sides_are_told_where_none_is_met() -> None:
    with pytest.raises(Infeasible, match=r"ms=0.9 \(the share 0.5500\) and latency_ms=1.2 \(the share 0.4000\)"):
        latency_target._settled(tried(1.5, 1.2, 0.9, 0.5, 1.3, 1.4, 1.6, 1.7, 1.8))


def test_milliseconds_on_another_device_are_predicted_only(taken: Path) -> None:
    other = replace(Profile.load(taken), cpu="another CPU")
    with pytest.warns(UserWarning, match="another CPU"):
        _, report = surgeon.shrink(
            Net(), latency_ms=0.6 * next(iter(other.models.values()))["ms"], example_inputs=X, device=other,
            return_report=True, compensate=False,
        )
    assert report.latency.measured is None
    assert report.latency.predicted <= report.latency.requested
    assert report.latency.device == "another CPU"


def test_a_plan_says_what_was_asked(taken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_target, "benchmark", quick)
    plan = surgeon.plan(Net(), 0.3, example_inputs=X, budget="latency", device=taken)
    assert plan.settings["budget"] == "latency"
    assert (plan.settings["threads"], plan.settings["clock"]) == (1, "CPU time")


def test_two_budgets_at_once(taken: Path) -> None:
    other = replace(Profile.load(taken), cpu="another CPU")
    net = Net()
    most = sum(p.numel() for p in net.parameters()) // 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slim = surgeon.shrink(
            net, 0.1, example_inputs=X, budget="latency", device=other, max_params=most, compensate=False
        )
    assert sum(p.numel() for p in slim.parameters()) <= most


def test_odd_widths_go_up_to_fast_ones(taken: Path) -> None:
    net, profile = Net(), Profile.load(taken)
    plan = surgeon.plan(net, 0.3, example_inputs=X, budget="channels", align=1, min_width={"*": 0.5})
    with pytest.raises(InvalidArgument, match=r"surgeon\.Profile\.load"):
        plan.align(str(taken), net)  # type: ignore[arg-type]
    aligned = plan.align(profile, net)
    for cut in aligned.cuts:
        assert set(plan.tensor(cut.tensor)[cut.axis]) <= set(cut.keep)
    slim = aligned.apply(net)
    if profile.block:
        channels = slim.get_submodule("deep").get_parameter("weight").shape[0]
        assert channels % profile.block == 0 or channels == 128
    plan.align(profile, Net())
    with pytest.raises(PlanError, match="another architecture"):
        plan.align(profile, nn.Linear(2, 2))


def test_an_aligned_plan_is_in_the_basis_of_the_plan_whatever_was_planned_since(taken: Path) -> None:
    net, twin, profile = Net(), Net(), Profile.load(taken)
    mark(twin, Basis("twin", (), (), 0.0))
    plan, other = (surgeon.plan(model, 0.3, example_inputs=X, budget="channels", align=1) for model in (net, twin))
    for model in (net, twin):
        assert plan.align(profile, model).settings == plan.settings
        assert other.align(profile, model).settings == other.settings
    assert plan.align(profile, net).apply(net)(X).shape == net(X).shape


def test_a_profile_of_another_model_is_refused_with_the_remedy(taken: Path) -> None:
    other = nn.Sequential(nn.Conv2d(3, 40, 5), nn.Sigmoid(), nn.Conv2d(40, 8, 5))
    plan = surgeon.plan(other, 0.5, example_inputs=X, align=1)
    with pytest.raises(ProfileError, match=r"surgeon\.profile"):
        plan.align(Profile.load(taken), other)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({}, InvalidArgument, "ratio to remove, latency_ms, min_agreement, or min_metric"),
    ({"ratio": 0.5, "latency_ms": 1.0}, InvalidArgument, "give one of them"),
    ({"latency_ms": -1.0}, InvalidArgument, "above 0"),
    ({"latency_ms": "fast"}, InvalidArgument, "above 0"),
    ({"latency_ms": 1.0, "budget": "params"}, InvalidArgument, "budget of its own"),
    ({"ratio": 0.5, "device": "here.json"}, InvalidArgument, "is for a latency"),
    ({"ratio": 0.5, "threads": 2}, InvalidArgument, "is for a latency"),
    ({"ratio": 0.5, "cpu_time": True}, InvalidArgument, "cpu_time=True is for a latency"),
    ({"ratio": 0.5, "budget": "latency", "cpu_time": 3}, InvalidArgument, "cpu_time=3"),
    ({"ratio": 0.5, "budget": "latency", "threads": 0}, InvalidArgument, "at least 1"),
    ({"ratio": 0.5, "budget": "latency", "threads": 1 << 20}, InvalidArgument, "threads=1048576: give an integer"),
    ({"ratio": 0.5, "budget": "latency", "max_params": -3}, InvalidArgument, "max_params=-3"),
    ({"ratio": 0.5, "budget": "latency", "device": 3}, InvalidArgument, "device is a int"),
    ({"ratio": 0.5, "device": Path("here.json")}, InvalidArgument, "device='here.json' is for a latency"),
    ({"ratio": 0.5, "budget": "latency", "align": 8}, InvalidArgument, "the device decides"),
    ({"ratio": 0.5, "budget": "latency", "scope": "local"}, InvalidArgument, "compared with each other"),
    ({"ratio": 0.5, "budget": "latency", "device": "missing.json"}, ProfileError, "missing.json"),
]


@pytest.mark.parametrize(("given", "kind", "message"), BAD)
def test_bad_requests(given: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        surgeon.shrink(Net(), given.pop("ratio", None), example_inputs=X, **given, compensate=False)


def test_a_latency_out_of_reach_is_refused_with_the_nearest(taken: Path) -> None:
    with pytest.raises(Infeasible, match=r"(?s)the nearest that can be met: latency_ms=.*Remedy") as caught:
        surgeon.shrink(Net(), latency_ms=1e-5, example_inputs=X, device=taken, compensate=False)
    other = replace(Profile.load(taken), cpu="another CPU")
    nearest = float(str(caught.value).split("latency_ms=")[1].split(",")[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, report = surgeon.shrink(
            Net(), latency_ms=nearest, example_inputs=X, device=other, return_report=True, compensate=False
        )
    assert 0.98 * nearest <= report.latency.predicted <= nearest
    assert report.latency.possible == pytest.approx(report.latency.predicted)


def test_threads_that_the_profile_knows_nothing_about_are_refused(taken: Path) -> None:
    with pytest.raises(InvalidArgument, match="threads=2: the profile was taken with 1"):
        surgeon.shrink(Net(), 0.3, example_inputs=X, budget="latency", device=taken, threads=2, compensate=False)


CLOCKS: list[tuple[bool, bool, str]] = [
    (False, False, r"with several threads is the time on the wall, and .* CPU time.*: give cpu_time=True, or take"),
    (True, True, r"cpu_time=True: that is the CPU time of all .* wall time, .*: leave cpu_time= out, or take"),
]


@pytest.mark.parametrize(("wall", "cpu_time", "message"), CLOCKS)
def test_clocks_are_not_mixed(taken: Path, wall: bool, cpu_time: bool, message: str) -> None:
    device = replace(Profile.load(taken), threads=2, clock="wall time" if wall else "CPU time", spin=wall)
    with pytest.raises(InvalidArgument, match=message):
        surgeon.shrink(
            Net(), 0.3, example_inputs=X, budget="latency", device=device, cpu_time=cpu_time, compensate=False
        )


@pytest.mark.skipif(cpus() < 2, reason="this machine has one CPU")
@pytest.mark.parametrize("cpu_time", [False, True])
def test_a_budget_is_measured_by_the_clock_of_its_profile(
    taken: Path, monkeypatch: pytest.MonkeyPatch, cpu_time: bool
) -> None:
    asked: list[tuple[int, bool]] = []

    def measured(*paths: Path, threads: int, seconds: float, cpu_time: bool, **given: Any) -> Verdict:
        asked.append((threads, cpu_time))
        found = benchmark(*paths, threads=threads, runs=30, cpu_time=cpu_time, **given)
        assert found.clock == clock
        return replace(found, noise=0.0)

    monkeypatch.setattr(latency_target, "benchmark", measured)
    clock = "CPU time" if cpu_time else "wall time"
    device = replace(Profile.load(taken), threads=2, clock=clock, spin=not cpu_time)
    target = Target(ratio=0.3, budget="latency", device=device, cpu_time=cpu_time)
    net, groups = Net(), analyze(Net(), X)
    with temporary_folder() as folder:
        made = LatencyTarget(net, groups, Cost(groups), target, folder)
        kept = {group.leaf.id: tuple(range(group.size // 2)) for group in groups}
        parts = made._parts({leaf: len(units) for leaf, units in kept.items()})
        asked_for = Timing("a CPU", 2, 1.0, 2.0, 1.0, clock=made.profile.clock, parts=parts)
        timing = made._measured(kept, asked_for, relative=False)
    assert asked == [(2, cpu_time)] and timing.verdict is not None and timing.measured == timing.verdict.slim.low
    assert f"2 threads, {clock}, 1×3×24×24:" in str(timing)


def test_what_is_too_noisy_is_told_and_measured_longer(taken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def noisy(*paths: Path, seconds: float, **given: Any) -> Verdict:
        asked.append(seconds)
        found = benchmark(*paths, runs=30, **given)
        return replace(found, noise=0.5 / len(asked))

    monkeypatch.setattr(latency_target, "benchmark", noisy)
    _, report = surgeon.shrink(
        Net(), 0.3, example_inputs=X, budget="latency", device=taken, return_report=True, compensate=False
    )
    assert asked == [2.0, 8.0]  # more of the same noise is not asked for
    assert report.latency.landed is Landed.NOISY and report.latency.noise == 0.25
    assert "too noisy here: the base differs from itself by up to 25.0%" in str(report)


def test_a_whole_model_is_known_by_its_inputs_too(tmp_path: Path) -> None:
    """Convolutions have the same weights on a larger image, and take longer there."""
    net, path = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), tmp_path / "here.json"
    small = surgeon.profile(net, torch.randn(1, 1, 8, 8), threads=1, path=path)
    both = surgeon.profile(net, torch.randn(3, 1, 48, 48), threads=1, path=path)
    (first,) = small.models
    assert set(small.models) < set(both.models) and len(both.models) == 2
    assert both.models[first] == small.models[first]
    # a batch that is free counts as one sample
    assert surgeon.profile(net, torch.randn(2, 1, 8, 8), threads=1, path=path).models == both.models
    # numbers of a model without its inputs' shapes, as earlier files hold them, are read and stand for nothing
    old = replace(both, models={fingerprint(net): {"ms": 123.0}})
    assert surgeon.profile(net, torch.randn(1, 1, 8, 8), threads=1).models.keys() == {first}
    old.save(path)
    resumed = surgeon.profile(net, torch.randn(1, 1, 8, 8), threads=1, path=path)
    assert resumed.models.keys() == {fingerprint(net), first}


def test_a_latency_that_it_has_already(taken: Path) -> None:
    with pytest.raises(InvalidArgument, match="already"):
        surgeon.shrink(Net(), latency_ms=1e5, example_inputs=X, device=taken, compensate=False)


def test_a_kit_is_written(tmp_path: Path) -> None:
    assert surgeon.kit(Net(), tmp_path / "kit.pyz", X).stat().st_size > 1000
    with pytest.raises(InvalidArgument, match=r"\.pyz"):
        surgeon.kit(Net(), tmp_path / "kit.zip", X)
