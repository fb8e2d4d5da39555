"""The tiny graphs to time for a model: each of its operators at a few combinations of sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from surgeon.device.layout_probes import Probe
from surgeon.device.microbenchmark import AWAKE, COLD_FLUSH, Point, whole_point
from surgeon.device.onnx_protobuf import elementwise
from surgeon.ir.polynomial import evaluate
from surgeon.latency.onnx_builder import Builder
from surgeon.latency.onnx_micrographs import BLOCKS, FED, apply, masked, operand_shapes, positions, tiny, weight_bytes
from surgeon.latency.operator_kinds import IMAGE
from surgeon.latency.operators import Operator
from surgeon.latency.ort_layout import DECIDED, STANDING, passes

Dims = tuple[int, ...]

#: Bytes to read before an operator that reads the model's inputs, which are cold.
INPUT_FLUSH = 8 << 20
#: Input channels of convolutions that read the NCHW layout and write NCHWc, if a device has that path.
FEW_CHANNELS = (3, 7, 13)
_MAY_GET_FEW = 128
# An odd number of channels, more than any such path takes.
_NOT_FEW = 17
# Channels of the widest blocks of any CPU, and the multiple that the NCHWc layout needs on any CPU.
_BLOCK, _ROUND = 16, 8
# An operator with fewer multiply-accumulate operations is too short to be timed alone.
_SHORT = 400_000
_MOST_COPIES = 16
#: The lengths of chains of convolutions, each with its own weights, that show what cold weights cost; and their
#: channels and spatial size.
COLD = ((1, 8, 32, 64, 128, 384), 256, 7)
COLD_WEIGHT = 4 * COLD[1] ** 2
#: A weight that is used in at most this many positions is limited by memory bandwidth.
FEW_POSITIONS = 8
#: A model with fewer multiply-accumulate operations is run several times in a timing: its inputs are in the caches.
_REPEATED = 10_000_000
#: Numbers of operators in a model, on almost no data, for the overhead of a run; with several threads, also on enough
#: for them, which they wake for.
RUNS = (1, 9)
# Curves over the number of elements, or of operations, common to all models; and the kinds that use each.
CURVES = {"copy": (4_000, 40_000, 400_000), "work": (1_000, 100_000)}
CURVE_OF = {"copy": "copy", "concat": "copy", "work": "work"}
# Tensors that are reordered from the NCHWc layout and back: their spatial sizes and numbers of elements.
REORDERS = tuple((size, FED * size * size) for size in (4, 14, 28, 56, 112))


def sizes_at(operator: Operator, widths: Mapping[int, int]) -> Dims:
    return tuple(max(1, round(float(evaluate(terms, widths)))) for terms in operator.dims)


def variable(operator: Operator) -> tuple[int, ...]:
    """The places of the sizes that depend on widths."""
    return tuple(place for place, terms in enumerate(operator.dims) if any(terms_leaves for terms_leaves in terms))


def corners(operator: Operator, full: Dims, odd: bool) -> Iterator[Dims]:
    """The sizes at which the operator is measured: each variable size low and high, with all high at the end.

    With `odd` they are not multiples of anything that the NCHWc layout could require, without it they are.
    """
    places = variable(operator)
    choices = []
    for place in places:
        a, b = low(full[place]), full[place]
        if odd:
            a = max(a + 1, _NOT_FEW) if operator.kind == "conv" and place == 0 else a + 1
            b = max(b - 1 + b % 2, a + 2)
        elif operator.kind in DECIDED and b > _ROUND:
            b -= b % _ROUND
        choices.append((a, b))
    for chosen in itertools.product(*map(dict.fromkeys, choices)):
        dims = list(full)
        for place, size in zip(places, chosen, strict=True):
            dims[place] = size
        yield tuple(dims)


def direct(operator: Operator, full: Dims) -> Iterator[Dims]:
    """The sizes at which a convolution is measured on few channels, if it can get that narrow."""
    if operator.kind == "conv" and 0 in variable(operator) and full[0] <= _MAY_GET_FEW:
        for few in FEW_CHANNELS:
            for out in dict.fromkeys((low(full[1]), full[1]) if 1 in variable(operator) else (full[1],)):
                if few < full[0]:
                    yield few, out


def low(size: int) -> int:
    """The low corner of a size: about a third of it, rounded down to a multiple of a power of two; at least a block.

    >>> [low(size) for size in (512, 96, 32, 18, 6, 1)]
    [160, 32, 16, 4, 2, 1]
    """
    third = max(1, size // 3, _BLOCK if size >= 3 * _BLOCK // 2 else 1)
    grain = max((grain for grain in (32, 16, 8, 4, 2, 1) if grain <= third), default=1)
    return third // grain * grain


def points(operators: Iterable[Operator], full: Mapping[int, int]) -> list[Point]:
    """All graphs to be measured for these operators, each once."""
    operators = list(operators)
    total = sum(weight_bytes(o.kind, sizes_at(o, full), o.static) for o in operators)
    work = sum(_work(o.kind, sizes_at(o, full), o.static) for o in operators)
    flush = INPUT_FLUSH if work > _REPEATED else 0
    found: dict[tuple[str, Dims], Point] = {}
    kinds = {operator.kind for operator in operators}
    for operator in operators:
        if operator.kind in CURVE_OF or operator.kind == "view":
            continue
        sizes = sizes_at(operator, full)
        variants = [*corners(operator, sizes, odd=False)]
        if operator.kind in DECIDED and variable(operator):
            variants += [*corners(operator, sizes, odd=True), *direct(operator, sizes)]
        for dims in variants:
            if (operator.key, dims) not in found:
                found[operator.key, dims] = point(operator.kind, operator.key, operator.static, dims, flush)
    for curve in sorted({CURVE_OF[kind] for kind in kinds & CURVE_OF.keys()}):
        for size in CURVES[curve]:
            found[curve, (size,)] = point(curve, curve, {}, (size,))
    if kinds & BLOCKS:
        for size, elements in REORDERS:
            found["plain", (elements,)] = Point("plain", (elements,), _neg(size, between=False))
            found["reordered", (elements,)] = Point("reordered", (elements,), _neg(size, between=True))
    streams = any(few_positions(operator, sizes_at(operator, full)) for operator in operators)
    for count in COLD[0]:
        # One alone has warm caches; several have cold ones, as a model that is run now and then.
        between, model = COLD_FLUSH if count > 1 else 0, _in_a_row(count, "Conv", (COLD[2],) * 2)
        found["cold", (count,)] = Point("cold", (count,), model, copies=count, flush=between)
        if streams:
            # With a single row, each weight is read for one multiplication.
            rows = _in_a_row(count, "Gemm", transB=1)
            found["stream", (count,)] = whole_point("stream", (count,), rows, count * COLD_WEIGHT)
        if count * COLD_WEIGHT > total:
            break
    for count in RUNS:
        found["run", (count,)] = whole_point("run", (count,), elementwise(["Neg"] * count, (1, 16)))
        wake = whole_point("wake", (count,), elementwise(["Neg"] * count, AWAKE))
        found["wake", (count,)] = replace(wake, flush=0, threaded=True)
    return list(found.values())


def few_positions(operator: Operator, dims: Dims) -> bool:
    """Whether an operator is limited by reading its weights from memory."""
    return bool(weight_bytes(operator.kind, dims, operator.static)) and (
        positions(operator.kind, dims, operator.static) <= FEW_POSITIONS
    )


def _work(kind: str, dims: Dims, static: Mapping[str, Any]) -> int:
    """The multiply-accumulate operations of an operator with weights."""
    return int(weight_bytes(kind, dims, static)) // 4 * positions(kind, dims, static)


def point(kind: str, key: str, static: Mapping[str, Any], dims: Dims, flush: int = INPUT_FLUSH) -> Point:
    """The graph of an operator, in as many copies as timing needs; operators that read the inputs get a `flush`."""
    work = _work(kind, dims, static)
    copies = min(_MOST_COPIES, math.ceil(_SHORT / work)) if work else 1
    made = tiny(kind, static, dims, copies)
    return Point(key, dims, made.model, made.inputs, copies, flush if static.get("input") else 0)


def _in_a_row(count: int, operator: str, spatial: Dims = (), **attributes: Any) -> bytes:
    """A chain of operators with square weights, which evict one another's weights from the caches."""
    b, channels = Builder(), COLD[1]
    value = b.input((1, channels, *spatial))
    for _ in range(count):
        value = b.node(operator, [value, b.weight([channels, channels, *(1 for _ in spatial)])], **attributes)
    return b.finish(value)


def _neg(size: int, between: bool) -> bytes:
    """An operator without an NCHWc kernel, `between` two that run in the NCHWc layout, or apart from them.

    The difference is the time to reorder a tensor from the NCHWc layout and back.
    """
    b = Builder()
    shape = (1, FED, size, size)

    def convolved(value: str) -> str:
        return b.node("Conv", [value, b.weight([FED, 1, 1, 1])], group=FED)

    if between:
        return b.finish(convolved(b.node("Neg", [convolved(b.input(shape))])))
    return b.finish(convolved(convolved(b.input(shape))), b.node("Neg", [b.input(shape)]))


def probes() -> list[Probe]:
    """The probes of widths that keep the NCHWc layout, common to all models."""
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
    return b.finish(b.node("Conv", [x, weight], group=groups, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))


def _pool(channels: int) -> bytes:
    b = Builder()
    return b.finish(b.node("MaxPool", [b.input((1, channels, 4, 4))], kernel_shape=[2, 2], strides=[2, 2]))


def _concat(channels: int) -> bytes:
    """The concatenated outputs of two convolutions, read by a third."""
    b = Builder()
    x = b.input((1, FED, 4, 4))
    parts = [b.node("Conv", [x, b.weight([channels, FED, 1, 1])]) for _ in range(2)]
    return b.finish(b.node("Conv", [b.node("Concat", parts, axis=1), b.weight([FED, 2 * channels, 1, 1])]))


def passing(operator: Operator, full: Dims) -> Probe:
    """A probe whether a separate elementwise operator runs in the NCHWc layout between two convolutions.

    `full` are its sizes at full width, (batch, channels, height, width).
    """
    b = Builder()
    shape = (full[0], FED, *(min(4, size) for size in full[2:]))

    def convolved(sizes: Dims) -> str:
        """The output of a convolution; for fewer axes or channels, an input."""
        value = b.input(sizes)
        if len(sizes) < len(shape) or sizes[1] != FED:
            return value
        return b.node("Conv", [value, b.weight([FED, FED, *(1 for _ in sizes[2:])])])

    if operator.kind == "batch_norm":
        value = b.node("BatchNormalization", [convolved(shape), *(b.weight([FED]) for _ in range(4))])
    else:
        value = convolved(masked(operator.static["first"], shape))
    chain = operator.static["chain"]
    extra = [convolved(sizes) for sizes in operand_shapes(chain, shape)]
    value = apply(b, chain, value, shape, extra)
    last = b.node("Conv", [value, b.weight([FED, FED, *(1 for _ in shape[2:])])])
    return Probe(passes(operator), {FED: b.finish(last)})


def questions(operators: Iterable[Operator], full: Mapping[int, int]) -> list[Probe]:
    """All probes that these operators need: those for all models, and one for each distinct separate elementwise
    operator on images. `full` holds the leaves' full widths."""
    found = {probe.name: probe for probe in probes()}
    for operator in operators:
        if operator.kind in STANDING and len(operator.dims) == IMAGE and passes(operator) not in found:
            found[passes(operator)] = passing(operator, sizes_at(operator, full))
    return list(found.values())
