"""Calibration data: what is read, how much of it, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import surgeon
from surgeon.calibration import data as module
from surgeon.calibration.data import Calibration, calibrate
from surgeon.errors import InvalidArgument, InvalidInputs
from surgeon.frontend.trace import trace

NET = nn.Linear(3, 2)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(10, 4), nn.Linear(4, 2)

    def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
        return self.fc(self.embed(tokens).mean(1) * scale)


def read(data: Any, samples: int = 256) -> Calibration:
    return calibrate(data, trace(NET, torch.zeros(2, 3)), NET, samples)


def total(found: Calibration) -> Tensor:
    return torch.cat([args[0] for args, _ in found.batches])


X = torch.arange(60.0).reshape(20, 3)
# Each holds the rows of X, in one form or another.
FORMS = {
    "tensor": X,
    "array": X.numpy(),
    "double precision": X.double().numpy(),
    "batches": X.split(7),
    "labeled": [(part, torch.zeros(len(part))) for part in X.split(7)],
    "dicts": [{"input": part, "labels": torch.zeros(len(part))} for part in X.split(7)],
    "one dict": {"input": X},
    "arrays": [part.numpy() for part in X.split(7)],
    "loader": DataLoader(TensorDataset(X, torch.zeros(20)), batch_size=6),
    "generator": (part for part in X.split(6)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form: str) -> None:
    found = read(FORMS[form])
    assert found.samples == 20
    assert total(found).dtype == torch.float32
    assert torch.equal(total(found).sort(0).values, X)


def test_some_are_held_back_from_everywhere() -> None:
    found = read(torch.arange(300.0).reshape(100, 3))
    held = torch.cat([args[0] for args, _ in found.held_back])[:, 0] / 3
    assert held.tolist() == [7.0 + 8 * i for i in range(12)]
    assert sum(len(args[0]) for args, _ in found.fit) == 88


def test_no_more_is_read_than_needed() -> None:
    read_batches = 0

    def batches() -> Iterator[Tensor]:
        nonlocal read_batches
        while True:
            read_batches += 1
            yield torch.zeros(4, 3)

    assert read(batches(), samples=10).samples == 10
    assert read_batches == 3


def test_inputs_are_found_by_name_and_by_place() -> None:
    net = Two()
    graph = trace(net, (torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 1)))
    tokens, scale = torch.ones(6, 5, dtype=torch.int64), torch.full((6, 1), 2.0)
    for batch in ((tokens, scale, torch.zeros(6)), {"scale": scale, "labels": None, "tokens": tokens.int()}):
        (args, kwargs), *_ = calibrate([batch], graph, net).batches
        assert [tuple(t.shape) for t in args] == [(5, 5), (5, 1)] and not kwargs
        assert args[0].dtype == torch.int64 and args[1][0] == 2
    with pytest.raises(InvalidInputs, match="without 'tokens'"):
        calibrate([{"scale": scale}], graph, net)
    with pytest.raises(InvalidInputs, match=r"holds 1 tensors, the model takes 2: tokens, scale"):
        calibrate([tokens], graph, net)
    with pytest.raises(InvalidInputs, match=r"different numbers of samples: \[5, 6\]"):
        calibrate([(tokens, scale[:5])], graph, net)


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(4, 3)


@pytest.mark.parametrize("count, fit, held", [(3, 1, 1), (9, 1, 1), (80, 18, 2)])
def test_a_fixed_batch_is_filled(count: int, fit: int, held: int) -> None:
    net = Fixed()
    graph = trace(net, torch.zeros(4, 3))
    found = calibrate(torch.ones(count, 3), graph, net)
    assert all(args[0].shape == (4, 3) for args, _ in found.batches)
    assert (len(found.fit), len(found.held_back)) == (fit, held)
    assert bool(found.notes) is (count == 3)


def used_up() -> Iterator[Tensor]:
    generator = (X for _ in range(1))
    next(generator)
    return generator


# What is wrong, the data, the kind of error, and what it says.
WRONG = [
    ("empty", [], InvalidInputs, "data is empty"),
    ("no samples", [torch.zeros(0, 3)], InvalidInputs, "data is empty"),
    ("used up", used_up(), InvalidInputs, "nothing left"),
    ("NaN", [X, torch.full((2, 3), torch.nan)], InvalidInputs, "batch 1 of data, input input holds NaN"),
    ("infinity", [torch.full((2, 3), torch.inf)], InvalidInputs, "6 of 6 places"),
    ("wrong size", [torch.zeros(2, 4)], InvalidInputs, r"has shape \(2, 4\); expected \(batch, 3\)"),
    ("no batch axis", [torch.zeros(3)], InvalidInputs, r"\(a single sample\? batch it"),
    ("integers", [torch.zeros(2, 3, dtype=torch.uint8)], InvalidInputs, "torch.uint8, where .* torch.float32"),
    ("text", ["abc"], InvalidInputs, "is a str; data are to yield tensors, not names"),
    ("no data", None, InvalidArgument, "data is a NoneType"),
    ("a number", 3, InvalidArgument, "data is a int"),
]


@pytest.mark.parametrize("data, kind, says", [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_wrong_data_are_refused(data: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        read(data)


@pytest.mark.parametrize("samples", [0, -1, 2.5, True, None])
def test_samples_are_counted(samples: Any) -> None:
    with pytest.raises(InvalidArgument, match="samples="):
        read(X, samples)


def test_a_single_sample_is_noted() -> None:
    assert "validated on the data that it was made from" in read(X[:1]).notes[0]
    assert np.isclose(float(total(read(X[:1])).sum()), 6.0)


def test_no_more_is_read_than_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INPUTS", 0)
    rows: list[int] = []

    def batches() -> Iterator[Tensor]:
        for i in range(8):
            rows.append(i)
            yield torch.randn(8, 3)

    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    _, report = surgeon.shrink(
        net, 0.5, example_inputs=torch.zeros(1, 3), data=batches(), samples=64, return_report=True
    )
    assert report.recovery.samples == module.FEWEST and len(rows) == module.FEWEST // 8
    assert any("samples instead of 64" in note for note in report.recovery.notes)
