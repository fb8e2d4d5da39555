"""Which tiny graphs are put on the clock for a model: each of its operators at a few corners of its sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from surgeon.cost import Terms
from surgeon.device.points import Point
from surgeon.device.rules import Probe
from surgeon.latency.builder import Builder
from surgeon.latency.operators import Operator
from surgeon.latency.tiny import BLOCKS, FED, positions, tiny, weight_bytes

Dims = tuple[int, ...]

#: Weights are cold in a model: so many bytes of other memory have pushed them out of the caches close to a core.
COLD_BYTES = 2 << 20
#: Where a weight is used but a few times, reading it is most of the work: it must come from as far as in the model.
COLDER_BYTES = 16 << 20
_FEW_USES = 64
# An operator of fewer multiply-accumulate operations is too short for the clock, alone.
_SHORT = 400_000
_MOST_COPIES = 16
# Kinds whose time is a curve over the number of elements, the same for all models.
CURVES = {"copy": (4_000, 40_000, 400_000), "work": (1_000, 100_000)}
REORDERS = tuple(((FED, size, size), FED * size * size) for size in (4, 14, 28, 56))


def evaluate(terms: Terms, widths: Mapping[int, Any]) -> Any:
    """A polynomial at widths that may be arrays."""
    total: Any = 0.0
    for leaves, factor in terms.items():
        part: Any = factor
        for leaf in leaves:
            part = part * widths[leaf]
        total = total + part
    return total


def sizes_at(operator: Operator, widths: Mapping[int, int]) -> Dims:
    """The operator's sizes as integers."""
    return tuple(max(1, round(float(evaluate(terms, widths)))) for terms in operator.dims)


def variable(operator: Operator) -> tuple[int, ...]:
    """The places of the sizes that depend on widths."""
    return tuple(place for place, terms in enumerate(operator.dims) if any(terms_leaves for terms_leaves in terms))


def corners(operator: Operator, full: Dims, odd: bool) -> Iterator[Dims]:
    """The sizes at which the operator is measured: each variable size low and high.

    With `odd` they are one off, so that they are multiples of nothing that a fast layout could ask for.
    """
    places = variable(operator)
    choices = [(low(full[place]), full[place]) for place in places]
    if odd:
        choices = [(a + 1, max(b - 1 + b % 2, a + 3)) for a, b in choices]
    for chosen in itertools.product(*map(dict.fromkeys, choices)):
        dims = list(full)
        for place, size in zip(places, chosen, strict=True):
            dims[place] = size
        yield tuple(dims)


def low(size: int) -> int:
    """The low corner of a size: about a third of it, and as round as that allows.

    >>> [low(size) for size in (512, 96, 24, 6, 1)]
    [160, 32, 8, 2, 1]
    """
    third = max(1, size // 3)
    grain = max((grain for grain in (32, 16, 8, 4, 2, 1) if grain <= third), default=1)
    return third // grain * grain


def points(operators: Iterable[Operator], full: Mapping[int, int]) -> list[Point]:
    """Every graph to be measured for these operators, once."""
    operators = list(operators)
    total = sum(weight_bytes(o.kind, sizes_at(o, full), o.static) for o in operators)
    found: dict[tuple[str, Dims], Point] = {}
    kinds = {operator.kind for operator in operators}
    for operator in operators:
        if operator.kind in CURVES:
            continue
        sizes = sizes_at(operator, full)
        variants = [*corners(operator, sizes, odd=False)]
        if operator.kind in (*BLOCKS, "pool") and variable(operator):
            variants += corners(operator, sizes, odd=True)
        for dims in variants:
            if (operator.key, dims) not in found:
                found[operator.key, dims] = point(operator.kind, operator.key, operator.static, dims, total)
    for kind in CURVES.keys() & kinds:
        for elements in CURVES[kind]:
            found[kind, (elements,)] = point(kind, kind, {}, (elements,), 0)
    if kinds & BLOCKS:
        for shape, elements in REORDERS:
            for which in ("plain", "reordered"):
                found[which, (elements,)] = Point(which, (elements,), _neg(shape, which == "reordered"), {}, 1)
    return list(found.values())


def point(kind: str, key: str, static: Mapping[str, Any], dims: Dims, total: int) -> Point:
    """The graph of an operator in a model with `total` bytes of weights, which push one another out of the caches."""
    own, uses = weight_bytes(kind, dims, static), positions(kind, dims, static)
    flush = min(COLDER_BYTES if uses <= _FEW_USES else COLD_BYTES, total) // 8 * 8 if own else 0
    copies = min(_MOST_COPIES, math.ceil(_SHORT / (own // 4 * uses))) if flush else 1
    made = tiny(kind, static, dims, copies)
    return Point(key, dims, made.model, made.inputs, copies, flush)


def _neg(shape: Sequence[int], reordered: bool) -> bytes:
    """An operator that knows no blocks, on a tensor that comes in blocks or does not: the difference is the reorder."""
    b = Builder()
    x = b.input((1, *shape))
    if reordered:
        x = b.node("Conv", [x, b.weight([shape[0], shape[0], 1, 1])], prefix="feed_")
    b.output(b.node("Neg", [x]))
    return b.bytes()


def probes() -> list[Probe]:
    """What is asked about the widths that keep the fast layout, whatever the model."""
    odd = {width: _convolution(FED, width, 1) for width in (17, 33, 49)}
    every = range(FED, 2 * FED + 1)
    return [
        Probe("block", odd, "block"),
        Probe("direct", {width: _convolution(width, FED, 1) for width in range(1, FED + 1)}, "direct"),
        Probe("conv_in", {width: _convolution(width, FED, 1) for width in every}),
        Probe("conv_out", {width: _convolution(FED, width, 1) for width in every}),
        Probe("depthwise", {width: _convolution(width, width, width) for width in every}),
        Probe("grouped", {width: _convolution(2 * width, 2 * width, 2) for width in range(1, FED + 1)}),
        Probe("pool", {width: _pool(width) for width in every}),
        Probe("concat", {width: _concat(width) for width in every}),
    ]


def _convolution(channels: int, out: int, groups: int) -> bytes:
    b = Builder()
    x = b.input((1, channels, 4, 4))
    weight = b.weight([out, channels // groups, 3, 3])
    b.output(b.node("Conv", [x, weight], group=groups, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
    return b.bytes()


def _pool(channels: int) -> bytes:
    b = Builder()
    b.output(b.node("MaxPool", [b.input((1, channels, 4, 4))], kernel_shape=[2, 2], strides=[2, 2]))
    return b.bytes()


def _concat(channels: int) -> bytes:
    """Two results of convolutions, one after the other, read by a convolution."""
    b = Builder()
    x = b.input((1, FED, 4, 4))
    parts = [b.node("Conv", [x, b.weight([channels, FED, 1, 1])]) for _ in range(2)]
    b.output(b.node("Conv", [b.node("Concat", parts, axis=1), b.weight([FED, 2 * channels, 1, 1])]))
    return b.bytes()


def passing(operator: Operator, full: Dims) -> Probe:
    """Whether an elementwise operator that stands alone works on blocks between two convolutions."""
    b = Builder()
    shape = (full[0], FED, *(4 for _ in full[2:]))
    ones = [1 for _ in full[2:]]

    def convolved(name: str) -> str:
        return b.node("Conv", [name, b.weight([FED, FED, *ones])])

    from surgeon.latency.pointwise import POINTWISE

    value = convolved(b.input(shape))
    for name, settings, operands in operator.static["chain"]:
        others = []
        for given in operands:
            kind, _, rest = given.partition(":")
            sizes = tuple(size if letter == "n" else 1 for letter, size in zip(rest, shape, strict=False))
            if kind == "x":
                others.append(convolved(b.input(sizes)) if rest[1:2] == "n" else b.input(sizes))
            else:
                others.append(b.weight(sizes) if kind == "w" else b.constant(float(rest)))
        value = POINTWISE[name](b, value, others, settings)
    b.output(convolved(value))
    return Probe(f"passes {operator.key}", {FED: b.bytes()})
