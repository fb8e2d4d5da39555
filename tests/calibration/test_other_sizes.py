"""Calibration data of other sizes than the example inputs, and models whose outputs are single numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from surgeon.calibration.data import MOST_SIZES, calibrate
from surgeon.errors import InvalidInputs
from surgeon.frontend.trace import trace


def tokens(*lengths: int, samples: int = 16) -> list[Tensor]:
    return [torch.randint(0, 20, (samples, length)) for length in lengths]


class Encoder(nn.Module):
    """Attention, with a mask and positions that are made for the length at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(20, 16), nn.Parameter(torch.randn(24, 16))
        self.q, self.k, self.v, self.o = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)
        self.up, self.down = nn.Linear(16, 48), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.places[: x.shape[1]]
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        h = h + self.o(F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h), mask))
        return self.down(self.up(h).relu())


X = torch.randint(0, 20, (2, 8))


@pytest.mark.parametrize("importance", ["reconstruction", "activation"])
def test_lengths(importance: str) -> None:
    slim, report = surgeon.shrink(
        Encoder(), 0.4, example_inputs=X, data=tokens(8, 11, 6, samples=32), importance=importance, return_report=True
    )
    assert type(slim) is Encoder
    assert report.certificate.deviation < 1e-6
    assert report.recovery.samples == 96
    assert report.recovery.after < report.recovery.before
    assert slim(torch.randint(0, 20, (3, 15))).shape == (3, 15, 3)


def test_sizes_of_images() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 4),
    ).eval()
    data = [torch.randn(8, 3, *sizes) for sizes in ((12, 12), (16, 10), (9, 11))]
    slim, report = surgeon.shrink(
        model, 0.4, example_inputs=torch.randn(1, 3, 12, 12), data=data, distill=False, return_report=True
    )
    assert type(slim) is nn.Sequential
    assert report.recovery.after <= report.recovery.before


def test_a_plan_is_recovered_on_other_lengths() -> None:
    model = Encoder()
    plan = surgeon.plan(model, 0.4, example_inputs=X)
    _, report = surgeon.recover(model, plan.apply(model), plan, tokens(6, 9), distill=False, return_report=True)
    assert report.after < report.before
    assert type(surgeon.project(model, tokens(6, 9), example_inputs=X)) is Encoder


def test_samples_are_put_together_with_those_of_their_sizes() -> None:
    model = Encoder()
    found = calibrate(tokens(8, 6, 8, samples=4), trace(model, X), model)
    assert [tuple(args[0].shape) for args, _ in found.fit] == [(8, 8), (3, 6)]
    assert [tuple(args[0].shape) for args, _ in found.held_back] == [(1, 6)]
    assert found.varying == {(0, 1)} and found.samples == 12
    assert not calibrate(tokens(8, 8), trace(model, X), model).varying


def test_labels_stay_with_their_samples() -> None:
    model = Encoder()
    data = [(x, x.float().sum(1)) for x in tokens(8, 6, 8, samples=12)]
    found = calibrate(data, trace(model, X), model, labeled=True)
    for (args, _), (sums,) in zip(found.batches, found.rest, strict=True):
        assert torch.equal(args[0].float().sum(1), sums)


def test_samples_of_too_many_sizes_are_left_out() -> None:
    model = nn.Sequential(nn.Embedding(20, 4), nn.Linear(4, 2))
    found = calibrate(tokens(*range(2, 4 + MOST_SIZES), samples=2), trace(model, X), model)
    assert found.samples == 2 * MOST_SIZES
    assert any("4 samples were left out" in note for note in found.notes)


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(4, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 16)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.out(h)


def test_sizes_that_no_graph_takes() -> None:
    data = [torch.randn(16, steps, 4) for steps in (5, 7)]
    with pytest.raises(InvalidInputs, match=r"x axis 1, .*\n?.*as a loop over it does"):
        surgeon.shrink(Loop(), 0.4, example_inputs=torch.randn(2, 5, 4), data=data)


def test_the_models_own_error_tells_why_it_takes_no_other_size() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(InvalidInputs, match=r"batch 1 .* has shape \(16, 5\); expected \(batch, 4\): mat1 and mat2"):
        surgeon.shrink(model, 0.5, example_inputs=torch.randn(2, 4), data=[torch.randn(16, 4), torch.randn(16, 5)])


class Lossy(nn.Module):
    """Gives a loss, by itself or next to its scores."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.alone = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 3), alone

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        scores = self.c(self.b(self.a(x).relu()).relu())
        loss = F.cross_entropy(scores, y) if y is not None else scores.square().mean()
        return loss if self.alone else {"loss": loss, "scores": scores}


@pytest.mark.parametrize("labeled", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_losses_as_outputs(alone: bool, labeled: bool) -> None:
    batches = [(torch.randn(32, 8), torch.randint(0, 3, (32,))) for _ in range(2)]
    inputs = (torch.randn(4, 8), torch.randint(0, 3, (4,))) if labeled else torch.randn(4, 8)
    slim, report = surgeon.shrink(Lossy(alone), 0.4, example_inputs=inputs, data=batches, return_report=True)
    assert type(slim) is Lossy
    assert report.recovery.after <= report.recovery.before
