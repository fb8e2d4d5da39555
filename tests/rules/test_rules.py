"""Every family of operators: pruned through, and held against the original.

A random half of each group is removed. The result is certified, and compared with the original whose removed units'
parameters are zero, which shares nothing with slicing. Operators that take a statistic have another reference: the
masks of `testbed.oracle`, where it knows the operator.
"""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from surgeon.errors import SurgeryError
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Groups, couple
from surgeon.plans.plan import Plan
from surgeon.rules import RULES, Context, RuleDoesNotApply, RuleFailure, Typed
from surgeon.surgery import operate
from surgeon.verification import certify
from testbed import oracle
from testbed.operators import CERTIFIED_ONLY, MASKED, PINNED, ROWS, Around, Row


def network(row: Row) -> tuple[Around, tuple[Tensor, ...], Groups]:
    model = Around(row).double().eval()
    inputs = (torch.randn(2, 3, *row.spatial, dtype=torch.float64),)
    groups = couple(trace(model, inputs))
    targets = {str(node.target) for node in groups.graph.nodes}
    assert any(f"aten.{row.aten}." in target for target in targets), targets
    return model, inputs, groups


def halves(groups: Groups) -> dict[int, list[int]]:
    rng = np.random.default_rng(0)
    return {g.leaf.id: sorted(rng.permutation(g.size)[: math.ceil(g.size / 2)].tolist()) for g in groups}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_units_are_pruned_through_the_operator(row: Row) -> None:
    model, inputs, groups = network(row)
    keep = halves(groups)
    plan = Plan.of(groups, keep, model=model)
    cut = {cut.tensor for cut in plan.cuts}
    assert "up.weight" in cut, str(groups)
    operation = operate(model, groups, keep)
    certificate = certify(groups, groups.kept(keep), operation.traced, operation.pairs)
    cuts = {(cut.tensor, cut.axis): cut.keep for cut in plan.cuts}
    reference = oracle.masked if row.name in MASKED else oracle.zeroed
    if row.name in CERTIFIED_ONLY:
        assert certificate.statistics
        return
    assert oracle.deviation([operation.module(*inputs)], reference(model, cuts, inputs)) < 1e-12


@pytest.mark.parametrize(("row", "reason"), PINNED, ids=lambda value: str(value) if isinstance(value, Row) else "")
def test_units_that_an_operator_holds_are_pinned_with_the_reason(row: Row, reason: str) -> None:
    _, _, groups = network(row)
    reasons = [pin.reason for pin in groups.pinned if (pin.tensor, pin.axis) == ("up.weight", 0)]
    assert len(reasons) == 1, str(groups)
    assert reason in reasons[0]


def test_downstream_of_an_operator_without_a_rule_pruning_goes_on() -> None:
    row = Row("renorm, and a layer", "renorm", lambda x, p: F.relu(p.conv(torch.renorm(x, 2, 1, 1.0))),
              more={"conv": nn.Conv1d(8, 6, 1)})
    model, inputs, groups = network(row)
    assert [group.name for group in groups] == ["conv"]
    operation = operate(model, groups, halves(groups))
    cuts = {(cut.tensor, cut.axis): cut.keep for cut in Plan.of(groups, halves(groups)).cuts}
    assert oracle.deviation([operation.module(*inputs)], oracle.zeroed(model, cuts, inputs)) < 1e-12


@pytest.mark.parametrize(("error", "category", "reason"), [
    (RuleDoesNotApply("dim is computed"), None, "tanh in 1: the rule does not cover these arguments (dim is computed)"),
    (KeyError("slef"), RuleFailure, "tanh in 1: the rule failed with KeyError ('slef'), please report it"),
    (TypeError(), RuleFailure, "tanh in 1: the rule failed with TypeError (TypeError), please report it"),
])
def test_an_error_of_a_rule_pins_its_operator_and_is_warned_of_where_it_was_not_raised_on_purpose(
    error: Exception, category: type[Warning] | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
        raise error

    monkeypatch.setitem(RULES, "tanh", broken)
    graph = trace(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(2, 3))
    with pytest.warns(category, match=re.escape(reason)) if category is not None else nullcontext():
        groups = couple(graph)
    assert [pin.reason for pin in groups.pinned if (pin.tensor, pin.axis) == ("0.weight", 0)] == [reason]


def test_a_rule_that_prints_no_arguments_is_a_failure_of_surgery(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
        return Typed(c.of(a["self"]), args={"self": lambda kept: a["slef"]})

    monkeypatch.setitem(RULES, "tanh", broken)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    groups = couple(trace(model, torch.randn(2, 3)))
    with pytest.warns(RuleFailure, match="the rule failed"), pytest.raises(SurgeryError, match="please report it"):
        operate(model, groups, halves(groups))


# Numbers in the code that no shape tells: the user's class would compute something else, so a graph has to do.
WRITTEN = [
    ("roll", "roll is called with {'shifts': [3]}, not {'shifts': [2]}"),
    ("group_norm", "group_norm is called with {'num_groups': 2}, not {'num_groups': 1}"),
    ("slice_scatter", "slice_scatter is called with {'start': 2, 'end': 5}, not {'start': 1, 'end': 3}"),
]


@pytest.mark.parametrize(("name", "reason"), WRITTEN)
def test_numbers_written_in_the_code_make_it_a_graph(name: str, reason: str) -> None:
    model, _, groups = network(next(row for row in ROWS if row.name == name))
    operation = operate(model, groups, halves(groups))
    assert (operation.form, operation.reason) == ("graph", reason)
