"""Operators that sum over units: what each unit contributes to their results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from surgeon.groups.coupling import Groups
from surgeon.ir.axes import Axis
from surgeon.ir.operators import operator_name
from surgeon.rules import arguments, where
from surgeon.rules.base import dims
from surgeon.sparsity.influence import ROUNDING, Operands

_PRODUCTS = {
    "matmul": ("self", "other"), "mm": ("self", "mat2"), "bmm": ("self", "mat2"), "mv": ("self", "vec"),
    "dot": ("self", "tensor"), "addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"),
}

NO_PLACE = "a nonzero constant, and there is no bias or running mean to fold it into"
PADDED = "a nonzero constant under a convolution with padding, whose zeros lack it at the borders"
UNEVEN = "a constant that is not the same everywhere"
STATISTIC = "a statistic is taken over the unit and others"


@dataclass(frozen=True)
class Target:
    """The tensor into which a constant that an operator's result loses is folded, with this sign."""

    tensor: str
    sign: int


@dataclass
class Reader:
    """An operator and an axis over which it sums or takes a statistic.

    For each position of the axis, `zero` says whether it contributes nothing, whatever is read, and `known` whether the
    summed values are constant. A linear layer or convolution has `weights` (groups, outputs per group, positions),
    summed over the kernel, and the `values` (groups, positions) that it reads, NaN where they are not one known
    constant; `weight` is the name of its weight, if no other operator uses it.
    """

    node: fx.Node
    axis: Axis
    zero: np.ndarray
    known: np.ndarray
    statistic: bool = False
    padded: bool = False
    matters: np.ndarray | None = None
    weights: np.ndarray | None = field(default=None, repr=False)
    values: np.ndarray | None = None
    target: Target | None = None
    weight: str | None = None

    @property
    def place(self) -> str:
        return where(self.node)

    def blocked(self, read: Any) -> dict[int, str]:
        """The positions that can't be removed, with reasons; `read` masks the elements of the result that are read."""
        if read is None or (isinstance(read, Tensor) and not read.any()):
            return {}
        if self.statistic:
            return dict.fromkeys(range(self.axis.size), STATISTIC)
        if self.matters is None or self.values is None or not isinstance(read, Tensor):
            return {p: NO_PLACE if self.known[p] else "" for p in np.flatnonzero(~self.zero).tolist()}
        name = operator_name(self.node)
        channel = read.dim() - 1 if name == "linear" else read.dim() - int(name[4]) - 1  # conv1d, conv2d, conv3d
        rows = read.movedim(channel, 0).flatten(1).any(1).numpy().reshape(self.matters.shape[:2])
        needed = (self.matters & rows[:, :, None]).any(1)  # by groups and positions
        foldable = np.isfinite(self.values) & ((self.values == 0) | (self.target is not None and not self.padded))
        found = {}
        for p in np.flatnonzero((needed & ~foldable).any(0)).tolist():
            found[p] = self._why(self.values[needed[:, p] & ~foldable[:, p], p], bool(self.known[p]))
        return found

    def shift(self, gone: np.ndarray) -> np.ndarray:
        """What each output channel loses with these positions."""
        assert self.weights is not None and self.values is not None
        values = np.nan_to_num(self.values[:, gone])
        return np.einsum("gop,gp->go", self.weights[:, :, gone], values).ravel()


    def _why(self, values: np.ndarray, known: bool) -> str:
        if not known:
            return ""
        if np.isnan(values).any():
            return UNEVEN
        return PADDED if self.padded else NO_PLACE


def readers(groups: Groups, o: Operands) -> list[Reader]:
    """The axes with prunable units over which a node sums or takes a statistic."""
    typed = groups.typed[o.node]
    if o.node in groups.held:
        return []
    return [
        _reader(groups, o, axis, statistic)
        for axes, statistic in ((typed.contracted, False), (typed.reduced, True))
        for axis in axes
        if any(leaf.id in groups.names for leaf in groups.space.leaves(axis))
    ]


def _reader(groups: Groups, o: Operands, axis: Axis, statistic: bool) -> Reader:
    reader = Reader(o.node, axis, np.zeros(axis.size, dtype=bool), np.zeros(axis.size, dtype=bool), statistic)
    if _describe_layer(groups, o, reader):
        return reader
    wanted = groups.space.resolve(axis)
    zero, known = [], []
    for factors in _every_operand(groups, o) if statistic else _summed(o):
        same = [(n, dim) for n, dim in factors if groups.space.resolve(_axis(groups, n, dim)) == wanted]
        if same:
            zero.append(np.stack([_by_position(~o.matters(n).bool(), dim) for n, dim in same]).any(0))
        if same and all(n in o.unknown for n, _ in same):
            known.append(np.stack([_by_position(~o.unknown[n], dim) for n, dim in same]).all(0))
    # If the axis is summed over twice, as in the sum of a matrix, a removed position must add nothing either way.
    for found, into in ((zero, reader.zero), (known, reader.known)):
        if found:
            into[:] = np.stack(found).all(0)
    return reader


def _by_position(mask: Tensor, dim: int) -> np.ndarray:
    """For each position of a dim, whether the whole mask is set there."""
    return mask.movedim(dim, 0).reshape(mask.shape[dim], -1).all(1).numpy()


def _axis(groups: Groups, node: fx.Node, dim: int) -> Axis:
    axes = groups.axes[node]
    assert isinstance(axes, tuple)
    return axes[dim]


def _every_operand(groups: Groups, o: Operands) -> list[list[tuple[fx.Node, int]]]:
    """All dims of all computed operands, each on its own."""
    return [[(n, dim)] for n, shape in o.live.items() for dim in range(len(shape)) if len(groups.axes[n]) == len(shape)]


def _summed(o: Operands) -> list[list[tuple[fx.Node, int]]]:
    """For each axis that is summed over: the operands and dims whose elements are multiplied with each other."""
    name, a = operator_name(o.node), arguments(o.node)
    if name in _PRODUCTS:
        first, second = (a[key] for key in _PRODUCTS[name])
        inner = -2 if o.values[second].dim() > 1 else -1
        return [[(first, -1), (second, inner)]]
    if name == "scaled_dot_product_attention":
        return [[(a["query"], -1), (a["key"], -1)]]
    if name == "einsum" and "." not in a["equation"]:
        left, _, right = a["equation"].replace(" ", "").partition("->")
        terms = list(zip(left.split(","), a["tensors"], strict=True))
        letters = [letter for letter in dict.fromkeys(left) if letter not in f"{right},"]
        return [[(n, term.index(letter)) for term, n in terms if letter in term] for letter in letters]
    if name in ("sum", "norm", "linalg_vector_norm", "cumsum"):
        x = a["self"]
        return [[(x, dim)] for dim in dims(a.get("dim"), o.values[x].dim())]
    return []


def _describe_layer(groups: Groups, o: Operands, reader: Reader) -> bool:
    """Fill in what is known of a linear layer or convolution; False if the node is neither."""
    name = operator_name(o.node)
    a = arguments(o.node)
    linear, convolution = name == "linear", name in ("conv1d", "conv2d", "conv3d")
    if reader.statistic or not (linear or convolution) or not o.is_live(a["input"]) or o.is_live(a["weight"]):
        return False
    x, weight = o.values[a["input"]], o.values[a["weight"]]
    if weight.dim() < 2:
        return False
    count = 1 if linear else int(a["groups"])
    channel = x.dim() - 1 if linear else x.dim() - (weight.dim() - 2) - 1
    shape = (count, weight.shape[0] // count, weight.shape[1])
    reader.matters = (weight != 0).reshape(*shape, -1).any(-1).numpy()
    reader.weights = weight.double().reshape(*shape, -1).sum(-1).numpy()
    reader.values = _constants(x, o.unknown[a["input"]], channel).reshape(count, -1)
    by_group = _by_position(~o.unknown[a["input"]], channel).reshape(count, -1)
    reader.known = np.asarray(by_group.all(axis=0))
    padding: Any = a.get("padding")
    reader.padded = convolution and (padding != "valid" if isinstance(padding, str) else any(padding))
    reader.target = _target(groups, o.node, a)
    own = _own(groups, a["weight"], o.node, 1)
    reader.weight = own.tensor if own is not None else None
    return True


def _constants(x: Tensor, unknown: Tensor, channel: int) -> np.ndarray:
    """The one value of each channel, NaN where there is no single known value."""
    by_channel, unknown = x.double().movedim(channel, 0).flatten(1), unknown.movedim(channel, 0).flatten(1)
    first = by_channel[:, :1]
    close = (by_channel - first).abs() <= ROUNDING * by_channel.abs().amax(1, keepdim=True)
    single = close.all(1) & ~unknown.any(1)
    return torch.where(single, first[:, 0], torch.nan).numpy()


def _target(groups: Groups, node: fx.Node, a: dict[str, Any]) -> Target | None:
    """The operator's own bias, or the running mean of the BatchNorm that alone reads its result."""
    if a["bias"] is not None:
        return _own(groups, a["bias"], node, 1)
    users = list(node.users)
    if len(users) != 1 or operator_name(users[0]) != "batch_norm":
        return None
    norm = arguments(users[0])
    channel_last = node.meta["val"].dim() == 2 or operator_name(node) != "linear"
    if norm["training"] or norm["running_mean"] is None or norm["input"] is not node or not channel_last:
        return None
    return _own(groups, norm["running_mean"], users[0], -1)


def _own(groups: Groups, tensor: fx.Node, user: fx.Node, sign: int) -> Target | None:
    """The tensor of a node as a target, if `user` alone uses it."""
    graph = groups.graph
    names = {n: graph.canonical.get(graph.tensors.get(n.name, "")) for n in graph.nodes if n.op == "get_attr"}
    name = names.get(tensor)
    if name is None:
        return None
    users = [reader for n, own in names.items() if own == name for reader in n.users]
    return Target(name, sign) if users == [user] else None
