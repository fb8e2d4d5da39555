"""Batches that wait for memory go through what the others went through."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.calibration.data import calibrate
from surgeon.calibration.footprint import bytes_ahead
from surgeon.groups.analyze import analyze
from surgeon.ir.fingerprint import named_tensors
from surgeon.recovery import lockstep
from surgeon.recovery.least_squares import Compensation
from surgeon.recovery.lockstep import Lockstep


class Narrowing(nn.Sequential):
    """Its values take most memory at the beginning."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(4),
            nn.Conv2d(16, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
        )


@pytest.fixture
def data() -> Tensor:
    return torch.randn(128, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_a_node_needs_what_is_still_ahead() -> None:
    graph = analyze(Narrowing().eval(), torch.zeros(2, 3, 16, 16)).graph
    ahead = list(bytes_ahead(graph).values())
    assert ahead == sorted(ahead, reverse=True) and ahead[-1] < ahead[0] / 50


def test_batches_join_as_values_shrink_and_are_where_the_others_are(
    data: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Narrowing().eval()
    groups = analyze(net, data[:2])
    made = surgeon.plan(net, 0.5, example_inputs=data[:2])
    slim, kept = made.apply(net), groups.kept(made.keep(groups))
    monkeypatch.setattr(lockstep, "working_memory", lambda part: 32 * max(bytes_ahead(groups.graph).values()))
    tensors = dict(named_tensors(slim))
    calibration = calibrate(data, groups.graph, net, 128)
    run = Compensation(groups, kept, tensors, calibration, ridge=1e-2, batch_norm=True, compensate=True)
    seen: list[tuple[int, int]] = []
    last: dict[int, Tensor] = {}
    ran = run.both._drop

    def watched(node: object, copies: list[torch.fx.Node]) -> None:
        if len(run.both.joined) == len(calibration.batches):
            for batch in run.both.joined:
                if run.small.holds(copies[-1], batch):
                    last[batch] = run.small.value(copies[-1], batch)
        seen.append((len(run.both.fit), len(run.both.held)))
        ran(node, copies)  # type: ignore[arg-type]

    monkeypatch.setattr(run.both, "_drop", watched)
    corrected = run.run()
    first, final = corrected.samples
    assert lockstep.FEWEST < first < 128 == final
    assert seen[0][1] >= 1 and seen[-1] == (len(calibration.fit), len(calibration.held_back))
    assert len(last) == len(calibration.batches)
    with torch.no_grad():
        for batch, value in last.items():
            args, _ = calibration.batches[batch]
            torch.testing.assert_close(value, slim(*args))


def test_without_memory_the_fewest_are_fitted_on_and_that_is_told(
    data: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Narrowing().eval()
    monkeypatch.setattr(lockstep, "working_memory", lambda part: 0)
    slim, report = surgeon.shrink(net, 0.5, example_inputs=data[:2], data=data, return_report=True)
    assert report.recovery.after < report.recovery.before
    assert any("the first layers were fitted on" in note and "memory=" in note for note in report.recovery.notes)
    assert slim(data[:2]).shape == (2, 4)


@pytest.mark.parametrize(("fit", "count", "order"), [
    (3, 4, [3, 0, 1, 2]), (1, 2, [1, 0]), (8, 10, [8, 0, 1, 2, 3, 4, 5, 6, 9, 7]), (2, 2, [0, 1]),
])
def test_those_held_back_join_in_between(fit: int, count: int, order: list[int]) -> None:
    assert lockstep._in_turn(fit, count) == order


def test_a_lockstep_yields_what_differs() -> None:
    net = Narrowing().eval()
    groups = analyze(net, torch.zeros(2, 3, 16, 16))
    made = surgeon.plan(net, 0.5, example_inputs=torch.zeros(2, 3, 16, 16))
    slim = made.apply(net)
    calibration = calibrate(torch.randn(32, 3, 16, 16), groups.graph, net, 32)
    both = Lockstep(groups, groups.kept(made.keep(groups)), dict(named_tensors(slim)), calibration)
    with torch.no_grad():
        names = [str(node.target) for node, _ in both.steps(lambda node: 1.0)]
    assert names[-1].startswith("aten.linear") and both.samples == both.started_with == 32
