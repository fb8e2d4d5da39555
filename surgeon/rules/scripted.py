"""Scripted modules, and operators that onnxruntime runs: nothing is known of what they compute."""

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


@rule("surgeon::onnx_operator")
def onnx_operator(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    kind = a["key"].partition(" ")[0]
    reason = f"{where(node)}: {kind}, an operator of ONNX that torch has none for; onnxruntime runs it as it is"
    for operand in a["inputs"]:
        c.pin_all(operand, reason)
    return Typed([c.pinned(size, reason) for size in sizes_of(node)])
