"""The graph of recorded calls: it computes what the smaller model computes, and what is wrong in it is found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.errors import NotEquivalent
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Groups, couple
from surgeon.groups.interpreter import Interpreter, double, precisely
from surgeon.surgery import Operation, operate
from surgeon.surgery.build import carry_out
from surgeon.verification import Certificate, certify

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
Kept = dict[int, list[int]]


class Around(nn.Module):
    """Something of the user's own between two layers."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def made(between: Callable[[Tensor], Tensor], *inputs: Tensor) -> tuple[nn.Module, Groups, Kept, Operation]:
    torch.manual_seed(0)
    model = Around(between).eval()
    groups = couple(trace(model, inputs or (X,)))
    keep = {group.leaf.id: list(range(1, group.size, 2)) for group in groups}
    return model, groups, keep, operate(model, groups, keep)


def proof(groups: Groups, keep: Kept, operation: Operation) -> Certificate:
    return certify(groups, groups.kept(keep), operation.traced, operation.pairs)


def in_place(x: Tensor) -> Tensor:
    return x.mul(2).add_(1).relu_()


def several(x: Tensor) -> Tensor:
    mean = torch.var_mean(torch.stack([x, x * 2]), 0)[1]
    return torch.cat([part.exp() for part in mean[:, None].unbind(1)], -1)


def laid_out_otherwise(x: Tensor) -> Tensor:
    return x.t().contiguous().t().reshape(len(x), -1).clone().detach()


# what stands between the layers
BETWEEN: list[Callable[[Tensor], Tensor]] = [
    torch.relu, in_place, several, laid_out_otherwise, lambda x: x[:, : x.shape[1]].tanh(), lambda x: F.softmax(x, -1),
    lambda x: x.to(torch.bfloat16).float(), lambda x: x / x.norm(dim=1, keepdim=True), lambda x: x * 0.5,
]


@pytest.mark.parametrize("between", BETWEEN)
def test_the_recorded_graph_computes_what_the_model_does(between: Callable[[Tensor], Tensor]) -> None:
    _, groups, keep, operation = made(between)
    assert (operation.form, operation.recorded) == ("module", True)
    assert proof(groups, keep, operation).deviation < 1e-12
    with torch.no_grad():
        (found,) = Interpreter(operation.traced, (X,), precision=lambda value: value).run()
        torch.testing.assert_close(found, operation.module(X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("between", BETWEEN)
def test_each_weight_that_is_off_is_found(between: Callable[[Tensor], Tensor]) -> None:
    _, groups, keep, operation = made(between)
    for name in ("first.weight", "first.bias", "last.weight", "last.bias"):
        tensor = operation.traced.tensor(name)
        right = tensor.detach().clone()
        with torch.no_grad():
            tensor.view(-1)[1] += 1e-5
        with pytest.raises(NotEquivalent, match=rf"^linear in {name.partition('.')[0]} \(\w+\) deviates"):
            proof(groups, keep, operation)
        with torch.no_grad():
            tensor.copy_(right)
    proof(groups, keep, operation)


def numbers(operation: Operation) -> Iterable[tuple[Any, tuple[Any, ...], int]]:
    """The operators of a graph that are called with a number, and where it stands."""
    for node in operation.traced.nodes:
        for index, value in enumerate(node.args):
            if isinstance(value, float):
                yield node, node.args, index


def test_a_number_that_is_another_is_found() -> None:
    _, groups, keep, operation = made(lambda x: torch.clamp(x * 0.5, -0.25, 0.25))
    found = list(numbers(operation))
    assert len(found) == 3
    for node, args, index in found:
        node.args = (*args[:index], args[index] * 1.01, *args[index + 1:])
        with pytest.raises(NotEquivalent, match=r"^(mul|clamp) \(\w+\) deviates"):
            proof(groups, keep, operation)
        node.args = args
    proof(groups, keep, operation)


def test_a_slice_at_another_place_is_found() -> None:
    _, groups, keep, operation = made(lambda x: torch.cat([x[:, 8:], x[:, :8]], 1))
    node = next(node for node in operation.traced.nodes if node.target is torch.ops.aten.slice.Tensor and node.args[2])
    node.args = (*node.args[:2], 0, 4)
    with pytest.raises(NotEquivalent, match=r"^slice \(\w+\) deviates"):
        proof(groups, keep, operation)


def test_a_part_that_is_the_whole_is_held_against_the_original_too() -> None:
    """All that is kept lies in the first half: the smaller model's slice is what it slices."""
    torch.manual_seed(0)
    model = Around(lambda x: x).eval()
    groups = couple(trace(model, (X,)))
    ((group,),) = (list(groups),)
    keep = {group.leaf.id: list(range(8))}
    operation = operate(model, groups, keep)
    assert proof(groups, keep, operation).operators == sum(node.op == "call_function" for node in groups.graph.nodes)


def test_random_numbers_are_drawn_alike() -> None:
    _, groups, keep, operation = made(lambda x: x * torch.rand_like(x))
    assert operation.recorded
    assert proof(groups, keep, operation).deviation < 1e-12


def test_what_does_not_run_in_float64_is_exported() -> None:
    """What torch's own RMSNorm adds to the root is float32's in the calls that it makes, and float64's in its graph."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8), nn.RMSNorm(8), nn.Linear(8, 3)).eval()
    groups = couple(trace(model, (X,)))
    keep = {group.leaf.id: list(range(0, group.size, 2)) for group in groups}
    assert operate(model, groups, keep).recorded
    operation, certificate = carry_out(model, groups, keep)
    assert (operation.form, operation.recorded) == ("module", False)
    assert certificate.deviation < 1e-9


@pytest.mark.parametrize("between", [
    lambda x: x.as_strided((len(x), x.shape[1]), (x.shape[1], 1)), lambda x: x * float(x.shape[0]) * x.sum().item(),
])
def test_what_calls_do_not_tell_is_exported(between: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), Around(between)).eval()
    groups = couple(trace(model, (X,)))
    keep = {group.leaf.id: list(range(0, group.size, 2)) for group in groups}
    operation, certificate = carry_out(model, groups, keep)
    assert not operation.recorded
    assert certificate.deviation < 1e-9


@pytest.mark.parametrize(("between", "samples"), [(torch.relu, 1), (lambda x: x.squeeze().unsqueeze(1).squeeze(1), 2)])
def test_one_of_equal_samples_is_run_where_one_is_treated_as_two_are(
    between: Callable[[Tensor], Tensor], samples: int
) -> None:
    _, groups, keep, operation = made(between, X[:1])
    assert groups.graph.batch == 2
    assert (operation.recorded, operation.traced.batch) == (True, samples)
    assert proof(groups, keep, operation).deviation < 1e-12


def test_values_are_let_go_of() -> None:
    """No more is held of a chain of operators than what the next of them reads."""
    *_, operation = made(lambda x: x.tanh().sin().cos().tanh().sin().cos())
    held = 0
    run = Interpreter(operation.traced, (X,), precision=double)
    with precisely():
        for node in run:
            run.compute(node)
            held = max(held, sum(run.holds(each) for each in operation.traced.nodes if each.op != "get_attr"))
    assert held <= 3  # of a linear layer its input, the weight transposed, and the result
