"""Which sizes of its inputs a model leaves free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.frontend.free_sizes import free_sizes, resized
from surgeon.frontend.trace import normalize_inputs


class Lambda(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(4, 4), nn.Conv2d(3, 4, 3)
        self.table = nn.Embedding(10, 4)
        self.calls = 0
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.function(self, *args, **kwargs)


def _square(net: Any, x: Tensor) -> Any:
    if x.shape[2] != x.shape[3]:
        raise ValueError("squares only")
    return net.conv(x)


# What forward computes, the shapes of its inputs, and which of their axes are free.
CASES: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]], list[str]]] = {
    "convolution": (lambda net, x: net.conv(x), [(2, 3, 8, 8)], ["0 2 3"]),
    "batch of one": (lambda net, x: net.conv(x).flatten(1), [(1, 3, 8, 8)], ["0 2 3"]),
    "one channel": (lambda net, x: torch.conv2d(x, torch.ones(2, 1, 3, 3)), [(2, 1, 8, 8)], ["0 2 3"]),
    "one sample": (lambda net, x: net.linear(x.reshape(1, 4)), [(1, 4)], [""]),
    "flattened": (lambda net, x: net.conv(x).flatten(1) @ torch.ones(144, 2), [(2, 3, 8, 8)], ["0"]),
    "square": (_square, [(2, 3, 8, 8)], ["0 2 3"]),
    "multiples of 32": (lambda net, x: x.unflatten(3, (-1, 32)), [(2, 3, 64, 64)], ["0 1 2 3"]),
    "sequence": (lambda net, x: net.linear(x), [(2, 5, 4)], ["0 1"]),
    "lengths that agree": (lambda net, x, y: net.linear(x) + y, [(2, 5, 4), (2, 5, 4)], ["0 1", "0 1"]),
    "lengths of their own": (
        lambda net, x, y: torch.cat([net.linear(x), y], 1), [(2, 5, 4), (2, 7, 4)], ["0 1", "0 1"],
    ),
    "a graph's neighbors": (lambda net, x, near: near @ net.linear(x), [(7, 4), (7, 7)], ["0", "0 1"]),
    "table of positions": (
        lambda net, x: net.linear(x) + net.table(torch.arange(x.shape[1])), [(2, 9, 4)], ["0 1"],
    ),
    "a full table": (lambda net, x: net.linear(x) + net.table.weight, [(2, 10, 4)], ["0"]),
    "nothing": (lambda net, x: x.reshape(2, 20) @ net.linear.weight.new_ones(20, 1), [(2, 5, 4)], [""]),
}


@pytest.mark.parametrize(("function", "shapes", "free"), CASES.values(), ids=CASES)
def test_free_axes_are_found(
    function: Callable[..., Any], shapes: list[tuple[int, ...]], free: list[str]
) -> None:
    net = Lambda(function)
    inputs = normalize_inputs(tuple(torch.randn(shape) for shape in shapes))
    state = torch.random.get_rng_state()
    found = free_sizes(net, inputs)
    assert torch.equal(state, torch.random.get_rng_state()) and net.calls == 0
    got = [" ".join(str(each.axis) for each in found if each.leaf == leaf and each.free) for leaf in range(len(shapes))]
    assert got == free
    assert all(each.free or each.reason for each in found)
    second = found.second(inputs)
    assert (second is None) == (not any(free))
    if second is not None:
        net(*second[0])
        for each in found.free:
            assert second[0][each.leaf].shape[each.axis] == each.other != each.size


def test_inputs_are_told_by_their_names() -> None:
    net = Lambda(lambda net, tokens, rest: net.table(tokens) + rest["bias"] + rest["more"])
    more = torch.zeros(4)
    inputs = normalize_inputs({"tokens": torch.tensor([[9, 3]]), "rest": {"bias": torch.zeros(4), "more": more}})
    found = free_sizes(net, inputs)
    assert [(each.input, each.leaf) for each in found][-2:] == [("rest[0]", 1), ("rest[1]", 2)]
    assert [each.free for each in found] == [True, True, False, False]
    assert "size of tensor a (4)" in found.axes[-1].reason


def test_tokens_stay_in_their_range() -> None:
    ((tokens,), _) = resized(((torch.tensor([[9, 3]]),), {}), {(0, 1): 30, (0, 0): 1})
    assert tokens[0, :2].tolist() == [9, 3] and set(tokens[0].tolist()) == {9, 3}


def test_axes_that_go_together_are_fixed_together() -> None:
    net = Lambda(lambda net, x, y: net.linear(x) + y)
    found = free_sizes(net, normalize_inputs((torch.randn(2, 5, 4), torch.randn(2, 5, 4))))
    fixed = found.fixing([(0, 1)], "because")
    assert [each.place for each in fixed.free] == [(0, 0), (1, 0)]
    assert [each.place for each in fixed if each.reason == "because"] == [(0, 1), (1, 1)]
