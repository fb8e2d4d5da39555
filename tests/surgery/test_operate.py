"""Recorded calls: what they accept is the predicted model, and what they can't tell is left to its own graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Groups, couple
from surgeon.groups.interpreter import Interpreter, double, precisely
from surgeon.surgery import Operation, operate
from surgeon.surgery.build import carry_out
from surgeon.surgery.canonical import Stream, difference
from surgeon.surgery.record import Stand, record
from testbed.networks import random_network

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """Two layers with something of the user's own after the first."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


class OtherInExport(nn.Module):
    """A smaller one calls another operator, but only when it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        other = torch.compiler.is_compiling() and self.first.out_features != 8
        return self.second(x * 1.0 if other else x)


def halved(model: nn.Module, *inputs: Tensor) -> tuple[Groups, dict[int, list[int]]]:
    groups = couple(trace(model, inputs))
    return groups, {group.leaf.id: list(range(0, group.size, 2)) for group in groups}


def calls(between: Callable[[Tensor], Tensor], stand: Stand, model: Two) -> Stream | None:
    model.between = between
    return record(model, ((X,), {}), stand)


def unlike(first: Stream | None, second: Stream | None) -> str | None:
    """How two recordings that tell what is computed differ, in words."""
    assert first is not None and second is not None
    found = difference(first, second)
    return found[1] if found is not None else None


def in_both_ways(model: nn.Module, *inputs: Tensor) -> tuple[Operation, Operation]:
    groups, keep = halved(model, *inputs)
    return operate(model, groups, keep), operate(model, groups, keep, retrace=True)


def computed(operation: Operation) -> list[Tensor]:
    with precisely():
        return Interpreter(operation.traced, operation.traced.inputs, precision=double).run()


def assert_same(a: Operation, b: Operation) -> None:
    assert (a.form, a.reason, a.renumbered) == (b.form, b.reason, b.renumbered)
    assert b.pairs.keys() >= a.pairs.keys() and len(a.pairs) > 2
    for ours, theirs in zip(computed(a), computed(b), strict=True):
        torch.testing.assert_close(ours, theirs[: len(ours)], rtol=1e-12, atol=1e-12)
    held, other = a.module.state_dict(), b.module.state_dict()
    assert held.keys() == other.keys()
    assert all(torch.equal(held[name], other[name]) for name in held)


@pytest.mark.parametrize("seed", range(6))
def test_recording_decides_as_tracing_does(seed: int) -> None:
    model, inputs = random_network(seed)
    assert_same(*in_both_ways(model.eval(), *inputs))


def test_a_model_that_makes_the_predicted_calls_is_not_exported() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3)).eval()
    groups, keep = halved(model, torch.randn(2, 3, 8, 8))
    quick, slow = operate(model, groups, keep), operate(model, groups, keep, retrace=True)
    assert (quick.form, quick.recorded, slow.recorded) == ("module", True, False)
    assert quick.pairs.keys() == slow.pairs.keys()
    assert_same(quick, slow)


def test_tied_weights_are_told_to_be_one() -> None:
    tied, apart = Two(torch.relu), Two(torch.relu)
    tied.second.weight = tied.first.weight
    apart.second.weight = nn.Parameter(apart.first.weight.detach().clone())
    stand = Stand()
    apart.first.weight, apart.first.bias, apart.second.bias = tied.first.weight, tied.first.bias, tied.second.bias
    assert unlike(calls(torch.relu, stand, tied), calls(torch.relu, stand, apart)) == " reads other operands"
    model = nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False)).eval()
    model[2].weight = model[0].weight
    quick, slow = in_both_ways(model, torch.tensor([[1, 2, 3]]))
    assert quick.recorded
    assert quick.module[2].weight is quick.module[0].weight  # type: ignore[index]
    assert_same(quick, slow)


@pytest.mark.parametrize("same", [
    (F.relu, lambda x: F.relu(x, inplace=True)),
    (lambda x: x * 2 + 1, lambda x: x.mul(2).add_(1)),
    (lambda x: x.reshape(2, 2, 4).flatten(1), lambda x: x.view(2, -1, 4).view(2, 8)),
    (lambda x: torch.cat(x.split([4, 4], 1)[::-1], 1), lambda x: torch.cat(x.chunk(2, -1)[::-1], 1)),
    (lambda x: x[:, 2:] @ x[:, 2:].t() @ x[:], lambda x: x[:, -6:8] @ x[:, 2:100].t() @ x),
    (lambda x: x + 1, lambda x: F.dropout(x.clone(), training=False) + 1),
    (lambda x: x + 1, lambda x: (x.sum(), x.exp().cos_(), x + 1)[2]),
])
def test_two_ways_of_writing_are_recorded_as_one(same: tuple[Callable[[Tensor], Tensor], ...]) -> None:
    stand, model = Stand(), Two(torch.relu)
    assert unlike(*(calls(between, stand, model) for between in same)) is None


@pytest.mark.parametrize(("other", "words"), [
    (lambda x: x.add(2), " is called with other numbers: [2, 1], not [1, 1]"),
    (lambda x: x.add(1.0), " is called with other numbers: [1.0, 1], not [1, 1]"),
    (lambda x: x.add(x), " reads other operands"),
    (lambda x: x.add(1).double().float(), ": aten.t.default became aten._to_copy.default"),
    (lambda x: x.flip(1).add(1), ": aten.add.Tensor became aten.flip.default"),
    (lambda x: x.add(1)[:, :8:1] * (x.shape[1] / 8 + 1e-12), ": aten.t.default became aten.mul.Tensor"),
])
def test_other_numbers_operands_and_operators_are_told_apart(other: Callable[[Tensor], Tensor], words: str) -> None:
    stand, model = Stand(), Two(torch.relu)
    assert unlike(calls(lambda x: x.add(1), stand, model), calls(other, stand, model)) == words


@pytest.mark.parametrize(("others", "words"), [
    ((lambda x: x[:, 1:5].sum() + x, lambda x: x[:, 2:6].sum() + x),
     " is called with {'start': 2, 'end': 6}, not {'start': 1, 'end': 5}"),
    ((lambda x: x.split(4, 1)[0].sum() + x, lambda x: x.split(4, 1)[1].sum() + x), " reads other operands"),
    ((lambda x: x.sum().to(torch.float16) + x, lambda x: x.sum().to(torch.bfloat16) + x),
     " computes [torch.bfloat16], not [torch.float16]"),
])
def test_places_and_types_are_told_apart(others: tuple[Callable[[Tensor], Tensor], ...], words: str) -> None:
    stand, model = Stand(), Two(torch.relu)
    assert unlike(*(calls(between, stand, model) for between in others)) == words


def write_into_a_view(x: Tensor) -> Tensor:
    x[:, :2].mul_(2)
    return x


def write_next_to_a_view(x: Tensor) -> Tensor:
    return x.t().matmul(x.mul_(2)).relu()


@pytest.mark.parametrize("between", [write_into_a_view, write_next_to_a_view, lambda x: torch.exp(x, out=x)])
def test_a_write_that_others_may_see_is_in_doubt(between: Callable[[Tensor], Tensor]) -> None:
    assert calls(between, Stand(), Two(torch.relu)) is None


def test_a_write_into_an_input_or_a_parameter_is_in_doubt() -> None:
    net = Two(torch.relu)
    assert calls(lambda x: x + net.first.bias.mul_(1), Stand(), net) is None
    assert record(nn.ReLU(inplace=True), ((X,), {}), Stand()) is None
    assert X.min() < 0


def test_where_calls_do_not_tell_the_graph_decides() -> None:
    quick, slow = in_both_ways(Two(lambda x: x.view(2, -1).relu_()).eval(), X)
    assert quick.form == "module"
    assert not quick.recorded
    assert_same(quick, slow)


def test_a_number_from_a_size_that_changed_is_noticed() -> None:
    quick, slow = in_both_ways(Two(lambda x: x * (3 / x.shape[1])).eval(), X)
    assert quick.form == "graph"
    assert_same(quick, slow)


def test_the_reason_of_code_that_does_not_run_is_that_of_tracing() -> None:
    quick, slow = in_both_ways(Two(lambda x: x + torch.ones(8)).eval(), X)
    assert quick.form == "graph"
    assert "does not run at the new sizes" in quick.reason
    assert_same(quick, slow)


def test_what_a_model_calls_counts_and_not_what_it_would_when_it_is_exported() -> None:
    model = OtherInExport().eval()
    groups, keep = halved(model, X)
    assert operate(model, groups, keep, retrace=True).form == "graph"
    operation, certificate = carry_out(model, groups, keep)
    assert (operation.form, operation.recorded) == ("module", True)
    assert certificate.deviation < 1e-9


def test_the_fast_path_of_attention_is_left_as_it_was() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    quick, slow = in_both_ways(model, torch.randn(2, 5, 16))
    assert torch.backends.mha.get_fastpath_enabled()
    assert_same(quick, slow)
