"""What `shrink` does without data and without a word: noise stands in for data, or the report says why it can't."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.calibration import stand_in

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Of its units, half are multiples of the others; its batch norm has the statistics of inputs like X."""

    def __init__(self, change: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 32, 3)
        self.norm = nn.BatchNorm2d(32)
        self.last = nn.Linear(32, 5)
        self.change = change
        assert self.first.bias is not None
        with torch.no_grad():
            self.first.weight[16:] = 3 * self.first.weight[:16]
            self.first.bias[16:] = 3 * self.first.bias[:16]
            self.norm.momentum = None
            self.norm(self.first(torch.randn(256, 3, 8, 8)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.sqrt() if self.change == "NaN" else x
        y: Tensor = self.last(self.norm(self.first(x)).relu().mean((2, 3)))
        return y * 1e-9 + 1 if self.change == "constant" else y


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def deviation(slim: nn.Module, net: nn.Module) -> float:
    x = torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return float((slim(x) - net(x)).norm() / net(x).norm())


def cut(net: nn.Module, **options: Any) -> tuple[Any, Any]:
    given = {"example_inputs": X, "align": 1, "return_report": True, **options}
    slim, report = surgeon.shrink(net.eval(), 0.4, **given)
    return slim, report


def test_the_default_makes_up_for_the_cut() -> None:
    net = Net()
    slim, report = cut(net)
    plain, told = cut(net, compensate=False)
    assert deviation(slim, net) < 0.5 * deviation(plain, net)
    assert "units were chosen and layers were fitted on 64 samples of noise" in str(report) and "data=" in str(report)
    assert report.recovery.distilled is None and report.certificate.deviation < 1e-9
    assert slim.surgeon_plan.settings["data"] == "noise"
    assert told.recovery is None and not told.notes and plain.surgeon_plan.settings["importance"] == "magnitude"


def test_a_criterion_that_is_asked_for_ranks_the_units() -> None:
    net = Net()
    slim, report = cut(net, importance="l1")
    plain, _ = cut(net, importance="l1", compensate=False)
    assert slim.surgeon_plan.cuts == plain.surgeon_plan.cuts and not same(slim, plain)
    assert "so layers were fitted" in str(report) and "units were chosen" not in str(report)


def test_a_plan_is_of_the_units_that_go() -> None:
    net = Net().eval()
    assert surgeon.plan(net, 0.4, example_inputs=X, align=1).cuts == cut(net)[0].surgeon_plan.cuts
    by_weights = surgeon.plan(net, 0.4, example_inputs=X, align=1, importance="magnitude")
    assert by_weights.cuts == cut(net, compensate=False)[0].surgeon_plan.cuts


@pytest.mark.parametrize(("change", "why"), [("NaN", "computes NaN or infinity"), ("constant", "about the same for")])
def test_where_noise_does_not_serve_it_is_the_plain_cut(change: str, why: str) -> None:
    slim, report = cut(Net(change), example_inputs=X.abs())
    assert same(slim, cut(Net(change), example_inputs=X.abs(), compensate=False)[0])
    assert report.recovery is None and "nothing makes up for the cut: on noise" in str(report) and why in str(report)


def test_batch_norms_that_never_saw_an_input_get_the_plain_cut() -> None:
    net = Net()
    net.norm.reset_running_stats()
    slim, report = cut(net)
    plain, _ = cut(net, compensate=False)
    assert same(slim, plain) and report.recovery is None
    assert "nothing makes up for the cut: no batch norm has statistics of any input" in str(report)


def test_the_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    monkeypatch.setattr(stand_in, "MODERATE", 1e4)
    assert "8 samples of noise" in str(cut(net)[1])
    monkeypatch.setattr(stand_in, "MOST", 5e4)
    slim, report = cut(net)
    assert same(slim, cut(net, compensate=False)[0]) and 'data="noise" takes the time' in str(report)


def test_what_fails_on_noise_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no such kernel\nat …")

    monkeypatch.setattr("surgeon.pipeline.decision.recover_groups", fails)
    _, report = cut(Net())
    assert report.recovery is None and "no layer was fitted: no such kernel; " in str(report)
    assert report.certificate.deviation < 1e-9
    monkeypatch.setattr("surgeon.pipeline.decision.reconstruction", fails)
    assert "nothing makes up for the cut: no such kernel; " in str(cut(Net())[1])
    with pytest.raises(RuntimeError, match="no such kernel"):
        cut(Net(), data=torch.randn(32, 3, 8, 8))
