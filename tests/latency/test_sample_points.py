"""Which tiny graphs are put on the clock, and what is asked about layouts."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from surgeon.cost.cost import Cost
from surgeon.device.layout_probes import answer
from surgeon.latency import sample_points as sampling
from surgeon.latency.onnx_micrographs import FED
from surgeon.latency.operators import Operator, operators
from surgeon.latency.ort_layout import passes
from surgeon.latency.sample_points import (
    COLD,
    FEW_CHANNELS,
    INPUT_FLUSH,
    REORDERS,
    corners,
    low,
    passing,
    points,
    probes,
    questions,
    sizes_at,
    variable,
)
from testbed.latency_tools import Dense, Excited, Residual, Transformer, coupled

#: Networks and the shape of their input.
NETS: dict[str, tuple[type[nn.Module], int]] = {
    "residual": (Residual, 16), "excited": (Excited, 17), "dense": (Dense, 16), "transformer": (Transformer, 32),
}


@cache
def described(name: str) -> tuple[list[Operator], Cost]:
    build, size = NETS[name]
    groups = coupled(build(), 3, size, size)
    cost = Cost(groups)
    return operators(groups, cost), cost


def find(name: str, label: str) -> tuple[Operator, tuple[int, ...]]:
    found, cost = described(name)
    (operator,) = [operator for operator in found if operator.label == label]
    return operator, sizes_at(operator, cost.sizes)


@cache
def block() -> int:
    (probe,) = [probe for probe in probes() if probe.question == "block"]
    return answer(probe)


@pytest.mark.parametrize("name", NETS)
def test_every_operator_is_measured_at_its_corners_once(name: str) -> None:
    found, cost = described(name)
    asked = points(found, cost.sizes)
    keys = [point.key for point in asked]
    assert len(set(keys)) == len(keys)
    for operator in found:
        if operator.kind not in ("view", "concat", "copy", "work"):
            full = sizes_at(operator, cost.sizes)
            assert {(operator.key, dims) for dims in corners(operator, full, odd=False)} <= {*keys}
    assert {key for key, _ in keys} >= {"cold"}


def test_corners_are_low_and_high_in_what_varies() -> None:
    operator, full = find("residual", "conv2d in down")
    assert list(corners(operator, full, odd=False)) == [(16, 16), (16, 64), (32, 16), (32, 64)]
    stem, full = find("residual", "conv2d in stem")
    assert variable(stem) == (1,)
    assert list(corners(stem, full, odd=False)) == [(3, 16), (3, 32)]


def test_odd_corners_are_multiples_of_nothing() -> None:
    operator, full = find("residual", "conv2d in down")
    for dims in corners(operator, full, odd=True):
        assert all(size % 2 for size in dims)
        assert dims[0] > max(FEW_CHANNELS)


def test_a_width_that_fills_no_block_is_measured_below_where_it_would() -> None:
    operator, _ = find("residual", "conv2d in down")
    assert list(corners(operator, (27, 100), odd=False))[-1] == (24, 96)
    assert list(corners(operator, (27, 100), odd=True))[-1] == (27, 99)


@pytest.mark.parametrize("size", range(1, 300))
def test_the_low_corner_is_below_the_size(size: int) -> None:
    assert 1 <= low(size) <= size
    assert low(size) < size or size == 1


def test_what_reads_the_input_finds_it_out_of_the_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    found, cost = described("residual")
    # A model so small is run several times in a timing.
    assert not [point for point in points(found, cost.sizes) if point.flush == INPUT_FLUSH]
    monkeypatch.setattr(sampling, "_REPEATED", 0)
    found, cost = described("residual")
    flushed = {point.operator for point in points(found, cost.sizes) if point.flush == INPUT_FLUSH}
    assert flushed == {operator.key for operator in found if operator.label == "conv2d in stem"}


def test_changes_of_layout_are_measured_where_there_are_blocks() -> None:
    found, cost = described("residual")
    keys = {point.key for point in points(found, cost.sizes)}
    assert {(which, (elements,)) for which in ("plain", "reordered") for _, elements in REORDERS} <= keys
    linear = [operator for operator in found if operator.kind == "linear"]
    assert not any(key in ("plain", "reordered") for key, _ in (p.key for p in points(linear, cost.sizes)))


def test_cold_weights_are_measured_up_to_the_models_own() -> None:
    found, cost = described("residual")
    counts = [point.widths[0] for point in points(found, cost.sizes) if point.operator == "cold"]
    assert counts == list(COLD[0][: len(counts)])
    assert 0 < len(counts) < len(COLD[0])


def test_a_short_operator_is_measured_several_times_over() -> None:
    operator, full = find("excited", "conv2d in squeeze")
    found, cost = described("excited")
    copies = {point.key: point.copies for point in points(found, cost.sizes)}
    assert copies[operator.key, full] > 1


def test_every_elementwise_operator_on_images_is_asked_about_once() -> None:
    found, cost = described("dense")
    asked = [probe.name for probe in questions([*found, *found], cost.sizes)]
    general = [probe.name for probe in probes()]
    norm, _ = find("dense", "batch_norm in norms.0")
    assert asked == [*general, passes(norm)]
    tokens, cost = described("transformer")
    assert [probe.name for probe in questions(tokens, cost.sizes)] == general


def test_multiples_are_asked_about_at_every_residue() -> None:
    for probe in probes():
        if probe.question == "multiple":
            assert len(probe.candidates) >= FED
            assert {width % 16 for width in probe.candidates} == {*range(16)}


class Alone(nn.Module):
    """An elementwise operator between convolutions: on two of their results, or on a table of fewer axes."""

    def __init__(self, gate: bool) -> None:
        super().__init__()
        self.convs, self.gate = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(3)), gate

    def forward(self, x: Tensor) -> Tensor:
        a, b = (conv(x) for conv in self.convs[:2])
        x = a.sigmoid() * torch.tanh(b) if not self.gate else a * a.mean((2, 3), keepdim=True)
        return self.convs[2](x)


@pytest.mark.parametrize("gate", [False, True])
def test_whether_blocks_pass_through_is_read_off_the_graph(gate: bool) -> None:
    groups = coupled(Alone(gate), 16, 8, 8)
    cost = Cost(groups)
    (alone,) = [operator for operator in operators(groups, cost) if operator.kind == "pointwise"]
    passed = answer(passing(alone, sizes_at(alone, cost.sizes)))
    # one number a channel is spread over the image in the plain layout alone
    assert bool(passed) is (block() > 0 and not gate)


def test_a_batch_norm_of_its_own_passes_blocks_through() -> None:
    operator, full = find("dense", "batch_norm in norms.0")
    assert bool(answer(passing(operator, full))) is (block() > 0)
