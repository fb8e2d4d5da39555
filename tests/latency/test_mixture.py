"""The mean latency of runs of several shapes, by profiles that a formula made."""

from __future__ import annotations

import pytest
import torch

from surgeon.cost.cost import Cost
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import couple
from surgeon.latency.mixture import Mixture
from surgeon.latency.model import Latency
from surgeon.latency.operators import operators
from surgeon.solver.factors import total
from testbed.latency_tools import Residual, fabricated

WEIGHTS = (0.75, 0.25)


def latency(side: int, batch: int = 1) -> Latency:
    torch.manual_seed(0)
    groups = couple(trace(Residual().eval(), torch.randn(2, 3, side, side)))
    cost = Cost(groups)
    profile = fabricated(operators(groups, cost, batch), cost.sizes)
    return Latency.of(groups, profile, cost, batch=batch)


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return Mixture((latency(16), latency(32)), WEIGHTS)


def test_it_is_the_mean(mixture: Mixture) -> None:
    narrow = {leaf: max(1, size // 2) for leaf, size in mixture.parts[0].sizes.items()}
    for widths in ({}, narrow):
        small, large = mixture.each(widths)
        assert small < large
        assert mixture.ms(widths) == pytest.approx(0.75 * small + 0.25 * large)
        assert sum(mixture.by_operator(widths).values()) == pytest.approx(mixture.ms(widths))
    assert total(mixture.factors, mixture.parts[0].sizes) == pytest.approx(mixture.ms({}), rel=1e-9)
    assert mixture.run == pytest.approx(mixture.parts[0].run)
    for leaf in mixture.parts[0].sizes:
        assert mixture.steps(leaf) == mixture.parts[1].steps(leaf) and mixture.finest(leaf)


def test_each_part_is_fitted_to_what_was_measured_of_it(mixture: Mixture) -> None:
    narrow = {leaf: max(1, size // 2) for leaf, size in mixture.parts[0].sizes.items()}
    small, large = mixture.each(narrow)
    found = mixture.fitted([(narrow, (1.2 * small, large))])
    assert found.each(narrow)[0] == pytest.approx(1.2 * small, rel=0.1) and found.each(narrow)[0] > small
    assert found.each(narrow)[1] == pytest.approx(large)
    assert found.each({}) == pytest.approx(mixture.each({}))


def test_a_batch_takes_what_its_samples_take(mixture: Mixture) -> None:
    """Every operator computes so many times as much; an operator itself, and a run, cost the same."""
    one, four = latency(16), latency(16, batch=4)
    assert one.ms({}) < four.ms({}) < 4 * one.ms({})
    assert four.run == one.run
    work = {label: ms for label, ms in four.shares({}) if "layout" not in label}
    assert all(ms >= dict(one.shares({}))[label] for label, ms in work.items())
