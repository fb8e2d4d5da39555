"""Fused operators of the domain com.microsoft."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.onnx_import.operators.attention import heads_of
from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.table import MICROSOFT, NotCovered, operator


@operator("LayerNormalization", domain=MICROSOFT)
@operator("SimplifiedLayerNormalization")
@operator("SimplifiedLayerNormalization", domain=MICROSOFT)
def layer_norm(o: Operator, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    if o.outputs > 1:
        raise NotCovered("statistics as outputs")
    size, eps = list(scale.shape), o.get("epsilon", 1e-5)
    if o.kind.startswith("Simplified"):
        return F.rms_norm(x, size, scale, eps)
    return F.layer_norm(x, size, scale, bias, eps)


@operator("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_norm(o: Operator, x: Tensor, skip: Tensor, scale: Tensor, *rest: Tensor | None) -> Any:
    """The sum with another stream, normalized; its fourth output is the sum."""
    simple = o.kind.startswith("SkipSimplified")
    beta, bias = (None, *rest, None)[:2] if simple else (*rest, None, None)[:2]
    total = x + skip
    total = total if bias is None else total + bias
    size, eps = list(scale.shape), o.get("epsilon", 1e-12)
    made = F.rms_norm(total, size, scale, eps) if simple else F.layer_norm(total, size, scale, beta, eps)
    return made if o.outputs == 1 else [made, total, total, total][: o.outputs]


@operator("BiasGelu", "FastGelu", domain=MICROSOFT)
def bias_gelu(o: Operator, x: Tensor, bias: Tensor | None = None) -> Tensor:
    x = x if bias is None else x + bias
    return F.gelu(x, approximate="tanh" if o.kind == "FastGelu" else "none")


@operator("Attention", domain=MICROSOFT)
def attention(
    o: Operator, x: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None,
    past: Tensor | None = None, added: Tensor | None = None, *rest: Any,
) -> Tensor:
    """Queries, keys and values from one weight (features, 3 · hidden)."""
    if past is not None or o.outputs > 1 or rest or o.get("unidirectional", 0) or o.get("do_rotary", 0):
        raise NotCovered("a past, or a mask of its own")
    heads = o.get("num_heads", 1)
    whole = torch.matmul(x, weight) if bias is None else torch.matmul(x, weight) + bias
    sizes = o.get("qkv_hidden_sizes", None)
    parts = whole.chunk(3, -1) if not sizes else whole.split(list(sizes), -1)
    q, k, v = (heads_of(each, heads) for each in parts)
    made = F.scaled_dot_product_attention(q, k, v, _mask(o, mask, added, q), 0.0, False, scale=o.get("scale", None))
    return made.transpose(1, 2).flatten(2)


def _mask(o: Operator, mask: Tensor | None, added: Tensor | None, q: Tensor) -> Tensor | None:
    """What is added to the scores: where a mask (batch, length) is 0, much below zero."""
    if mask is None:
        return added
    if mask.dim() == 1:
        raise NotCovered("lengths as a mask")
    least = o.get("mask_filter_value", -10000.0)
    open_ = mask != 0
    open_ = open_[:, None, None, :] if mask.dim() == 2 else open_[:, None] if mask.dim() == 3 else open_
    made = torch.where(open_, torch.zeros((), dtype=q.dtype, device=q.device), least)
    return made if added is None else made + added


@operator("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(
    o: Operator, q: Tensor, k: Tensor | None = None, v: Tensor | None = None, bias: Tensor | None = None,
    mask: Tensor | None = None, added: Tensor | None = None, *rest: Any,
) -> Tensor:
    if k is None or v is None or k.dim() != 3 or any(each is not None for each in rest) or o.outputs > 1 or o.get(
        "unidirectional", 0
    ):
        raise NotCovered("queries, keys and values in one tensor, or a past")
    heads = o.get("num_heads", 1)
    if bias is not None:
        bq, bk, bv = bias.split([q.shape[2], k.shape[2], v.shape[2]])
        q, k, v = q + bq, k + bk, v + bv
    q, k, v = heads_of(q, heads), heads_of(k, heads), heads_of(v, heads)
    made = F.scaled_dot_product_attention(q, k, v, _mask(o, mask, added, q), 0.0, False, scale=o.get("scale", None))
    return made.transpose(1, 2).flatten(2)
