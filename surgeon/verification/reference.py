"""The meaning of a removal, at full size: removed positions are zero, and statistics are taken over the kept ones.

Each operator that takes a statistic has its own formula here, with a mask; it shares nothing with slicing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Given the arguments by name and a mask of the operand's shape: 1 at kept positions and 0 at removed ones.
Masked = Callable[[dict[str, Any], Tensor], Any]


def _dims(value: Any, rank: int) -> list[int]:
    if value is None or value == []:
        return list(range(rank))
    return [d % rank for d in ([value] if isinstance(value, int) else value)]


def _moments(x: Tensor, mask: Tensor, dims: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count over the kept positions of `dims`."""
    count = mask.sum(dims, keepdim=True)
    mean = (x * mask).sum(dims, keepdim=True) / count.clamp(min=1)
    variance = (((x - mean) ** 2) * mask).sum(dims, keepdim=True) / count.clamp(min=1)
    return mean, variance, count


def _affine(y: Tensor, a: dict[str, Any], shape: Sequence[int]) -> Tensor:
    for name, apply in (("weight", torch.mul), ("bias", torch.add)):
        if a.get(name) is not None:
            y = apply(y, a[name].reshape(shape))
    return y


def layer_norm(a: dict[str, Any], mask: Tensor) -> Tensor:
    x = a["input"]
    mean, variance, _ = _moments(x, mask, list(range(x.dim() - len(a["normalized_shape"]), x.dim())))
    return _affine((x - mean) / torch.sqrt(variance + a["eps"]), a, a["normalized_shape"])


def rms_norm(a: dict[str, Any], mask: Tensor) -> Tensor:
    x = a["input"]
    dims = list(range(x.dim() - len(a["normalized_shape"]), x.dim()))
    square = (x**2 * mask).sum(dims, keepdim=True) / mask.sum(dims, keepdim=True).clamp(min=1)
    eps = a["eps"] if a["eps"] is not None else torch.finfo(x.dtype).eps
    return _affine(x / torch.sqrt(square + eps), a, a["normalized_shape"])


def group_norm(a: dict[str, Any], mask: Tensor) -> Tensor:
    x, groups = a["input"], a["num_groups"]
    shape = (x.shape[0], groups, -1)
    mean, variance, _ = _moments(x.reshape(shape), mask.reshape(shape), [2])
    y = ((x.reshape(shape) - mean) / torch.sqrt(variance + a["eps"])).reshape(x.shape)
    return _affine(y, a, [1, -1, *[1] * (x.dim() - 2)])


def batch_norm(a: dict[str, Any], mask: Tensor) -> Tensor:
    x = a["input"]
    mean, variance, _ = _moments(x, mask, [0, *range(2, x.dim())])
    return _affine((x - mean) / torch.sqrt(variance + a["eps"]), a, [1, -1, *[1] * (x.dim() - 2)])


def native_batch_norm(a: dict[str, Any], mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = a["input"]
    mean, variance, _ = _moments(x, mask, [0, *range(2, x.dim())])
    inverse = 1 / torch.sqrt(variance + a["eps"])
    return batch_norm(a, mask), mean.flatten(), inverse.flatten()


def instance_norm(a: dict[str, Any], mask: Tensor) -> Tensor:
    x = a["input"]
    mean, variance, _ = _moments(x, mask, list(range(2, x.dim())))
    return _affine((x - mean) / torch.sqrt(variance + a["eps"]), a, [1, -1, *[1] * (x.dim() - 2)])


def _filled(x: Tensor, mask: Tensor, value: float | bool) -> Tensor:
    return torch.where(mask.bool(), x, torch.full((), value, dtype=x.dtype, device=x.device))


def softmax(a: dict[str, Any], mask: Tensor) -> Tensor:
    x = _filled(a["self"], mask, -math.inf)
    return torch.nan_to_num(torch.softmax(x, a["dim"]))


def log_softmax(a: dict[str, Any], mask: Tensor) -> Tensor:
    x = _filled(a["self"], mask, -math.inf)
    return a["self"] - torch.logsumexp(x, a["dim"], keepdim=True)


def mean(a: dict[str, Any], mask: Tensor) -> Tensor:
    x = a["self"]
    dims, keepdim = _dims(a.get("dim"), x.dim()), bool(a.get("keepdim"))
    return (x * mask).sum(dims, keepdim=keepdim) / mask.sum(dims, keepdim=keepdim).clamp(min=1)


def _spread(a: dict[str, Any], mask: Tensor) -> tuple[Tensor, Tensor]:
    x = a["self"]
    dims, keepdim = _dims(a.get("dim"), x.dim()), bool(a.get("keepdim"))
    average, variance, count = _moments(x, mask, dims)
    correction = 1 if a.get("correction") is None else a["correction"]
    if a.get("unbiased") is not None:
        correction = 1 if a["unbiased"] else 0
    spread = variance * count / (count - correction).clamp(min=0)
    return (average, spread) if keepdim else (average.squeeze(dims), spread.squeeze(dims))


def variance(a: dict[str, Any], mask: Tensor) -> Tensor:
    return _spread(a, mask)[1]


def deviation(a: dict[str, Any], mask: Tensor) -> Tensor:
    return variance(a, mask).sqrt()


def variance_and_mean(a: dict[str, Any], mask: Tensor) -> tuple[Tensor, Tensor]:
    average, spread = _spread(a, mask)
    return spread, average


def deviation_and_mean(a: dict[str, Any], mask: Tensor) -> tuple[Tensor, Tensor]:
    average, spread = _spread(a, mask)
    return spread.sqrt(), average


def _extreme(reduce: Callable[..., Tensor], neutral: float | bool) -> Masked:
    def apply(a: dict[str, Any], mask: Tensor) -> Tensor:
        x = _filled(a["self"], mask, neutral)
        return reduce(x, _dims(a.get("dim"), x.dim()), keepdim=bool(a.get("keepdim")))

    return apply


def product(a: dict[str, Any], mask: Tensor) -> Tensor:
    x = _filled(a["self"], mask, 1.0)
    return x.prod() if a.get("dim") is None else x.prod(a["dim"], keepdim=a["keepdim"])


def attention(a: dict[str, Any], mask: Tensor) -> Tensor:
    """`mask` belongs to the keys (…, S, E): removed keys get no attention."""
    q, k, v = a["query"], a["key"], a["value"]
    if a.get("enable_gqa") and q.shape[-3] != k.shape[-3]:
        times = q.shape[-3] // k.shape[-3]
        k, v, mask = (t.repeat_interleave(times, -3) for t in (k, v, mask))
    scale = a["scale"] if a["scale"] is not None else 1 / math.sqrt(q.shape[-1])
    scores = q @ k.transpose(-1, -2) * scale
    if a.get("attn_mask") is not None:
        given = a["attn_mask"]
        scores = _filled(scores, given, -math.inf) if given.dtype == torch.bool else scores + given
    kept = mask.amax(-1)[..., None, :]
    return torch.nan_to_num(torch.softmax(_filled(scores, kept, -math.inf), -1)) @ v


#: The operand that the statistic is taken of, and the formula.
STATISTICS: dict[str, tuple[str, Masked]] = {
    "layer_norm": ("input", layer_norm),
    "rms_norm": ("input", rms_norm),
    "group_norm": ("input", group_norm),
    "batch_norm": ("input", batch_norm),
    "_native_batch_norm_legit": ("input", native_batch_norm),
    "instance_norm": ("input", instance_norm),
    "softmax": ("self", softmax),
    "_softmax": ("self", softmax),
    "log_softmax": ("self", log_softmax),
    "_log_softmax": ("self", log_softmax),
    "mean": ("self", mean),
    "var": ("self", variance),
    "std": ("self", deviation),
    "var_mean": ("self", variance_and_mean),
    "std_mean": ("self", deviation_and_mean),
    "amax": ("self", _extreme(torch.amax, -math.inf)),
    "amin": ("self", _extreme(torch.amin, math.inf)),
    "max": ("self", _extreme(torch.amax, -math.inf)),
    "min": ("self", _extreme(torch.amin, math.inf)),
    "logsumexp": ("self", _extreme(torch.logsumexp, -math.inf)),
    "any": ("self", _extreme(lambda x, d, keepdim: x.sum(d, keepdim=keepdim) > 0, False)),
    "all": ("self", _extreme(lambda x, d, keepdim: (~x.bool()).sum(d, keepdim=keepdim) == 0, True)),
    "prod": ("self", product),
    "scaled_dot_product_attention": ("key", attention),
}
