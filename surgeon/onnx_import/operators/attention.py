"""Attention and rotary embeddings of ONNX's own domain."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.table import NotCovered, operator

_KNOWN = {"is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap", "softmax_precision"}


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(batch, length, heads · size) as (batch, heads, length, size)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


@operator("Attention")
def attention(
    o: Operator, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, past_k: Tensor | None = None,
    past_v: Tensor | None = None, lengths: Tensor | None = None,
) -> Any:
    if lengths is not None or o.outputs > 3 or o.get("softcap", 0.0) or not o.attributes.keys() <= _KNOWN:
        raise NotCovered("lengths, scores as an output, a soft cap, or a window")
    flat = q.dim() == 3
    if flat:
        q = heads_of(q, o.get("q_num_heads", 1))
        k, v = heads_of(k, o.get("kv_num_heads", 1)), heads_of(v, o.get("kv_num_heads", 1))
    if past_k is not None and past_v is not None:
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    present = [k, v]
    times = q.shape[1] // k.shape[1]
    if times > 1:
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    causal = bool(o.get("is_causal", 0))
    if causal and (mask is not None or past_k is not None):
        before = 0 if past_k is None else past_k.shape[2]
        lower = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(before)
        mask = lower if mask is None else mask
        open_ = torch.zeros((), dtype=q.dtype, device=q.device)
        added = torch.where(mask, open_, -torch.inf) if mask.dtype is torch.bool else mask
        mask, causal = torch.where(lower, added, -torch.inf), False
    made = F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=o.get("scale", None))
    if flat:
        made = made.transpose(1, 2).flatten(2)
    return made if o.outputs == 1 else [made, *present][: o.outputs]


@operator("RotaryEmbedding")
def rotary(o: Operator, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    flat = x.dim() == 3
    y = x.unflatten(2, (o.get("num_heads", 1), -1)) if flat else x.transpose(1, 2)
    size = o.get("rotary_embedding_dim", 0) or y.shape[-1]
    turned, rest = y[..., :size], y[..., size:]
    if positions is not None:
        cos, sin = cos[positions.long()], sin[positions.long()]
    cos, sin = cos[..., : size // 2].unsqueeze(2), sin[..., : size // 2].unsqueeze(2)
    if o.get("interleaved", 0):
        a, b = turned[..., 0::2], turned[..., 1::2]
        made = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        made = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    y = torch.cat([made, rest], -1)
    return y.flatten(2) if flat else y.transpose(1, 2)
