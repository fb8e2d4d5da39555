"""Scripted modules: nothing is known of what they compute."""

from __future__ import annotations

from typing import Any

from torch import fx

from surgeon.rules.base import Context, Typed, rule, sizes_of, where


@rule("surgeon::scripted")
def scripted(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    reason = f"{where(node)}: a scripted module, which is kept as it is; to prune it, give the module it was made of"
    for operand in a["inputs"]:
        c.pin_all(operand, reason)
    return Typed([c.pinned(size, reason) for size in sizes_of(node)])
