"""Operators that sum products over an axis: linear, convolution, matrix products, attention."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from surgeon.ir.axes import ONE, Axis, prod
from surgeon.ir.operators import operator_name
from surgeon.rules.base import Axes, Context, Kept, Typed, rule, size_of, where
from surgeon.rules.reading import number


@rule("linear")
def linear(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x, w = c.of(a["input"]), c.of(a["weight"])
    c.unify(x[-1], w[-1], f"{where(node)}: the input's units do not align with the weight's columns")
    if len(w) == 1:
        return Typed(x[:-1], contracted=(w[0],), macs=x)
    if a["bias"] is not None:
        c.unify(w[0], c.of(a["bias"])[-1], f"{where(node)}: the bias does not align with the weight's rows")
    return Typed((*x[:-1], w[0]), contracted=(w[1],), macs=(*x[:-1], *w))


@rule("mm", "bmm", "matmul", "mv", "dot", "vdot")
def matmul(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x, y = c.of(a["self"]), c.of(a.get("mat2", a.get("other", a.get("vec", a.get("tensor")))))
    return _matmul(node, x, y, c)


def _matmul(node: fx.Node, x: Axes, y: Axes, c: Context) -> Typed:
    why = f"{where(node)}: the operands' units do not align"
    inner = y[-2] if len(y) > 1 else y[-1]
    c.unify(x[-1], inner, why)
    batch = c.broadcast([x[:-2], y[:-2]], why)
    out = (*batch, *x[-2:-1], *(y[-1:] if len(y) > 1 else ()))
    return Typed(out, contracted=(x[-1],), macs=(*out, x[-1]))


@rule("addmm", "baddbmm")
def addmm(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x, y = (a["mat1"], a["mat2"]) if "mat1" in a else (a["batch1"], a["batch2"])
    typed = _matmul(node, c.of(x), c.of(y), c)
    assert isinstance(typed.out, tuple)
    c.broadcast([typed.out, c.of(a["self"])], f"{where(node)}: the addend does not align")
    return typed


@rule("transformers::grouped_mm_fallback")
def grouped_matmul(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """Rows (T, K), in stretches that end at the offsets, each times a matrix of its own of (E, K, N) -> (T, N)."""
    x, w = c.of(a["input"]), c.of(a["weight"])
    c.pin((x[0], w[0], *c.of(a["offs"])), f"{where(node)}: rows are assigned to the matrices by number")
    c.unify(x[1], w[1], f"{where(node)}: the rows' units do not align with the matrices'")
    return Typed((x[0], w[2]), contracted=(w[1],), macs=(x[0], *w[1:]))


@rule("outer")
def outer(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    out = (*c.of(a["self"]), *c.of(a["vec2"]))
    return Typed(out, macs=out)


@rule("einsum")
def einsum(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    operands = [c.of(t) for t in a["tensors"]]
    terms, right = _equation(a["equation"], [len(axes) for axes in operands])
    if any(len(set(term)) != len(term) for term in terms):
        for axes in operands:
            c.pin(axes, f"{where(node)}: surgeon has no rule for the equation {a['equation']!r}")
        return Typed(c.pinned(size_of(node), f"output of {where(node)}"))
    named: dict[str, Axis] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, axis in zip(term, operand, strict=True):
            known = named.get(letter, ONE)
            if known.size == 1:
                named[letter] = axis
            elif axis.size != 1:
                c.unify(known, axis, f"{where(node)}: axis {letter} of {a['equation']!r} does not align")
    summed = tuple(axis for letter, axis in named.items() if letter not in right)
    return Typed(tuple(named[letter] for letter in right), contracted=summed, macs=tuple(named.values()))


def _equation(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    """The names of each operand's axes, and of the result's; axes under an ellipsis are named by numbers.

    >>> _equation("...i,ij", [3, 2])
    ([['1', '0', 'i'], ['i', 'j']], ['1', '0', 'j'])
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    written = left.split(",")
    hidden = [rank - len(term.replace("...", "")) for rank, term in zip(ranks, written, strict=True)]

    def names(term: str, count: int) -> list[str]:
        before, dots, after = term.partition("...")
        return [*before, *([str(n) for n in range(count - 1, -1, -1)] if dots else ()), *after]

    if not arrow:  # then the letters that occur once are kept, in alphabetical order
        right = "..." * ("..." in left) + "".join(sorted(x for x in set(left) - {",", "."} if left.count(x) == 1))
    return [names(term, count) for term, count in zip(written, hidden, strict=True)], names(right, max(hidden))


@rule("bilinear")
def bilinear(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """Inputs (…, I) and (…, J), weight (O, I, J) -> (…, O)."""
    x, y, w = c.of(a["input1"]), c.of(a["input2"]), c.of(a["weight"])
    why = f"{where(node)}: the inputs' units do not align with the weight's"
    batch = c.broadcast([x[:-1], y[:-1]], why)
    c.unify(x[-1], w[1], why)
    c.unify(y[-1], w[2], why)
    if a["bias"] is not None:
        c.unify(w[0], c.of(a["bias"])[0], why)
    return Typed((*batch, w[0]), contracted=w[1:], macs=(*batch, *w))


@rule("conv1d", "conv2d", "conv3d", "convolution")
def convolution(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    if a.get("transposed"):
        return conv_transpose(node, a, c)
    x, w = c.of(a["input"]), c.of(a["weight"])
    groups = number(a, "groups")
    spatial = len(w) - 2
    channel = x[-spatial - 1]
    why = f"{where(node)}: the input's channels do not align with the weight's"
    group: Axis = ONE
    if groups == 1:
        c.unify(channel, w[1], why)
    else:
        group, inner = c.divide(channel, [groups, channel.size // groups], why)
        c.unify(inner, w[1], why)
        group_out, _ = c.divide(w[0], [groups, w[0].size // groups], why)
        c.unify(group, group_out, why)
    return _convolved(node, a, c, x, w, out_channel=w[0], contracted=w[1], group=group)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """The weight is (in, out / groups, *kernel)."""
    x, w = c.of(a["input"]), c.of(a["weight"])
    groups = number(a, "groups")
    channel = x[-(len(w) - 2) - 1]
    why = f"{where(node)}: the input's channels do not align with the weight's"
    c.unify(channel, w[0], why)
    if groups == 1:
        return _convolved(node, a, c, x, w, out_channel=w[1], contracted=w[0], group=ONE)
    group, inner = c.divide(w[0], [groups, w[0].size // groups], why)
    return _convolved(node, a, c, x, w, out_channel=prod([group, w[1]]), contracted=inner, group=group)


def _convolved(
    node: fx.Node, a: dict[str, Any], c: Context, x: Axes, w: Axes, *, out_channel: Axis, contracted: Axis, group: Axis
) -> Typed:
    spatial = len(w) - 2
    window = f"{where(node)}: spatial axis"
    c.pin(w[2:], f"{where(node)}: kernel axis")
    c.pin(x[-spatial:], window)
    if a["bias"] is not None:
        c.unify(out_channel, c.of(a["bias"])[0], f"{where(node)}: the bias does not align with the output channels")
    size = size_of(node)
    out = (*x[: -spatial - 1], out_channel, *c.pinned(size[-spatial:], window))
    transposed = a.get("transposed") or "transpose" in operator_name(node)
    positions = (*x[: -spatial - 1], *(x[-spatial:] if transposed else out[-spatial:]))
    macs = (*positions, out_channel, contracted, *w[2:])

    def groups(kept: Kept) -> int:
        return kept.width(group) if kept.changed(group) else a["groups"]

    return Typed(out, contracted=(contracted,), macs=macs, args={"groups": groups})


@rule("scaled_dot_product_attention")
def attention(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """query (…, L, E), key (…, S, E), value (…, S, V) -> (…, L, V)."""
    q, k, v = c.of(a["query"]), c.of(a["key"]), c.of(a["value"])
    why = f"{where(node)}: query, key and value do not align"
    if a.get("enable_gqa") and q[-3].size != k[-3].size:
        kv_heads, _ = c.divide(q[-3], [k[-3].size, q[-3].size // k[-3].size], why)
        c.unify(kv_heads, k[-3], why)
        c.unify(k[-3], v[-3], why)
        batch = (*c.broadcast([q[:-3], k[:-3], v[:-3]], why), q[-3])
    else:
        batch = c.broadcast([q[:-2], k[:-2], v[:-2]], why)
    c.unify(q[-1], k[-1], why)
    c.unify(k[-2], v[-2], why)
    if a.get("is_causal"):
        c.pin((q[-2], k[-2]), f"{where(node)}: causal mask over positions")
    if a.get("attn_mask") is not None:
        c.broadcast([(*batch, q[-2], k[-2]), c.of(a["attn_mask"])], f"{where(node)}: the mask does not align")

    def scale(kept: Kept) -> Any:
        return a["scale"] if a["scale"] is not None or not kept.changed(q[-1]) else 1 / math.sqrt(q[-1].size)

    return Typed(
        (*batch, q[-2], v[-1]),
        contracted=(q[-1],),
        reduced=(k[-2],),
        macs=[(*batch, q[-2], k[-2], q[-1]), (*batch, q[-2], k[-2], v[-1])],
        args={"scale": scale},
    )
