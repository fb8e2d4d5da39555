"""The latency of a network at any widths, by profiles that a formula made: no clock is asked."""

from __future__ import annotations

import dataclasses
import random
from functools import cache

import pytest
from torch import Tensor, nn

from surgeon.device.microbenchmark import Key, Sample
from surgeon.errors import ProfileError
from surgeon.latency.model import Latency
from surgeon.latency.sample_points import COLD, COLD_WEIGHT, RUNS
from surgeon.latency.width_grid import MOST_STEPS
from surgeon.solver.factors import total
from testbed.latency_tools import Dense, Excited, Residual, Transformer, coupled, latency_of, without

NETS: dict[str, tuple[type[nn.Module], int]] = {
    "residual": (Residual, 16), "excited": (Excited, 17), "dense": (Dense, 16), "transformer": (Transformer, 32),
}


@cache
def latency(name: str) -> Latency:
    build, size = NETS[name]
    return latency_of(coupled(build(), 3, size, size))


def leaf(found: Latency, size: int) -> int:
    (only,) = [leaf for leaf, full in found.sizes.items() if full == size]
    return only


@pytest.mark.parametrize("name", NETS)
def test_factors_add_up_to_the_latency_at_full_width(name: str) -> None:
    found = latency(name)
    assert found.ms({}) > 0
    assert total(found.factors, found.sizes) == pytest.approx(found.ms({}), rel=1e-9)
    assert sum(ms for _, ms in found.shares({})) == found.ms({})


@pytest.mark.parametrize("name", ["residual", "dense", "transformer"])
@pytest.mark.parametrize("seed", range(8))
def test_factors_add_up_at_fast_widths(name: str, seed: int) -> None:
    found, draw = latency(name), random.Random(seed)
    widths = {leaf: draw.choice(found.steps(leaf)) for leaf in found.sizes}
    assert total(found.factors, widths) == pytest.approx(found.ms(widths), rel=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_factors_know_all_combinations_of_their_leaves(name: str) -> None:
    found = latency(name)
    for factor in found.factors:
        table = factor.table([found.steps(leaf) for leaf in factor.leaves])
        assert table.shape == tuple(len(found.steps(leaf)) for leaf in factor.leaves)
        assert table.min() > 0
        lowest = {leaf: found.steps(leaf)[0] for leaf in factor.leaves}
        assert factor.at(lowest) == pytest.approx(table[(0,) * len(factor.leaves)])


@pytest.mark.parametrize("name", ["residual", "dense", "transformer"])
def test_narrower_is_faster_among_fast_widths(name: str) -> None:
    found = latency(name)
    for leaf in found.sizes:
        times = [found.ms({leaf: width}) for width in found.steps(leaf)]
        assert times == sorted(times)


@pytest.mark.parametrize("width", [17, 18, 19, 21, 25, 29, 31])
def test_a_misaligned_width_takes_longer_than_the_next_aligned(width: int) -> None:
    found = latency("residual")
    (stream,) = [o.leaves[0] for o in found.network.operators if o.label == "conv2d in stem"]
    assert found.ms({stream: width}) > found.ms({stream: 32})


def test_a_cut_inside_a_block_gains_nothing() -> None:
    found = latency("residual")
    inner = leaf(found, 64)
    before, inside = dict(found.shares({})), dict(found.shares({inner: 52}))
    assert inside["conv2d in down"] == before["conv2d in down"]
    assert dict(found.shares({inner: 48}))["conv2d in down"] < before["conv2d in down"]


def test_changes_of_layout_come_with_a_width_that_leaves_the_blocks() -> None:
    found = latency("residual")
    (inner,) = {*found.network.operators[2].leaves} - {*found.network.operators[0].leaves}

    def changes(widths: dict[int, int]) -> list[str]:
        return [label for label, _ in found.shares(widths) if label.startswith("layout of")]

    assert changes({}) == changes({inner: 16}) == ["layout of mean"]
    # it reads two tensors in the plain layout, and hands on what the next one wants in blocks
    assert changes({inner: 17}) == ["layout of conv2d in second"] * 2 + ["layout of conv2d in down", "layout of mean"]
    # where few channels are read in the plain layout, what came in blocks is brought out of them
    assert changes({inner: 13}) == ["layout of conv2d in second", "layout of mean"]


def test_few_channels_have_a_path_of_their_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    groups = coupled(Two(), 3, 16, 16)
    has, lacks = latency_of(groups), latency_of(groups, direct=3)
    (inner,) = has.sizes
    assert has.ms({}) == lacks.ms({})
    assert dict(has.shares({inner: 13}))["conv2d in b"] < dict(lacks.shares({inner: 13}))["conv2d in b"] / 2
    assert dict(has.shares({inner: 17}))["conv2d in b"] == dict(lacks.shares({inner: 17}))["conv2d in b"]


def test_what_the_model_hands_out_is_brought_out_of_blocks() -> None:
    groups = coupled(nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 1)), 3, 8, 8)
    assert [label for label, _ in latency_of(groups).shares({})][-1] == "layout of the result"


class Added(nn.Module):
    """A convolution's result is added to what is in blocks, or to what is not."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)
        self.plain = plain

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = x.flip(3) if self.plain else x
        return self.c(y + self.b(x)).mean((2, 3))


def test_a_sum_with_what_is_not_in_blocks_leaves_them() -> None:
    changes = {
        plain: [label for label, _ in latency_of(coupled(Added(plain), 3, 8, 8)).shares({}) if "layout" in label]
        for plain in (False, True)
    }
    assert changes[False] == ["layout of mean"]
    assert changes[True] == [f"layout of {label}" for label in ("flip", "conv2d in b", "conv2d in c", "mean")]


def test_without_blocks_nothing_is_brought_into_them() -> None:
    groups = coupled(Residual(), 3, 16, 16)
    found = latency_of(groups, block=0)
    assert not any(label.startswith("layout") for label, _ in found.shares({}))
    for each, size in found.sizes.items():
        assert found.steps(each)[0] == (1 if size <= MOST_STEPS else 2)


def test_the_measured_latency_of_the_whole_is_met() -> None:
    groups = coupled(Residual(), 3, 16, 16)
    alone = latency_of(groups)
    for measured in (alone.ms({}) * 1.5, alone.ms({}) * 0.8):
        profile = dataclasses.replace(alone.timings.profile, models={"mark": {"ms": measured}})
        found = Latency.of(groups, profile, model="mark")
        assert found.ms({}) == pytest.approx(measured)
        assert total(found.factors, found.sizes) == pytest.approx(measured)
        assert Latency.of(groups, profile, model="another").ms({}) == alone.ms({})


def test_a_run_of_nothing_is_no_operators() -> None:
    """What onnxruntime takes for any run stays at whatever widths, and is not spread over the operators."""
    groups = coupled(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), 64)
    alone = latency_of(groups)
    assert alone.run == pytest.approx(5e-3)
    assert dict(alone.shares({}))["onnxruntime itself"] == alone.run
    profile = dataclasses.replace(alone.timings.profile, models={"mark": {"ms": 1.5 * alone.ms({})}})
    found = Latency.of(groups, profile, model="mark")
    narrow = dict.fromkeys(found.sizes, 1)
    assert dict(found.shares(narrow))["onnxruntime itself"] == alone.run < found.ms(narrow)
    samples = {key: sample for key, sample in profile.samples.items() if key[0] != "run"}
    assert Latency.of(groups, dataclasses.replace(profile, samples=samples)).run == 0


def test_threads_wake_once_for_a_run() -> None:
    groups = coupled(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), 64)
    alone = latency_of(groups)
    woken: dict[Key, Sample] = {("wake", (count,)): Sample(25.0 + 2.0 * count, 0.0, False, 12) for count in RUNS}
    samples = dict(alone.timings.profile.samples)
    samples.update(woken)
    found = Latency.of(groups, dataclasses.replace(alone.timings.profile, threads=2, samples=samples))
    assert found.run == pytest.approx(25e-3) and found.run > alone.run
    narrow = dict.fromkeys(found.sizes, 1)
    assert found.ms(narrow) - alone.ms(narrow) == pytest.approx(found.run - alone.run)


def test_weights_that_are_used_once_cost_more_where_they_come_from_memory() -> None:
    """One row through a linear layer waits for its weights; many rows compute meanwhile."""
    net = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512))
    row, rows = latency_of(coupled(net, 512)), latency_of(coupled(net, 64, 512))
    assert row.timings.cold_curve(row.network.operators[0]) is row.timings._stream
    assert rows.timings.cold_curve(rows.network.operators[0]) is rows.timings._cold


@pytest.mark.parametrize("name", NETS)
def test_a_profile_that_lacks_something_is_refused_with_a_remedy(name: str) -> None:
    found = latency(name)
    operator = next(o for o in found.network.operators if o.kind in ("conv", "linear"))
    key = next(key for key in found.timings.profile.samples if key[0] == operator.key)
    build, size = NETS[name]
    groups = coupled(build(), 3, size, size)
    with pytest.raises(ProfileError, match=r"surgeon\.profile") as caught:
        Latency.of(groups, without(found.timings.profile, key))
    assert operator.kind in str(caught.value)
    assert operator.label in str(caught.value)


def test_a_profile_without_a_curve_is_refused_with_a_remedy() -> None:
    found = latency("dense")
    key = next(key for key in found.timings.profile.samples if key[0] == "copy")
    with pytest.raises(ProfileError, match=r"copy.*surgeon\.profile"):
        Latency.of(coupled(Dense(), 3, 16, 16), without(found.timings.profile, key))


def test_weights_from_memory_take_longer_the_more_there_are() -> None:
    """A model with so many weights that they push one another out pays for them; a part of it alone does not."""
    groups = coupled(nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512)), 512)
    found = latency_of(groups)
    assert found.timings._cold is not None
    rates = [float(found.timings._cold(count * COLD_WEIGHT)) for count in COLD[0]]
    assert rates == sorted(rates)
    assert rates[-1] > rates[0] == 0
    samples = {key: sample for key, sample in found.timings.profile.samples.items() if key[0] not in ("cold", "stream")}
    warm = Latency.of(groups, dataclasses.replace(found.timings.profile, samples=samples))
    assert found.ms({}) > warm.ms({})
    (hidden,) = found.sizes
    assert found.ms({hidden: 16}) <= warm.ms({hidden: 16})


def test_what_smaller_models_were_measured_to_take_corrects_the_prediction() -> None:
    """How much of what no operator takes alone grows with the widths is known once a smaller model was measured."""
    groups = coupled(nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512)), 512)
    alone = latency_of(groups)
    (hidden,) = alone.sizes
    narrow, wide = {hidden: 64}, {hidden: 512}
    steep = dataclasses.replace(alone, scale=3.0)
    whole = steep.ms({})
    guessed = dataclasses.replace(alone, each=(whole - alone.ms({})) / (len(alone.shares({})) - 1))
    fitted = guessed.fitted([(narrow, steep.ms(narrow)), (wide, steep.ms(wide))])
    assert fitted.ms({}) == pytest.approx(guessed.ms({})) == pytest.approx(whole)
    assert fitted.ms(narrow) == pytest.approx(steep.ms(narrow))
    assert guessed.ms(narrow) > steep.ms(narrow)
    assert guessed.fitted([]) is guessed
