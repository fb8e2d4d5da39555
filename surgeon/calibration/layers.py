"""Operators that multiply their input by a parameter, in a common form: rows (G, n, f) times a matrix (G, f, o).

G is the number of independent groups: those of a convolution, or the batch of a matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from surgeon.calibration.im2col import at_positions, windows
from surgeon.calibration.parameter_slots import Finder, Slot
from surgeon.ir.operators import operator_name
from surgeon.rules import arguments
from surgeon.rules.base import size_of


class Rows(Protocol):
    """From an input and an output to rows of both, given the share of the rows to take.

    `shown` is true of the positions of the output to take rows from, with as many axes as it has; by default all.
    """

    def __call__(
        self, x: Tensor, y: Tensor, share: float, generator: torch.Generator, shown: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...



@dataclass(frozen=True)
class Contraction:
    """An operator `node` that reads `source` and multiplies it by `weight`.

    `rows` converts an input and an output to rows; `matrix` and `unmatrix` convert between the weight's own shape and
    (G, f, o); `along` converts one number for each output unit, (G, o), to a shape that can be added to the output, and
    is None where the output has no separate axis for units. `bias` is the operator's own. Of a convolution that is not
    grouped, each channel has as many inputs as the kernel has `taps`, one after the other.
    """

    node: fx.Node
    source: fx.Node
    weight: Slot
    rows: Rows = field(repr=False)
    matrix: Callable[[Tensor], Tensor] = field(repr=False)
    unmatrix: Callable[[Tensor], Tensor] = field(repr=False)
    along: Callable[[Tensor], Tensor] | None = field(repr=False)
    bias: Slot | None = None
    unknown_bias: bool = False
    taps: int = 1


def find(node: fx.Node, copy: fx.Node, find_slot: Finder) -> Contraction | None:
    """A node of the original graph as a contraction; None for anything else, or where the weight is computed.

    `copy` is the same operator in the smaller graph, whose arguments may differ.
    """
    reader = _READERS.get(operator_name(node))
    if reader is None:
        return None
    given, printed = arguments(node), arguments(copy)
    if "groups" in given:
        given["groups"] = printed["groups"]
    return reader(node, given, find_slot)


def _linear(node: fx.Node, a: dict[str, Any], find_slot: Finder) -> Contraction | None:
    weight = find_slot(a["weight"], node)
    if weight is None or weight.places.dim() != 2:
        return None
    return _plain(node, a["input"], weight, a["bias"], find_slot, transposed=True)


def _addmm(node: fx.Node, a: dict[str, Any], find_slot: Finder) -> Contraction | None:
    weight = find_slot(a["mat2"], node)
    if weight is None or a["alpha"] != 1 or a["beta"] != 1:
        return None
    return _plain(node, a["mat1"], weight, a["self"], find_slot, transposed=False)


def _matmul(node: fx.Node, a: dict[str, Any], find_slot: Finder) -> Contraction | None:
    weight = find_slot(a.get("mat2", a.get("other")), node)
    if weight is None or not isinstance(a["self"], fx.Node):
        return None
    if weight.places.dim() == 2:
        return _plain(node, a["self"], weight, None, find_slot, transposed=False)
    if weight.places.dim() == 3 and size_of(a["self"])[:-2] == size_of(weight.node)[:-2]:
        return Contraction(node, a["self"], weight, _batched_rows, lambda w: w, lambda m: m, along=None)
    return None


def _plain(
    node: fx.Node, source: fx.Node, weight: Slot, bias: Any, find_slot: Finder, *, transposed: bool
) -> Contraction:
    """(…, f) times a matrix of two axes, plus a bias of one."""
    slot = find_slot(bias, node)
    if slot is not None and slot.places.squeeze().dim() > 1:
        slot = None
    turn: Callable[[Tensor], Tensor] = Tensor.t if transposed else lambda w: w
    return Contraction(
        node, source, weight, _token_rows, lambda w: turn(w)[None], lambda m: turn(m[0]), along=lambda v: v[0],
        bias=slot, unknown_bias=bias is not None and slot is None,
    )


def _convolution(node: fx.Node, a: dict[str, Any], find_slot: Finder) -> Contraction | None:
    weight = find_slot(a["weight"], node)
    value = a["input"].meta.get("val")
    if weight is None or a.get("transposed") or not isinstance(value, Tensor) or value.dim() != weight.places.dim():
        return None
    shape, groups, bias = weight.places.shape, int(a["groups"]), find_slot(a["bias"], node)
    spatial = len(shape) - 2

    def rows(
        x: Tensor, y: Tensor, share: float, generator: torch.Generator, shown: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        count = math.prod(y.shape[2:])
        chosen = _some(count, share, generator, x.device) if share < 1 else None
        inputs = windows(x, a, shape[2:], chosen)
        batch, channels, count = inputs.shape[:3]
        # (B, C, m, *kernel) -> (G, B m, C/G kernel)
        inputs = inputs.reshape(batch, groups, channels // groups, count, -1).permute(1, 0, 3, 2, 4)
        targets = at_positions(y, chosen).reshape(batch, groups, shape[0] // groups, count)
        inputs = inputs.reshape(groups, batch * count, -1)
        targets = targets.permute(1, 0, 3, 2).reshape(groups, batch * count, -1)
        if shown is None:
            return inputs, targets
        own = at_positions(shown.expand(y.shape), chosen)[:, 0].flatten()
        return inputs[:, own], targets[:, own]

    return Contraction(
        node, a["input"], weight, rows,
        matrix=lambda w: w.reshape(groups, shape[0] // groups, -1).transpose(1, 2),
        unmatrix=lambda m: m.transpose(1, 2).reshape(shape),
        along=lambda v: v.reshape(-1, *[1] * spatial),
        bias=bias, unknown_bias=a["bias"] is not None and bias is None,
        taps=math.prod(shape[2:]) if groups == 1 else 1,
    )


def _einsum(node: fx.Node, a: dict[str, Any], find_slot: Finder) -> Contraction | None:
    """Two operands, of which one is a parameter; the letters of both that stay are the groups."""
    left, _, right = a["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != 2 or "." in left or not right:
        return None
    slots = [find_slot(operand, node) for operand in a["tensors"]]
    place = next((i for i, slot in enumerate(slots) if slot is not None), None)
    if place is None or slots[1 - place] is not None:
        return None
    weight, w, of_x = slots[place], terms[place], terms[1 - place]
    assert weight is not None
    both, summed = [c for c in right if c in w and c in of_x], [c for c in w if c in of_x and c not in right]
    units, rest = [c for c in w if c not in of_x], [c for c in of_x if c not in w]
    if any(c not in right for c in (*units, *rest)) or len(set(w)) < len(w) or len(set(of_x)) < len(of_x):
        return None
    sizes = dict(zip(w, weight.places.shape, strict=True))
    shape = [math.prod(sizes[c] for c in part) for part in (both, summed, units)]
    order = [w.index(c) for c in (*both, *summed, *units)]

    def targets_of(out: Tensor) -> Tensor:
        return out.permute([right.index(c) for c in (*both, *rest, *units)]).reshape(shape[0], -1, shape[2])

    def rows(
        x: Tensor, y: Tensor, share: float, generator: torch.Generator, shown: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        inputs = x.permute([of_x.index(c) for c in (*both, *rest, *summed)]).reshape(shape[0], -1, shape[1])
        own = None if shown is None else targets_of(shown.expand(y.shape))[0, :, 0]
        chosen = _some(inputs.shape[1], share, generator, x.device, own)
        return inputs[:, chosen], targets_of(y)[:, chosen]

    def unmatrix(m: Tensor) -> Tensor:
        whole = m.reshape([sizes[w[i]] for i in order])
        return whole.permute([order.index(i) for i in range(len(order))])

    return Contraction(
        node, a["tensors"][1 - place], weight, rows, lambda v: v.permute(order).reshape(shape), unmatrix, along=None
    )


def _token_rows(
    x: Tensor, y: Tensor, share: float, generator: torch.Generator, shown: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    own = None if shown is None else shown.expand(y.shape)[..., 0].flatten()
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    chosen = _some(len(x), share, generator, x.device, own)
    return x[chosen][None], y[chosen][None]


def _batched_rows(
    x: Tensor, y: Tensor, share: float, generator: torch.Generator, shown: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    own = None if shown is None else shown.expand(y.shape)[0, :, 0]
    chosen = _some(x.shape[1], share, generator, x.device, own)
    return x[:, chosen], y[:, chosen]


def _some(
    count: int, share: float, generator: torch.Generator, device: torch.device, shown: Tensor | None = None
) -> Tensor:
    """A share of `count` places, or of those that are shown, ascending, drawn at random unless all are taken."""
    places = None if shown is None else shown.nonzero().flatten()
    count = count if places is None else len(places)
    wanted = math.ceil(count * min(share, 1.0))
    if wanted >= count:
        return torch.arange(count, device=device) if places is None else places
    chosen = torch.randperm(count, generator=generator)[:wanted].sort().values.to(device)
    return chosen if places is None else places[chosen]


_READERS: dict[str, Callable[[fx.Node, dict[str, Any], Finder], Contraction | None]] = {
    "linear": _linear, "addmm": _addmm, "einsum": _einsum,
    **dict.fromkeys(("mm", "bmm", "matmul"), _matmul),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
}
