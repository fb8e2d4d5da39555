"""Budgets for batches, for other sizes, and for mixtures of shapes: predicted by a formula, and measured once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.cost.cost import Cost
from surgeon.deploy.workloads import Workload, workloads
from surgeon.device.benchmark import Verdict, benchmark
from surgeon.device.profile import Profile
from surgeon.errors import InvalidArgument, ProfileError
from surgeon.groups.analyze import analyze
from surgeon.latency.model import Latency
from surgeon.latency.operators import operators
from surgeon.pipeline import latency_target
from surgeon.pipeline.latency_target import LatencyTarget
from surgeon.pipeline.options import Target
from surgeon.pipeline.timing import Timing
from surgeon.support.shapes import shapes
from testbed.latency_tools import fabricated


class Headed(nn.Module):
    """Convolutions, whose work grows with the image, and a head, whose work does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.wide, self.head = nn.Linear(32, 1024), nn.Linear(1024, 256)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x).relu()).relu().mean((2, 3))
        return self.head(self.wide(x).relu())


X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SMALL, LARGE, EIGHT = (1, 3, 8, 8), (1, 3, 24, 24), (8, 3, 8, 8)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return Headed().eval()


def device_for(net: nn.Module, given: Any) -> Profile:
    """A profile of another CPU, by a formula, for runs of these shapes."""
    found: Profile | None = None
    for run in workloads(net, analyze(net, X), shapes("shapes", given)):
        cost = Cost(run.groups)
        each = fabricated(operators(run.groups, cost, run.batch), cost.sizes)
        found = each if found is None else found.merge(each)
    assert found is not None
    return replace(found, cpu="another CPU", about={"mark": "Headed at some shapes"})


def ms(net: nn.Module, plan: surgeon.Plan, device: Profile, run: Workload) -> float:
    groups = analyze(net, X)
    widths = {leaf: len(units) for leaf, units in plan.keep(groups).items()}
    return Latency.of(run.groups, device, batch=run.batch).ms(widths)


@pytest.mark.filterwarnings("ignore:the profile was taken with CPU")
def test_a_plan_is_fast_enough_on_the_runs_that_it_was_made_for(net: nn.Module) -> None:
    every = [SMALL, LARGE]
    device = device_for(net, every)
    runs = workloads(net, analyze(net, X), shapes("shapes", every))
    wanted = [0.5 * Latency.of(run.groups, device, batch=run.batch).ms({}) for run in runs]
    plans = [
        surgeon.plan(
            net, latency_ms=asked, example_inputs=X, device=device, shapes=shape, importance="magnitude"
        )
        for asked, shape in zip(wanted, every, strict=True)
    ]
    for own, (run, asked) in enumerate(zip(runs, wanted, strict=True)):
        taken = [ms(net, plan, device, run) / asked for plan in plans]
        assert 0.95 < taken[own] <= 1 and not 0.95 < taken[1 - own] <= 1
    assert plans[0].settings["shapes"] == {"1×3×8×8": 1.0}


@pytest.mark.filterwarnings("ignore:the profile was taken with CPU")
def test_milliseconds_of_a_mixture_are_the_mean(net: nn.Module) -> None:
    given = [(SMALL, 3), (EIGHT, 1)]
    device = device_for(net, given)
    _, report = surgeon.shrink(
        net, 0.4, example_inputs=X, budget="latency", device=device, shapes=given, compensate=False, return_report=True
    )
    timing = report.latency
    assert [part.shapes for part in timing.parts] == ["1×3×8×8", "8×3×8×8"]
    for name in ("base", "predicted"):
        small, eight = (getattr(part, name) for part in timing.parts)
        assert small < eight < 8 * small
        assert getattr(timing, name) == pytest.approx(0.75 * small + 0.25 * eight)
    assert timing.predicted <= timing.requested == pytest.approx(0.6 * timing.base)
    assert "mean" in str(timing) and "25% of all runs" in str(timing) and '"parts"' in report.to_json()
    assert sum(each.before for each in timing.operators) == pytest.approx(timing.base)
    assert sum(each.after for each in timing.operators) == pytest.approx(timing.predicted)
    assert all(0 <= each.least <= each.after for each in timing.operators)


@pytest.mark.filterwarnings("ignore:the profile was taken with CPU")
def test_a_profile_says_what_it_answers(net: nn.Module) -> None:
    device = device_for(net, [SMALL])
    with pytest.raises(ProfileError, match="taken for other models or shapes: Headed at some shapes; take one"):
        surgeon.plan(net, 0.5, example_inputs=X, budget="latency", device=device, shapes=LARGE)


def test_each_shape_is_measured(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[tuple[int, ...]] = []

    def measured(*paths: Path, feeds: dict[str, Any], **given: Any) -> Verdict:
        fed.append(feeds["x"].shape)
        return replace(benchmark(*paths, feeds=feeds, **{**given, "runs": 30}), noise=0.0)

    monkeypatch.setattr(latency_target, "benchmark", measured)
    profile = surgeon.profile(net, X, threads=1, shapes=[LARGE, EIGHT], path=tmp_path / "here.json")
    assert profile.answers == "Headed at 1×3×24×24; Headed at 8×3×8×8" and len(profile.models) == 2
    groups = analyze(net, X)
    target = Target(ratio=0.5, budget="latency", device=profile, shapes=[(LARGE, 3), (EIGHT, 1)])
    kept = {group.leaf.id: tuple(range(group.size // 2)) for group in groups}
    made = LatencyTarget(net, groups, Cost(groups), target, tmp_path)
    parts = made._parts({leaf: len(units) for leaf, units in kept.items()})
    timing = made._measured(kept, Timing("a CPU", 1, 1.0, 2.0, 1.0, parts=parts), relative=False)
    assert fed == [LARGE, EIGHT] and [part.verdict.batch for part in timing.parts if part.verdict] == [1, 8]
    large, eight = (part.measured or 0.0 for part in timing.parts)
    assert timing.measured == pytest.approx(0.75 * large + 0.25 * eight)
    assert timing.interval is not None and timing.interval[0] <= 0.75 * large + 0.25 * eight <= timing.interval[1]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"ratio": 0.5, "shapes": SMALL}, "shapes=.* is for a latency"),
    ({"ratio": 0.5, "budget": "latency", "shapes": (1, 8, 8)}, "1×8×8 has 3 axes"),
    ({"ratio": 0.5, "budget": "latency", "shapes": "1,3,8,8"}, "shapes='1,3,8,8': give a shape such as"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_bad_requests(net: nn.Module, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        surgeon.shrink(net, given.pop("ratio"), example_inputs=X, **given, compensate=False)
