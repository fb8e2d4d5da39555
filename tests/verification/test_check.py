"""The proofs: a wrong model is told from a right one, and references of statistics are what the operators compute."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from surgeon.errors import InvalidModel, NotEquivalent
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Groups, couple
from surgeon.groups.interpreter import Interpreter, double
from surgeon.plans.cuts import Cut
from surgeon.surgery import Operation, operate, tensors
from surgeon.verification import certify
from surgeon.verification.reference import STATISTICS

aten = torch.ops.aten


class Net(nn.Module):
    """Two groups, of 8 and of 6 units, with a norm of the user's own scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.second(x)).mean((2, 3)) * 0.5)


X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def made() -> tuple[Net, Groups, dict[int, list[int]], Operation]:
    model = Net().eval()
    with torch.no_grad():
        model.norm.running_mean.normal_()  # type: ignore[union-attr]
        model.norm.weight.normal_()
    groups = couple(trace(model, X))
    keep = {group.leaf.id: list(range(1, group.size, 2)) for group in groups}
    return model, groups, keep, operate(model, groups, keep)


def proof(groups: Groups, keep: dict[int, list[int]], operation: Operation, **options: Any) -> surgeon.Certificate:
    return certify(groups, groups.kept(keep), operation.traced, operation.pairs, **options)


def test_a_right_model_gets_its_certificate() -> None:
    _, groups, keep, operation = made()
    certificate = proof(groups, keep, operation)
    assert certificate.deviation < 1e-12
    assert certificate.operators == sum(node.op == "call_function" for node in groups.graph.nodes)
    assert len(certificate.outputs) == 1
    assert certificate.end_to_end is not None and certificate.end_to_end < 1e-12
    assert certificate.statistics == ()
    assert certificate.to_json()["deviation"] == certificate.deviation
    assert "end to end with zeroed parameters" in str(certificate)


def change(name: str, by: Callable[[Tensor], Tensor]) -> Callable[[Operation], None]:
    def apply(operation: Operation) -> None:
        with torch.no_grad():
            tensor = operation.traced.tensor(name)
            tensor.copy_(by(tensor.clone()))

    return apply


def one_more(tensor: Tensor) -> Tensor:
    tensor.view(-1)[0] += 1e-5
    return tensor


# what is done to the smaller model, the operator that the message names
TAMPERED: list[tuple[str, Callable[[Operation], None], str]] = [
    ("a weight that is a little off", change("first.weight", one_more), "conv2d in first"),
    ("filters in another order", change("first.weight", lambda w: w.flip(0)), "conv2d in first"),
    ("channels in another order", change("second.weight", lambda w: w.roll(1, 1)), "conv2d in second"),
    ("another scale", change("norm.weight", lambda w: 1.001 * w), "batch_norm in norm"),
    ("another statistic", change("norm.running_mean", lambda m: m + 0.01), "batch_norm in norm"),
    ("a bias that is lost", change("head.bias", torch.zeros_like), "linear in head"),
    ("NaN", change("second.bias", lambda b: b * torch.nan), "conv2d in second"),
    ("infinity", change("second.bias", lambda b: b / 0), "conv2d in second"),
]


@pytest.mark.parametrize(("tamper", "place"), [pytest.param(*row[1:], id=row[0]) for row in TAMPERED])
def test_a_tampered_model_is_refused(tamper: Callable[[Operation], None], place: str) -> None:
    _, groups, keep, operation = made()
    tamper(operation)
    with pytest.raises(NotEquivalent, match=rf"^{place} \(\w+\) deviates by .* it is the first operator"):
        proof(groups, keep, operation)


def test_a_number_in_the_smaller_graph_that_is_another_is_refused() -> None:
    _, groups, keep, operation = made()
    node = next(node for node in operation.traced.nodes if node.target is aten.mul.Tensor)
    node.args = (node.args[0], 0.25)
    with pytest.raises(NotEquivalent, match=r"^mul \(mul\) deviates"):
        proof(groups, keep, operation)


def test_other_units_than_the_plans_are_refused() -> None:
    _, groups, keep, operation = made()
    other = {leaf: [unit - 1 for unit in units] for leaf, units in keep.items()}
    with pytest.raises(NotEquivalent, match="conv2d in first"):
        proof(groups, other, operation)


def test_a_tolerance_of_nothing_is_missed() -> None:
    _, groups, keep, operation = made()
    change("head.bias", lambda b: b * (1 + 1e-7))(operation)
    proof(groups, keep, operation, tolerance=1e-6)
    with pytest.raises(NotEquivalent):
        proof(groups, keep, operation)


def test_shrink_gives_nothing_where_slicing_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tensors.take

    def reversed_vectors(tensor: Tensor, cut: Mapping[int, np.ndarray]) -> Tensor:
        return right(tensor, cut).flip(0) if tensor.dim() == 1 else right(tensor, cut)

    monkeypatch.setattr(tensors, "take", reversed_vectors)
    with pytest.raises(NotEquivalent, match="conv2d in first"):
        surgeon.shrink(Net().eval(), 0.5, example_inputs=X, align=1, compensate=False)


def test_verify_tells_models_and_plans_apart() -> None:
    model = Net().eval()
    slim: Any = surgeon.shrink(model, 0.5, example_inputs=X, align=1, compensate=False)
    plan: surgeon.Plan = slim.surgeon_plan
    assert surgeon.verify(model, slim, plan, example_inputs=X).deviation < 1e-9
    with pytest.raises(NotEquivalent, match="Net is not the model less the removed units"):
        surgeon.verify(model, model, plan, example_inputs=X)
    cuts = tuple(dataclasses.replace(c, keep=shifted(c)) if c.size in (8, 6) else c for c in plan.cuts)
    other = dataclasses.replace(plan, cuts=cuts)
    with pytest.raises(NotEquivalent, match=r"in (first|second)"):
        surgeon.verify(model, slim, other, example_inputs=X)
    tampered = copy.deepcopy(slim)
    tampered.second.weight.data[0, 0] += 1
    with pytest.raises(NotEquivalent, match="conv2d in second"):
        surgeon.verify(model, tampered, plan, example_inputs=X)


def shifted(cut: Cut) -> tuple[int, ...]:
    """As many positions of the same axis, but others."""
    return tuple(sorted((position + 1) % cut.size for position in cut.keep))


def applied(model: nn.Module, *inputs: Tensor) -> surgeon.Certificate:
    _, report = surgeon.shrink(
        model, 0.5, example_inputs=inputs, align=1, budget="channels", return_report=True, compensate=False
    )
    return report.certificate


class Between(nn.Module):
    """Something between two layers."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Linear(5, 16), between, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


# what stands between the layers, why the check with zeroed parameters does not apply; "" where it does
END_TO_END: list[tuple[str, Callable[[Tensor], Tensor], str]] = [
    ("zero stays zero", torch.relu, ""),
    ("a constant that the next layer ignores", torch.exp, ""),
    ("a statistic", lambda x: F.softmax(x, -1), "statistics are taken over the kept units only"),
    ("a sum of constants", lambda x: x * x.exp().sum(-1, keepdim=True), "sum sums over removed units that are"),
    ("a sum of zeros", lambda x: x * x.sum(-1, keepdim=True), ""),
]


@pytest.mark.parametrize(("between", "reason"), [pytest.param(*row[1:], id=row[0]) for row in END_TO_END])
def test_the_check_end_to_end_applies_or_says_why_not(between: Callable[[Tensor], Tensor], reason: str) -> None:
    certificate = applied(Between(between), torch.randn(2, 5))
    assert certificate.deviation < 1e-9
    assert certificate.end_to_end_reason.startswith(reason) and bool(certificate.end_to_end_reason) == bool(reason)
    assert (certificate.end_to_end is None) == bool(reason)
    assert certificate.end_to_end is None or certificate.end_to_end < 1e-9
    assert certificate.statistics == (("softmax over 16 -> 8",) if reason.startswith("statistics") else ())


# operator, how it is called given its operand and weights, the operand's shape, the axis that loses positions
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any], tuple[int, ...], int]] = {
    "layer_norm": (lambda a: F.layer_norm(a["input"], a["input"].shape[-1:], a["weight"], a["bias"], 1e-3),
                   {"normalized_shape": [6], "weight": 6, "bias": 6, "eps": 1e-3}, (2, 3, 6), 2),
    "rms_norm": (lambda a: F.rms_norm(a["input"], a["input"].shape[-1:], a["weight"]),
                 {"normalized_shape": [6], "weight": 6, "eps": None}, (2, 3, 6), 2),
    "group_norm": (lambda a: F.group_norm(a["input"], 1, a["weight"], a["bias"], 1e-3),
                   {"num_groups": 1, "weight": 6, "bias": 6, "eps": 1e-3}, (2, 6, 3), 1),
    "batch_norm": (lambda a: F.batch_norm(a["input"], None, None, None, None, True, 0.1, 1e-3),
                   {"weight": None, "bias": None, "eps": 1e-3}, (2, 3, 6), 2),
    "_native_batch_norm_legit": (
        lambda a: aten._native_batch_norm_legit.no_stats(a["input"], None, None, True, 0.1, 1e-3),
        {"weight": None, "bias": None, "eps": 1e-3}, (2, 3, 6), 2),
    "instance_norm": (lambda a: F.instance_norm(a["input"], eps=1e-3), {"weight": None, "bias": None, "eps": 1e-3},
                      (2, 3, 6), 2),
    "softmax": (lambda a: F.softmax(a["self"], 1), {"dim": 1}, (2, 6, 3), 1),
    "_softmax": (lambda a: aten._softmax(a["self"], -1, False), {"dim": -1}, (2, 3, 6), 2),
    "log_softmax": (lambda a: F.log_softmax(a["self"], 1), {"dim": 1}, (2, 6, 3), 1),
    "_log_softmax": (lambda a: aten._log_softmax(a["self"], 1, False), {"dim": 1}, (2, 6, 3), 1),
    "mean": (lambda a: a["self"].mean((1, 2), True), {"dim": [1, 2], "keepdim": True}, (2, 6, 3), 1),
    "var": (lambda a: a["self"].var(1), {"dim": [1]}, (2, 6, 3), 1),
    "std": (lambda a: a["self"].std(1, correction=0), {"dim": [1], "correction": 0}, (2, 6, 3), 1),
    "var_mean": (lambda a: torch.var_mean(a["self"], 1, unbiased=False), {"dim": [1], "unbiased": False}, (2, 6, 3), 1),
    "std_mean": (lambda a: torch.std_mean(a["self"]), {"dim": None}, (2, 6, 3), 1),
    "amax": (lambda a: a["self"].amax(1), {"dim": [1]}, (2, 6, 3), 1),
    "amin": (lambda a: a["self"].amin((1, -1), True), {"dim": [1, -1], "keepdim": True}, (2, 6, 3), 1),
    "max": (lambda a: a["self"].max(), {}, (2, 6, 3), 1),
    "min": (lambda a: a["self"].min(), {}, (2, 6, 3), 1),
    "logsumexp": (lambda a: a["self"].logsumexp(1), {"dim": [1]}, (2, 6, 3), 1),
    "any": (lambda a: (a["self"] > 0.7).any(1), {"dim": 1}, (2, 6, 3), 1),
    "all": (lambda a: (a["self"] > 0.7).all(1), {"dim": 1}, (2, 6, 3), 1),
    "prod": (lambda a: a["self"].prod(1, keepdim=True), {"dim": 1, "keepdim": True}, (2, 6, 3), 1),
    "scaled_dot_product_attention": (
        lambda a: F.scaled_dot_product_attention(a["query"], a["key"], a["value"][..., : a["key"].shape[-2], :]),
        {"scale": None}, (2, 2, 6, 4), 2),
}


def test_every_reference_is_held_against_its_operator() -> None:
    assert CALLS.keys() == STATISTICS.keys()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CALLS)
def test_a_reference_is_the_operator_on_what_is_kept(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    operator, given, shape, axis = CALLS[name]
    operand, formula = STATISTICS[name]
    kept = torch.randperm(6, generator=generator)[: 2 + seed].sort()[0]
    full = {key: draw(value) if key in ("weight", "bias") and value else value for key, value in given.items()}
    full[operand] = draw(*shape)
    mask = torch.zeros(shape, dtype=torch.float64).index_fill_(axis, kept, 1)
    small = {key: value[kept] if isinstance(value, Tensor) and value.dim() == 1 else value
             for key, value in full.items()}
    small[operand] = full[operand].index_select(axis, kept)
    if name == "scaled_dot_product_attention":
        full |= {"query": draw(2, 2, 5, 4), "value": draw(2, 2, 6, 3)}
        small |= {"query": full["query"], "value": full["value"].index_select(2, kept)}
    if name in ("any", "all"):
        full[operand] = full[operand] > 0.7
    expected, found = operator(small), formula(full, mask)
    for want, have in zip(leaves(expected), leaves(found), strict=True):
        if have.shape != want.shape and have.dim() == len(shape):
            have = have.index_select(axis, kept)
        torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-12)


def leaves(value: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(value)


class Scratch(nn.Module):
    """Writes into memory that has no values before."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        return self.down(torch.empty_like(hidden).fill_(2.0) * hidden)


def test_memory_without_values_counts_as_zeros() -> None:
    graph = trace(Scratch(), torch.randn(3, 4))
    run = Interpreter(graph, graph.inputs, precision=double)
    torch.use_deterministic_algorithms(True)  # fills such memory with NaN
    try:
        for node in run:
            value = run.compute(node)
            if node.name == "empty_like":
                assert not value.any()
    finally:
        torch.use_deterministic_algorithms(False)
    assert "empty_like" in [node.name for node in graph.nodes]


class Undefined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x)) - torch.log(-x.square().sum(1, keepdim=True) - 1)


def test_outputs_of_nan_prove_nothing() -> None:
    with pytest.raises(InvalidModel, match="output 0 of the model holds NaN"):
        surgeon.shrink(Undefined(), 0.5, example_inputs=torch.randn(3, 4), compensate=False)
