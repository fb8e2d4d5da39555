"""Padding: positions of a batch that its mask hides, which count neither in moments nor in losses.

Two protocols are known, by the name of an input of shape (batch, length): `attention_mask`, of Hugging Face's models,
is 1 where there is a token and 0 where there is padding; `key_padding_mask`, of `torch.nn.Transformer`, is True where
there is padding. With a prefix, as in `decoder_attention_mask`, it is of the inputs that have the same prefix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from surgeon.frontend.trace import Graph, Inputs
from surgeon.groups.coupling import Groups
from surgeon.ir.axes import ONE, Axis, Prod
from surgeon.ir.operators import operator_name

#: The ends of the names of masks, and whether a mask is true of what it shows.
_PROTOCOLS = {"attention_mask": True, "key_padding_mask": False}
#: What the names of a decoder's inputs begin with, which an encoder's mask says nothing of.
_DECODER = "decoder_"


@dataclass(frozen=True)
class Mask:
    """An input that hides padding: its place among the inputs, and whether it is true of what it shows."""

    leaf: int
    name: str
    shows: bool

    def of(self, leaves: list[object]) -> Tensor | None:
        """True where there is no padding, (batch, length); None where nothing is hidden, or that can't be told."""
        value = leaves[self.leaf]
        if not isinstance(value, Tensor) or not bool(((value == 0) | (value == 1)).all()):
            return None
        shown = value.bool() if self.shows else ~value.bool()
        return None if bool(shown.all()) else shown


def masks(graph: Graph) -> list[Mask]:
    """The inputs of a graph that hide padding.

    >>> import torch
    >>> from torch import nn
    >>> from surgeon.frontend.trace import trace
    >>> class Mean(nn.Module):
    ...     def forward(self, x, attention_mask):
    ...         return (x * attention_mask[..., None]).mean(1)
    >>> masks(trace(Mean(), (torch.zeros(2, 5, 3), torch.ones(2, 5))))
    [Mask(leaf=1, name='attention_mask', shows=True)]
    """
    found = []
    for leaf, node in enumerate(_placeholders(graph)):
        value = node.meta.get("val")
        shows = next((shows for end, shows in _PROTOCOLS.items() if node.name.endswith(end)), None)
        if shows is not None and isinstance(value, Tensor) and value.dim() == 2:
            found.append(Mask(leaf, node.name, shows))
    return found


class Padding:
    """Where the values of a graph hold padding, by the axes that they have in common with masked inputs.

    >>> import torch
    >>> from torch import nn
    >>> from surgeon.frontend.trace import trace
    >>> from surgeon.groups.coupling import couple
    >>> class Mean(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
    ...     def forward(self, x, attention_mask):
    ...         return self.b((self.a(x) * attention_mask[..., None]).mean(1))
    >>> groups = couple(trace(Mean(), (torch.zeros(2, 5, 3), torch.ones(2, 5))))
    >>> batch = ((torch.zeros(1, 5, 3), torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]])), {})
    >>> linear, *_ = (node for node in groups.graph.nodes if node.name == "linear")
    >>> Padding(groups).shown(linear, batch).shape, len(Padding(groups).values(linear, torch.zeros(1, 5, 4), batch))
    (torch.Size([1, 5, 1]), 8)
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self.masks = masks(groups.graph)
        inputs = _placeholders(groups.graph)
        self._lengths: list[tuple[Mask, set[Axis], set[Axis]]] = []
        for mask in self.masks:
            own = inputs[mask.leaf]
            prefix = own.name[: -len(next(end for end in _PROTOCOLS if own.name.endswith(end)))]
            alike = [
                groups.axes[node] for node in inputs
                if node.name.startswith(prefix) and (prefix or not node.name.startswith(_DECODER))
                and _sizes(node) == _sizes(own)
            ]
            axes = [[groups.space.resolve(axis) for axis in each[:2]] for each in alike if isinstance(each, tuple)]
            batches, lengths = ({each[place] for each in axes} for place in (0, 1))
            if ONE not in lengths:
                self._lengths.append((mask, batches, self._along(lengths)))

    def _along(self, lengths: set[Axis]) -> set[Axis]:
        """These lengths, and those of the convolutions along them that have an output for each of their inputs."""
        found, resolve = set(lengths), self._groups.space.resolve
        for node in self._groups.graph.nodes:
            axes = self._groups.axes.get(node)
            source = node.all_input_nodes[0] if node.all_input_nodes else None
            read = self._groups.axes.get(source) if source is not None else None
            if operator_name(node).startswith("conv") and isinstance(axes, tuple) and isinstance(read, tuple):
                found |= {
                    resolve(b) for a, b in zip(read[2:], axes[2:], strict=False)
                    if a.size == b.size and resolve(a) in found
                }
        return found

    def shown(self, node: fx.Node, batch: Inputs) -> Tensor | None:
        """True where the value of a node holds no padding, with its number of axes; None where it holds none at all."""
        axes = self._groups.axes.get(node)
        if not self.masks or not isinstance(axes, tuple):
            return None
        factors = [_factors(self._groups.space.resolve(axis)) for axis in axes]
        leaves = pytree.tree_leaves(batch)
        for mask, batches, lengths in self._lengths:
            places = _places(factors, batches, lengths)
            shown = mask.of(leaves) if places is not None else None
            if places is not None and shown is not None:
                return _arranged(shown, factors, *places)
        return None

    def values(self, node: fx.Node, value: Tensor, batch: Inputs) -> Tensor:
        """What the value of a node holds besides padding, in a row; the value itself where it holds none."""
        shown = self.shown(node, batch)
        return value if shown is None else value[shown.expand(value.shape)]

    def count(self, node: fx.Node, value: Tensor, batch: Inputs) -> int:
        """How many numbers the value of a node holds besides padding."""
        shown = self.shown(node, batch)
        return value.numel() if shown is None else int(shown.sum()) * (value.numel() // shown.numel())

    def outputs(self, batch: Inputs) -> list[Tensor | None]:
        """`shown` of each floating tensor that the graph gives."""
        output = self._groups.graph.output
        nodes = (each for each in pytree.tree_leaves((output.args, output.kwargs)) if isinstance(each, fx.Node))
        values = [(node, node.meta.get("val")) for node in nodes]
        return [
            self.shown(node, batch) for node, value in values
            if isinstance(value, Tensor) and value.is_floating_point()
        ]

    def in_a_row(self, outputs: Sequence[Tensor], batch: Inputs) -> list[Tensor]:
        """What each of the floating tensors that the graph gives holds besides padding."""
        return [
            output if shown is None else output[shown.expand(output.shape)]
            for output, shown in zip(outputs, self.outputs(batch), strict=True)
        ]


# Of an axis of a value, and of its factors.
Place = tuple[int, int]


def _factors(axis: Axis) -> tuple[Axis, ...]:
    return axis.factors if isinstance(axis, Prod) else (axis,)


def _places(
    axes: list[tuple[Axis, ...]], batches: set[Axis], lengths: set[Axis]
) -> tuple[Place | None, Place] | None:
    """Where a value has the batch, None for a batch of one, and the length; None where that is not clear."""
    rows, columns = (
        [(place, at) for place, factors in enumerate(axes) for at, axis in enumerate(factors) if axis in wanted]
        for wanted in (batches, lengths)
    )
    if len(columns) != 1 or len(rows) != (ONE not in batches):
        return None
    return rows[0] if rows else None, columns[0]


def _arranged(shown: Tensor, axes: list[tuple[Axis, ...]], rows: Place | None, columns: Place) -> Tensor:
    """A mask (batch, length) with an axis for each of a value's, of size 1 where it is the same all along."""
    sizes = {columns: shown.shape[1]} if rows is None else {rows: shown.shape[0], columns: shown.shape[1]}
    mixed = {place for place, _ in sizes}
    apart: list[int] = []
    whole: list[list[int]] = []
    for place, factors in enumerate(axes):
        own = [sizes.get((place, at)) for at in range(len(factors))]
        apart += [size or 1 for size in own]
        whole.append([
            (size or axis.size) if place in mixed else 1 for size, axis in zip(own, factors, strict=True)
        ])
    turned = shown if rows is None or rows < columns else shown.t()
    filled = turned.reshape(apart).expand([size for factors in whole for size in factors])
    return filled.reshape([math.prod(factors) for factors in whole])


def _placeholders(graph: Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _sizes(node: fx.Node) -> tuple[object, ...]:
    value: object = node.meta.get("val")
    return tuple(map(int, value.shape[:2])) if isinstance(value, Tensor) and value.dim() >= 2 else (node,)
