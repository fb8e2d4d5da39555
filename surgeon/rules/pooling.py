"""Operators over spatial windows: pooling and interpolation. Leading axes pass through, spatial ones are pinned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from surgeon.ir.operators import operator_name
from surgeon.rules.base import Axes, Context, Typed, rule, size_of, sizes_of, where

_RANK = {"1d": 1, "2d": 2, "3d": 3}


@rule(*[f"{kind}_pool{rank}" for rank in _RANK for kind in ("max", "avg", "adaptive_avg")],
      "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d",
      "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
      "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
      "_adaptive_avg_pool2d", "_adaptive_avg_pool3d")
def windows(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    return Typed(_windowed(node, c.of(a.get("self", a.get("input"))), size_of(node), c))


@rule(*[f"adaptive_max_pool{rank}" for rank in _RANK], *[f"max_pool{rank}_with_indices" for rank in _RANK])
def windows_with_indices(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    out = _windowed(node, c.of(a["self"]), sizes_of(node)[0], c)
    return Typed([out, out])


def _windowed(node: fx.Node, x: Axes, sizes: Sequence[int], c: Context) -> Axes:
    """The axes `x` with new, pinned spatial axes of the output's `sizes`."""
    rank = next(n for tag, n in _RANK.items() if tag in operator_name(node))
    why = f"{where(node)}: spatial axis"
    c.pin(x[-rank:], why)
    return (*x[:-rank], *c.pinned(sizes[-rank:], why))


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """Input (N, C, *spatial), grid (N, *out, rank)."""
    x, grid = c.of(a["input"]), c.of(a["grid"])
    why = f"{where(node)}: sampled positions"
    c.pin((*x[2:], *grid[1:]), why)
    c.unify(x[0], grid[0], why)
    return Typed((*x[:2], *c.pinned(size_of(node)[2:], why)))


@rule("max_unpool2d", "max_unpool3d")
def unpool(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """Values (N, C, *spatial) go to the positions that the indices, of the same shape, give within their channel."""
    x = c.broadcast([c.of(a["self"]), c.of(a["indices"])], f"{where(node)}: values and indices do not align")
    return Typed(_windowed(node, x, size_of(node), c))
