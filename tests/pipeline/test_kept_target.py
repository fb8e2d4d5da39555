"""How much of the original is kept: what the report says of it, and the smallest model that keeps so much."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.deploy.profiling import profile_workloads
from surgeon.errors import Infeasible, InvalidArgument, TraceError


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """A quarter of its units tell something new; classes, or a map of numbers."""

    def __init__(self, dense: bool = False, output: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 32, 3)
        self.norm = nn.BatchNorm2d(32)
        self.last = nn.Conv2d(32, 5, 1)
        self.dense, self.output = dense, output
        assert self.first.bias is not None
        with torch.no_grad():
            for units in range(8, 32, 8):
                self.first.weight[units : units + 8] = units * self.first.weight[:8]
                self.first.bias[units : units + 8] = units * self.first.bias[:8]
            self.norm.momentum = None
            self.norm(self.first(images(256, 3)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.norm(self.first(x)).relu())
        return y if self.dense else y.mean((2, 3))


def cut(net: nn.Module, *ratio: float, **options: Any) -> tuple[Any, Any]:
    given = {"example_inputs": images(2, 0), "align": 1, "return_report": True, "distill": False, **options}
    slim, report = surgeon.shrink(net.eval(), *ratio, **given)
    return slim, report


def test_classes_are_counted_on_inputs_that_are_held_back() -> None:
    net, data = Net(), images(256, 1)
    slim, report = cut(net, 0.7, data=data)
    held = data[7::8]
    with torch.no_grad():
        same = (slim(held).argmax(1) == net(held).argmax(1)).float().mean()
    assert report.agreement.classes and report.agreement.samples == 32
    assert report.agreement.share == pytest.approx(float(same))
    assert "of 32 inputs that nothing was fitted to get the original's class (give or take" in str(report)


def test_other_outputs_are_compared_by_their_cosine() -> None:
    net, data = Net(dense=True), images(256, 1)
    _, report = cut(net, 0.5, data=data)
    assert not report.agreement.classes and report.agreement.share > 0.99 and "mean cosine of" in str(report)
    assert '"agreement"' in report.to_json()
    _, whole = cut(net, 0.0, data=data)
    assert whole.agreement.share == 1.0


def test_on_noise_it_is_a_guess_and_little_is_warned_of() -> None:
    _, report = cut(Net(), 0.9)
    assert report.agreement.noise and report.agreement.samples == 128
    assert report.agreement.share < 0.9 and "warning: little of the function is kept. Remedy: unlabeled" in str(report)
    assert "a guess: real inputs tell" in str(report)
    _, plain = cut(Net(), 0.9, compensate=False)
    assert plain.agreement is None and "warning" not in str(plain)


def test_what_is_not_fitted_is_told_too() -> None:
    _, report = cut(Net(), 0.9, data=images(256, 1), compensate=False)
    assert report.recovery is None and report.agreement.share < 0.9 and "samples=" in str(report)


@pytest.mark.parametrize("options", [{}, {"data": images(256, 1)}])
def test_the_smallest_model_that_keeps_so_much(options: dict[str, Any]) -> None:
    net = Net(dense=True)
    slim, report = cut(net, min_agreement=0.95, **options)
    assert report.agreement.share >= 0.95 and 0.4 < report.reached < 0.95
    assert slim.surgeon_plan.settings["ratio"] == report.requested
    _, more = cut(net, report.requested + 0.04, **options)
    assert more.agreement.share < 0.95


def test_what_no_smaller_model_keeps_is_refused() -> None:
    with pytest.raises(Infeasible, match=r"min_agreement=0\.9: no smaller model that was tried keeps it; "):
        cut(Net(dense=True), min_agreement=0.9, min_width={"first": 1.0})


def test_it_needs_inputs_and_no_other_target() -> None:
    with pytest.raises(InvalidArgument, match=r"min_agreement=0\.9 is told by inputs"):
        cut(Net(), min_agreement=0.9, compensate=False)
    with pytest.raises(InvalidArgument, match="leave ratio, latency_ms out"):
        cut(Net(), 0.5, min_agreement=0.9)


def right(feeds: Any, outputs: list[Any]) -> float:
    return float((outputs[0].argmax(1) == feeds[1]).mean())


def labeled(net: Net, count: int = 192) -> tuple[Tensor, Tensor]:
    """Images, and the classes that the network puts the most of them into."""
    given = images(count, 2)
    with torch.no_grad():
        found = net.eval()(given).argmax(1)
    found[::8] = 0
    return given, found


def test_how_good_it_is_at_its_job_is_told_before_and_after() -> None:
    net = Net()
    test = labeled(net)
    slim, report = cut(net, 0.7, data=images(64, 1), metric=right, metric_data=[test])
    with torch.no_grad():
        after = float((slim(test[0]).argmax(1) == test[1]).float().mean())
    assert report.metric.after.value == pytest.approx(after) and report.metric.count == len(test[0])
    assert report.metric.before.value > 0.8 and "of it kept; 95 % intervals, on 192 samples" in str(report)
    assert '"metric"' in report.to_json() and "metric" in report.seconds
    _, plain = cut(net, 0.7, metric=right, metric_data=[test])
    assert plain.metric.before == report.metric.before


def test_the_smallest_model_that_keeps_its_job() -> None:
    net = Net()
    options = {"metric": right, "metric_data": [labeled(net)], "data": images(64, 1)}
    slim, report = cut(net, min_metric=0.9, **options)
    assert report.metric.kept.value >= 0.9 and 0.3 < report.reached < 0.99
    assert slim.surgeon_plan.settings["ratio"] == report.requested
    with pytest.raises(Infeasible, match=r"min_metric=1\.0: no smaller model that was tried keeps it; "):
        cut(net, min_metric=1.0, min_width={"first": 1.0}, **options)


def test_the_fastest_model_that_keeps_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    net, taken = Net(), []

    def profile(*args: Any, **options: Any) -> Any:
        taken.append(options)
        return profile_workloads(*args, **options)

    monkeypatch.setattr("surgeon.pipeline.decision.profile_workloads", profile)
    monkeypatch.setattr("surgeon.device.profile.Profile.warnings_here", lambda *_: ["another CPU"])
    given = {"metric": right, "metric_data": [labeled(net)], "min_metric": 0.5, "budget": "latency"}
    with pytest.warns(UserWarning, match="another CPU"):
        _, report = cut(net, align=None, **given)
    assert len(taken) == 1 and report.metric.kept.value >= 0.5
    assert report.latency.predicted < report.latency.base


def test_a_metric_is_of_the_whole_model() -> None:
    class Choosing(nn.Module):
        """It loops over values, which no trace can follow."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = Net(), nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 5))

        def forward(self, x: Tensor) -> Any:
            y = self.net(x)
            return self.head(y[[place for place in range(len(y)) if y[place, 0].item() > -100]])

    with pytest.raises(TraceError, match="a metric is of the whole model"):
        surgeon.shrink(Choosing().eval(), 0.5, example_inputs=images(2, 0), metric=right, metric_data=[labeled(Net())])
