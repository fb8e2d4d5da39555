"""A latency as the budget: what is asked, what is measured, and what is corrected."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import surgeon
import surgeon.pipeline.latency_target as clock
from surgeon.device.benchmark import Verdict, benchmark
from surgeon.device.profile import Profile
from surgeon.errors import Infeasible, InvalidArgument, PlanError, ProfileError

Slowed = Callable[[float], list[float]]


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
    surgeon.profile(Net(), X, path=path)
    return path


@pytest.fixture
def slowed(monkeypatch: pytest.MonkeyPatch) -> Slowed:
    """Measure the smaller model as so many times what was predicted, each time one is measured."""
    asked: list[float] = []

    def slow(*times: float) -> list[float]:
        left = list(times)
        real = clock.Clock._measured

        def measured(self: clock.Clock, kept: Any, timing: clock.Timing, relative: bool) -> clock.Timing:
            asked.append(timing.predicted)
            found = real(self, kept, timing, relative)
            factor = left.pop(0) if left else 1.0
            return replace(found, requested=timing.requested, measured=timing.predicted * factor)

        monkeypatch.setattr(clock.Clock, "_measured", measured)
        return asked

    monkeypatch.setattr(clock, "benchmark", quick)
    return slow


def quick(*args: Any, **kwargs: Any) -> Verdict:
    return benchmark(*args, **{**kwargs, "runs": 30})


def test_a_share_of_the_latency_is_removed_and_measured(taken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "benchmark", quick)
    net = Net()
    slim, report = surgeon.shrink(
        net, 0.4, example_inputs=X, budget="latency", device=taken, return_report=True
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


def test_what_is_measured_too_slow_is_corrected_once(taken: Path, slowed: Any) -> None:
    asked = slowed(1.5, 1.0)
    _, report = surgeon.shrink(Net(), 0.3, example_inputs=X, budget="latency", device=taken, return_report=True)
    assert len(asked) == 2
    assert asked[1] < asked[0]
    assert report.latency.corrections == 1


def test_what_is_measured_right_is_left(taken: Path, slowed: Any) -> None:
    asked = slowed(1.0)
    _, report = surgeon.shrink(Net(), 0.3, example_inputs=X, budget="latency", device=taken, return_report=True)
    if report.latency.predicted / report.latency.requested >= 0.97:
        assert len(asked) == 1 and report.latency.corrections == 0


def test_a_worse_correction_is_not_taken(taken: Path, slowed: Any) -> None:
    asked = slowed(1.5, 9.0)
    _, report = surgeon.shrink(Net(), 0.3, example_inputs=X, budget="latency", device=taken, return_report=True)
    assert len(asked) == 2
    assert report.latency.corrections == 0
    assert "widths that were chosen anew missed it by more" in str(report.latency)


def test_milliseconds_on_another_device_are_predicted_only(taken: Path) -> None:
    other = replace(Profile.load(taken), cpu="another CPU")
    with pytest.warns(UserWarning, match="another CPU"):
        _, report = surgeon.shrink(
            Net(), latency_ms=0.6 * next(iter(other.models.values()))["ms"], example_inputs=X, device=other,
            return_report=True,
        )
    assert report.latency.measured is None
    assert report.latency.predicted <= report.latency.requested
    assert report.latency.device == "another CPU"


def test_a_plan_says_what_was_asked(taken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "benchmark", quick)
    plan = surgeon.plan(Net(), 0.3, example_inputs=X, budget="latency", device=taken)
    assert plan.settings["budget"] == "latency" and plan.settings["threads"] == 1


def test_two_budgets_at_once(taken: Path) -> None:
    other = replace(Profile.load(taken), cpu="another CPU")
    net = Net()
    most = sum(p.numel() for p in net.parameters()) // 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slim = surgeon.shrink(net, 0.1, example_inputs=X, budget="latency", device=other, max_params=most)
    assert sum(p.numel() for p in slim.parameters()) <= most


def test_odd_widths_go_up_to_fast_ones(taken: Path) -> None:
    net, profile = Net(), Profile.load(taken)
    plan = surgeon.plan(net, 0.3, example_inputs=X, budget="channels", align=1, keep={"*": 0.5})
    with pytest.raises(InvalidArgument, match=r"surgeon\.Profile\.load"):
        plan.align(str(taken))  # type: ignore[arg-type]
    aligned = plan.align(profile)
    for cut in aligned.cuts:
        assert set(plan.tensor(cut.tensor)[cut.axis]) <= set(cut.keep)
    slim = aligned.apply(net)
    if profile.block:
        channels = slim.get_submodule("deep").get_parameter("weight").shape[0]
        assert channels % profile.block == 0 or channels == 128
    plan.align(profile, Net())
    with pytest.raises(PlanError, match="another architecture"):
        plan.align(profile, nn.Linear(2, 2))


def test_a_plan_whose_model_is_gone_asks_for_one(taken: Path, tmp_path: Path) -> None:
    plan = surgeon.Plan("0" * 64, ())
    with pytest.raises(PlanError, match="pass model="):
        plan.align(Profile.load(taken))


def test_a_profile_of_another_model_is_refused_with_the_remedy(taken: Path) -> None:
    other = nn.Sequential(nn.Conv2d(3, 40, 5), nn.Sigmoid(), nn.Conv2d(40, 8, 5))
    plan = surgeon.plan(other, 0.5, example_inputs=X, align=1)
    with pytest.raises(ProfileError, match=r"surgeon\.profile"):
        plan.align(Profile.load(taken), other)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({}, InvalidArgument, "ratio to remove, or latency_ms"),
    ({"ratio": 0.5, "latency_ms": 1.0}, InvalidArgument, "give one of them"),
    ({"latency_ms": -1.0}, InvalidArgument, "above 0"),
    ({"latency_ms": "fast"}, InvalidArgument, "above 0"),
    ({"latency_ms": 1.0, "budget": "params"}, InvalidArgument, "budget of its own"),
    ({"ratio": 0.5, "device": "here.json"}, InvalidArgument, "is for a latency"),
    ({"ratio": 0.5, "threads": 2}, InvalidArgument, "is for a latency"),
    ({"ratio": 0.5, "budget": "latency", "threads": 0}, InvalidArgument, "at least 1"),
    ({"ratio": 0.5, "budget": "latency", "max_params": -3}, InvalidArgument, "max_params=-3"),
    ({"ratio": 0.5, "budget": "latency", "device": 3}, InvalidArgument, "device is a int"),
    ({"ratio": 0.5, "device": Path("here.json")}, InvalidArgument, "device='here.json' is for a latency"),
    ({"ratio": 0.5, "budget": "latency", "align": 8}, InvalidArgument, "device's own rules"),
    ({"ratio": 0.5, "budget": "latency", "scope": "local"}, InvalidArgument, "compared with one another"),
    ({"ratio": 0.5, "budget": "latency", "device": "missing.json"}, ProfileError, "missing.json"),
]


@pytest.mark.parametrize(("given", "kind", "message"), BAD)
def test_bad_requests(given: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        surgeon.shrink(Net(), given.pop("ratio", None), example_inputs=X, **given)


def test_a_latency_out_of_reach(taken: Path) -> None:
    with pytest.raises(Infeasible, match="Remedy"):
        surgeon.shrink(Net(), latency_ms=1e-5, example_inputs=X, device=taken)


def test_a_latency_that_it_has_already(taken: Path) -> None:
    with pytest.raises(InvalidArgument, match="already"):
        surgeon.shrink(Net(), latency_ms=1e5, example_inputs=X, device=taken)


def test_a_kit_is_written(tmp_path: Path) -> None:
    assert surgeon.kit(Net(), tmp_path / "kit.pyz", X).stat().st_size > 1000
    with pytest.raises(InvalidArgument, match=r"\.pyz"):
        surgeon.kit(Net(), tmp_path / "kit.zip", X)
