"""Norms, softmax and other reductions: which axes they sum over, and over which they take a statistic."""

from __future__ import annotations

from typing import Any

from torch import fx

from surgeon.ir.axes import ONE, Axis, prod
from surgeon.ir.operators import operator_name
from surgeon.rules.base import Axes, Context, Gain, Typed, dims, rule, size_of, where
from surgeon.rules.reading import axis_at, number


def _per_channel(node: fx.Node, a: dict[str, Any], c: Context, channel: Axis, names: tuple[str, ...]) -> None:
    for name in names:
        if a.get(name) is not None:
            c.unify(channel, c.of(a[name])[0], f"{where(node)}: {name} does not align with the channels")


_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


@rule("batch_norm", "instance_norm")
def batch_norm(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["input"])
    _per_channel(node, a, c, x[1], _BATCH_NORM)
    per_sample = operator_name(node) == "instance_norm"
    uses_input = a.get("use_input_stats", a.get("training")) or a["running_mean"] is None
    return Typed(x, reduced=(*(() if per_sample else x[:1]), *x[2:]) if uses_input else ())


@rule("_native_batch_norm_legit", "_native_batch_norm_legit.no_stats", "_native_batch_norm_legit_no_training")
def native_batch_norm(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["input"])
    _per_channel(node, a, c, x[1], _BATCH_NORM)
    if operator_name(node).endswith("no_training"):
        return Typed([x, (), ()])
    return Typed([x, (x[1],), (x[1],)], reduced=(x[0], *x[2:]))


@rule("layer_norm", "rms_norm", "native_layer_norm")
def layer_norm(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["input"])
    normalized = x[len(x) - len(a["normalized_shape"]) :]
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            for axis, other in zip(normalized, c.of(a[name]), strict=True):
                c.unify(axis, other, f"{where(node)}: {name} does not align with the normalized axes")
    shape = {"normalized_shape": lambda kept: kept.sizes(normalized, a["normalized_shape"])}
    if operator_name(node) == "native_layer_norm":
        return Typed([x, x[: -len(normalized)], x[: -len(normalized)]], reduced=normalized, args=shape)
    return Typed(x, reduced=normalized, args=shape)


@rule("group_norm")
def group_norm(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["input"])
    groups = number(a, "num_groups")
    why = f"{where(node)}: the channels do not align with the groups"
    group, inner = c.divide(x[1], [groups, x[1].size // groups], why)
    _per_channel(node, a, c, prod([group, inner]), ("weight", "bias"))
    args = {"num_groups": lambda kept: kept.width(group) if kept.changed(group) else a["num_groups"]}
    return Typed(x, reduced=(inner, *x[2:]), args=args)


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "softmin")
def softmax(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    return Typed(x, reduced=(x[axis_at(a, x)],) if x else ())


def _without(x: Axes, over: list[int], keepdim: bool) -> Axes:
    return tuple(ONE if i in over else axis for i, axis in enumerate(x) if keepdim or i not in over)


@rule("sum", "norm", "linalg_vector_norm", "count_nonzero")
def total(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """A removed unit contributes nothing to a sum or to a norm of positive order."""
    x = c.of(a["self"])
    over = dims(a.get("dim"), len(x))
    summed = tuple(x[i] for i in over)
    order = a.get("ord", a.get("p"))
    if isinstance(order, int | float) and order <= 0:
        c.pin(summed, f"{where(node)}: a norm of order {order}")
    return Typed(_without(x, over, bool(a.get("keepdim"))), contracted=summed)


@rule("mean", "var", "std", "amax", "amin", "logsumexp", "prod", "all", "any", "max.default", "min.default")
def statistic(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    over = dims(a.get("dim"), len(x))
    reduced = tuple(x[i] for i in over)
    return Typed(_without(x, over, bool(a.get("keepdim"))), reduced=reduced)


@rule("var_mean", "std_mean")
def moments(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    typed = statistic(node, a, c)
    assert isinstance(typed.out, tuple)
    return Typed([typed.out, typed.out], reduced=typed.reduced)


@rule("max.dim", "min.dim", "median.dim", "mode", "cummax", "cummin")
def extreme(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """The second output is a position, so that no position may be removed."""
    x = c.of(a["self"])
    over = axis_at(a, x)
    c.pin((x[over],), f"{where(node)}: positions along the axis are returned")
    out = x if operator_name(node) in ("cummax", "cummin") else _without(x, [over], bool(a.get("keepdim")))
    return Typed([out, out])


@rule("cumsum")
def running_sum(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.of(a["self"])
    return Typed(x, contracted=(x[axis_at(a, x)],) if x else ())


@rule("cumprod", "logcumsumexp")
def running(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """A running product, or the like, to which every position contributes."""
    x = c.of(a["self"])
    c.pin(x[axis_at(a, x) :][:1] if x else (), f"{where(node)}: every position contributes to those that follow")
    return Typed(x)


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """v / ||v|| · g, with a norm over all axes but one, or over all where that one is -1.

    A norm that units are missing from is made up for by g.
    """
    v, g = c.of(a["v"]), c.of(a["g"])
    dim = number(a, "dim")
    over = tuple(axis for i, axis in enumerate(v) if i != dim)
    if g and dim >= 0:
        c.broadcast([v, g] if len(g) == len(v) else [(v[dim],), g], f"{where(node)}: the scale does not align")
    gain = Gain(a["g"], a["v"], over)
    if operator_name(node) == "_weight_norm_interface":
        return Typed([v, g], gain=gain)
    return Typed(v, gain=gain)


@rule("glu")
def gated(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """The first half of the axis times the sigmoid of the second: the halves are coupled."""
    x = c.of(a["self"])
    dim = axis_at(a, x)
    first, second = c.space.cut(x[dim], [x[dim].size // 2], f"{where(node)}: the halves do not align")
    c.unify(first, second, f"{where(node)}: the halves do not align")
    return Typed((*x[:dim], first, *x[dim + 1 :]))


@rule("cosine_similarity")
def cosine(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x = c.broadcast([c.of(a["x1"]), c.of(a["x2"])], f"{where(node)}: the operands do not align")
    dim = axis_at(a, x)
    return Typed(_without(x, [dim], False), contracted=(x[dim],))


@rule("cdist")
def distances(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """Points (…, P, M) and (…, R, M) -> (…, P, R): a norm over M, to which a removed unit contributes nothing."""
    x, y = c.of(a["x1"]), c.of(a["x2"])
    why = f"{where(node)}: the points' units do not align"
    c.unify(x[-1], y[-1], why)
    if a["p"] <= 0:
        c.pin(x[-1:], f"{where(node)}: a norm of order {a['p']}")
    out = (*c.broadcast([x[:-2], y[:-2]], why), x[-2], y[-2])
    return Typed(out, contracted=x[-1:], macs=(*out, x[-1]))


@rule("frobenius_norm", "linalg_norm", "linalg_matrix_norm", "dist")
def matrix_norm(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    for value in a.values():
        if isinstance(value, fx.Node):
            c.pin(c.of(value), f"{where(node)}: a norm over several axes")
    return Typed(c.pinned(size_of(node), f"output of {where(node)}"))
