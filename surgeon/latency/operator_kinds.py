"""What each ATen operator becomes in a run: its kind, its fixed settings, and its sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from surgeon.ir.convolution import each, pads
from surgeon.ir.operators import operator_name
from surgeon.ir.polynomial import Terms, product_of, sum_of
from surgeon.latency.fusion import link, operand
from surgeon.latency.pointwise_ops import POINTWISE
from surgeon.latency.symbolic_sizes import Sizes
from surgeon.rules.base import dims

Arguments = Mapping[str, Any]
#: The rank of a batch of images: only these tensors can be in the NCHWc layout.
IMAGE = 4


@dataclass(frozen=True)
class Described:
    """An operator's kind, its fixed settings, its sizes, and the tensors it reads. `chained` ones are fused with the
    elementwise operators after them; `first` is the start of that chain."""

    kind: str
    static: Mapping[str, Any]
    dims: tuple[Terms, ...]
    reads: tuple[fx.Node, ...]
    chained: bool = False
    first: tuple[Any, ...] = field(default=())


#: For operators in a form that their kind does not cover.
UNKNOWN = Described("unknown", {}, (), ())

Describe = Callable[[fx.Node, Arguments, Sizes], "Described | None"]
DESCRIBE: dict[str, Describe] = {}


def describe(node: fx.Node, given: Arguments, sizes: Sizes) -> Described | None:
    """The description of a node; None if it takes no time."""
    known = DESCRIBE.get(operator_name(node))
    found = known(node, given, sizes) if known is not None else UNKNOWN
    return _unknown(node, sizes) if found is UNKNOWN else found


def kind(*names: str) -> Callable[[Describe], Describe]:
    """Register a description under names of ATen operators."""

    def register(function: Describe) -> Describe:
        DESCRIBE.update(dict.fromkeys(names, function))
        return function

    return register


@kind("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _convolution(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    x, w, out = sizes.of(a["input"]), sizes.of(a["weight"]), sizes.of(node)
    rank = len(w) - 2
    given, result = sizes.plain(a["input"]), sizes.plain(node)
    weight = sizes.plain(a["weight"])
    kernel = list(weight[2:])
    static: dict[str, Any] = {
        "kernel": kernel,
        "stride": each(a["stride"], rank),
        "dilation": each(a["dilation"], rank),
        "spatial": list(given[-rank:]),
        "batch": math.prod(given[: -rank - 1]),
        "bias": True,  # if there is none, folding a BatchNorm into it adds one
    }
    before, after = pads(a["padding"], kernel, static["dilation"])
    static["pads"] = [*before, *after]
    inner, outer = x[-rank - 1], out[-rank - 1]
    reads = (a["input"],)
    if "transpose" in operator_name(node):
        if int(a["groups"]) != 1:
            return UNKNOWN
        static["output_padding"] = each(a["output_padding"], rank)
        return Described("conv_transpose", static, (inner, outer), reads)
    channels, groups = given[-rank - 1], int(a["groups"])
    if groups == 1:
        return Described("conv", static, (inner, outer), reads, chained=True)
    if weight[1] == 1:
        static["multiplier"] = result[-rank - 1] // channels
        return Described("depthwise", static, (inner,), reads, chained=True)
    return Described("grouped", static, (inner, outer, w[1]), reads, chained=True)


@kind("linear")
def _linear(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    x, out = sizes.of(a["input"]), sizes.of(node)
    if a["weight"] in sizes.live or len(sizes.plain(a["weight"])) != 2:
        return UNKNOWN
    static = {"rank": min(len(x), 3), "bias": a["bias"] is not None}
    return Described("linear", static, (product_of(x[:-1]), x[-1], out[-1]), (a["input"],), chained=True)


@kind("addmm")
def _addmm(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    if a["mat2"] in sizes.live or a["self"] in sizes.live:
        return UNKNOWN
    x, out = sizes.of(a["mat1"]), sizes.of(node)
    return Described("linear", {"rank": 2, "bias": True}, (x[0], x[1], out[1]), (a["mat1"],), chained=True)


@kind("matmul", "bmm", "mm")
def _matmul(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    left, right = a["self"], a.get("mat2", a.get("other"))
    x, y, out = sizes.of(left), sizes.of(right), sizes.of(node)
    if len(x) < 2 or len(y) < 2 or left not in sizes.live:
        return UNKNOWN
    weight = right not in sizes.live
    dims = (product_of(out[:-2]), out[-2], x[-1], out[-1])
    if weight and len(y) == 2:
        return Described("linear", {"rank": 3, "bias": False}, (product_of(dims[:2]), *dims[2:]), (left,), chained=True)
    return Described("matmul", {"weight": weight}, dims, (left,) if weight else (left, right), chained=True)


@kind("scaled_dot_product_attention")
def _attention(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    q, k, v = (sizes.of(a[name]) for name in ("query", "key", "value"))
    static = {"mask": a["attn_mask"] is not None or bool(a["is_causal"])}
    dims = (product_of(q[:-2]), q[-2], k[-2], q[-1], v[-1])
    return Described("attention", static, dims, (a["query"], a["key"], a["value"]))


@kind("layer_norm", "rms_norm")
def _layer_norm(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    x = sizes.of(a["input"])
    taken = len(a["normalized_shape"])
    return Described("layer_norm", {}, (product_of(x[:-taken]), product_of(x[-taken:])), (a["input"],))


@kind("group_norm", "instance_norm")
def _group_norm(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    """Groups, or channels, are treated as the rows of a LayerNorm."""
    x = sizes.of(a["input"])
    if operator_name(node) == "instance_norm":
        return Described("layer_norm", {}, (product_of(x[:2]), product_of(x[2:])), (a["input"],))
    groups = float(a["num_groups"])
    rows = product_of([x[0], {(): groups}])
    return Described("layer_norm", {}, (rows, product_of([*x[1:], {(): 1 / groups}])), (a["input"],))


@kind("batch_norm")
def _batch_norm(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    return Described("batch_norm", {}, sizes.of(node), (a["input"],), chained=True)


@kind("softmax", "_softmax", "log_softmax")
def _softmax(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    return Described("softmax", {"attributes": {"axis": int(a["dim"])}}, sizes.of(node), (a["self"],))


@kind("permute", "transpose")
def _transpose(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    before, after = sizes.plain(a["self"]), sizes.plain(node)
    rank = len(before)
    if operator_name(node) == "permute":
        order = [int(dim) % rank for dim in a["dims"]]
    else:
        order = list(range(rank))
        first, second = int(a["dim0"]) % rank, int(a["dim1"]) % rank
        order[first], order[second] = order[second], order[first]
    moved = [axis for axis in order if before[axis] != 1]
    if moved == sorted(moved) or all(operator_name(user) in _FUSES_TRANSPOSE for user in node.users) or not after:
        return None
    return Described("transpose", {"attributes": {"perm": order}}, sizes.of(a["self"]), (a["self"],))


# A matrix product can read its operands transposed.
_FUSES_TRANSPOSE = {"matmul", "bmm", "mm"}


@kind("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d")
def _pool(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    x, given, out = sizes.of(a["self"]), sizes.plain(a["self"]), sizes.plain(node)
    rank = int(operator_name(node)[-2])
    if len(given) != rank + 2:
        return UNKNOWN
    kernel = each(a["kernel_size"], rank)
    static = _pooling("MaxPool" if operator_name(node).startswith("max") else "AveragePool", given, out[2:], kernel)
    static |= {
        "stride": each(a["stride"] or kernel, rank), "pads": each(a["padding"], rank) * 2,
        "dilation": each(a.get("dilation", 1), rank), "ceil": bool(a["ceil_mode"]),
    }
    return Described("pool", static, (x[1],), (a["self"],))


def _pooling(operator: str, given: Sequence[int], out: Sequence[int], kernel: list[int]) -> dict[str, Any]:
    """The settings of a pooling with adjacent windows."""
    rank = len(kernel)
    return {
        "operator": operator, "kernel": kernel, "stride": kernel, "pads": [0] * 2 * rank, "dilation": [1] * rank,
        "ceil": False, "batch": given[0], "spatial": list(given[2:]), "out": list(out),
    }


@kind("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def _adaptive(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    rank = int(operator_name(node)[-2])
    x, given, out = sizes.of(a["self"]), sizes.plain(a["self"])[-rank:], sizes.plain(node)[-rank:]
    if any(size != 1 for size in out):
        if len(x) != rank + 2 or any(size % part for size, part in zip(given, out, strict=True)):
            return UNKNOWN
        kernel = [size // part for size, part in zip(given, out, strict=True)]
        static = _pooling("AveragePool", sizes.plain(a["self"]), out, kernel)
        return Described("pool", static, (x[1],), (a["self"],))
    return Described("reduce", {"operator": "ReduceMean", "axes": list(range(-rank, 0))}, x, (a["self"],))


_REDUCTIONS = {
    "mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin",
    "linalg_vector_norm": "ReduceL2",
}


@kind("mean", "sum", "amax", "amin", "linalg_vector_norm")
def _reduce(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    rank = len(sizes.plain(a["self"]))
    axes = [dim - rank for dim in dims(a.get("dim"), rank)]
    static = {"operator": _REDUCTIONS[operator_name(node)], "axes": axes}
    return Described("reduce", static, sizes.of(a["self"]), (a["self"],))


@kind("cat")
def _concat(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    """A concatenation of images can be in the NCHWc layout, depending on the channels of each."""
    parts = a["tensors"]
    if len(sizes.plain(node)) != IMAGE or int(a["dim"]) % IMAGE != 1:
        return UNKNOWN
    channels = [sizes.of(part)[1] for part in parts]
    return Described("concat", {}, (product_of(sizes.of(node)), *channels), tuple(parts))


@kind("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view", "reshape_as")
def _view(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    """A change of shape takes no time, but a tensor in the NCHWc layout is reordered to NCHW first."""
    return Described("view", {}, (), (a["self"],)) if len(sizes.plain(a["self"])) == IMAGE else None


@kind("_assert_tensor_metadata", "_assert_async", "_assert_scalar")
def _checked(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    """Assertions are not exported."""
    return None


@kind("slice", "expand")
def _part(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    """A slice or expansion that returns the whole tensor is not exported."""
    return None if sizes.plain(a["self"]) == sizes.plain(node) else UNKNOWN


def _pointwise(node: fx.Node, a: Arguments, sizes: Sizes) -> Described | None:
    """A separate elementwise operator, applied to its largest operand that depends on the inputs."""
    out = sizes.plain(node)
    reads = sizes.reads(node)
    for through in sorted(reads, key=lambda read: -math.prod(sizes.plain(read))):
        found, mask = link(node, through, sizes), operand(through, node, sizes)
        if found is not None and mask is not None:
            dims = sizes.of(node)
            first = mask[2:].rjust(len(out), "1")
            every = (through, *found[1])
            return Described("pointwise", {"first": first}, dims, every, chained=True, first=(found[0],))
    return UNKNOWN


for _name in POINTWISE:
    DESCRIBE.setdefault(_name, _pointwise)


def _unknown(node: fx.Node, sizes: Sizes) -> Described | None:
    """An operator of unknown kind, by its multiply-accumulate operations, or else by the elements that it writes."""
    typed = sizes.groups.typed[node]
    if typed.macs:
        products: Sequence[Any] = typed.macs if isinstance(typed.macs, list) else [typed.macs]
        scale = typed.scale / 1000 / max(sizes.groups.graph.batch, 1) * sizes.samples
        total = sum_of(product_of([{(): scale}, *map(sizes.cost.size, axes)]) for axes in products)
        return Described("work", {}, (total,), sizes.reads(node))
    reads = sizes.reads(node)
    dims = sizes.of(node) or (sizes.of(reads[0]) if reads else ())
    return Described("copy", {}, (product_of(dims),), reads) if dims else None
