"""Which elementwise operators are fused with the operator before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from surgeon.ir.operators import operator_name
from surgeon.latency.pointwise_ops import COMMUTATIVE, POINTWISE
from surgeon.latency.symbolic_sizes import Sizes, hands_on
from surgeon.rules import arguments

Link = list[Any]


def follow(
    node: fx.Node, sizes: Sizes, order: Mapping[fx.Node, int], taken: set[fx.Node], folds: bool
) -> tuple[list[Link], list[fx.Node], fx.Node]:
    """The chain of elementwise operators after `node`, as long as nothing else uses the values in between.

    With `folds`, a BatchNorm right after it is folded into the operator. Their nodes are added to `taken`. Returns the
    chain, each operator as its ATen name, its settings and its other operands (`x:`, `w:` or `c:` with the mask or
    number); the other tensors that they read; and the last node.
    """
    chain: list[Link] = []
    extra: list[fx.Node] = []
    last, start = node, order[node]
    while len(last.users) == 1:
        after = next(iter(last.users))
        name = operator_name(after)
        if hands_on(after) or (folds and not chain and name == "batch_norm"):
            taken.add(after)
            last = after
            continue
        found = link(after, last, sizes)
        if found is None or any(order[read] > start for read in found[1]) or sizes.plain(after) != sizes.plain(node):
            break
        taken.add(after)
        chain.append(found[0])
        extra += found[1]
        last = after
    return chain, extra, last


def link(node: fx.Node, through: fx.Node, sizes: Sizes) -> tuple[Link, list[fx.Node]] | None:
    """An elementwise operator as applied to `through`, and the other tensors that it reads; None for any other."""
    name = operator_name(node)
    if name not in POINTWISE or not isinstance(node.meta.get("val"), Tensor):
        return None
    given = arguments(node)
    tensors = [value for value in given.values() if isinstance(value, fx.Node)]
    if tensors and tensors[0] is not through and name not in COMMUTATIVE:
        return None
    settings = {
        key: value for key, value in given.items()
        if key not in ("alpha", "self", "other", "exponent") and isinstance(value, int | float | str)
    }
    operands, extra = [], []
    others = [value for key, value in given.items() if value is not through and key in ("self", "other", "weight")]
    others += [given["exponent"]] if "exponent" in given else []
    if tensors.count(through) > 1:
        others = [through] * (tensors.count(through) - 1)
    for value in others:
        found = operand(value, node, sizes)
        if found is None:
            return None
        operands.append(found)
        if isinstance(value, fx.Node) and found.startswith("x:"):
            extra.append(value)
    return [name, settings, operands], extra


def operand(value: Any, node: fx.Node, sizes: Sizes) -> str | None:
    """An operand of an elementwise operator: a number, or a tensor by the axes in which it has the result's size."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"c:{value}"
    if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), Tensor):
        return None
    have, out = sizes.plain(value), sizes.plain(node)
    if len(have) > len(out):
        return None
    aligned = zip(have, out[len(out) - len(have):], strict=True)
    wide = ["n" if size == full and size != 1 else "1" for size, full in aligned]
    if any(letter == "1" and size != 1 for letter, size in zip(wide, have, strict=True)):
        return None
    return ("x:" if value in sizes.live else "w:") + "".join(wide)
