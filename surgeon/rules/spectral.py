"""Complex numbers and Fourier transforms: the transformed axes are pinned, the others pass through."""

from __future__ import annotations

from typing import Any

from torch import fx

from surgeon.rules.base import Axes, Context, Typed, dims, rule, size_of, where

_PAIR = "real and imaginary parts"


@rule("real", "imag", "conj", "_conj", "conj_physical", "_conj_physical", "resolve_conj", "resolve_neg", "_neg_view")
def part(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    return Typed(c.of(a["self"]))


@rule("complex")
def parts(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    why = f"{where(node)}: real and imaginary parts do not align"
    return Typed(c.broadcast([c.of(a["real"]), c.of(a["imag"])], why))


@rule("view_as_complex", "view_as_complex_copy")
def as_complex(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """(…, 2) -> (…)."""
    x = c.of(a["self"])
    c.pin(x[-1:], f"{where(node)}: {_PAIR}")
    return Typed(x[:-1])


@rule("view_as_real", "view_as_real_copy")
def as_real(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """(…) -> (…, 2)."""
    return Typed((*c.of(a["self"]), c.fresh(2, f"{where(node)}: {_PAIR}")))


_ONE = ("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft")
_TWO = ("fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2")
_MANY = ("fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn")


@rule(*_ONE, *_TWO, *_MANY, "_fft_c2c", "_fft_r2c", "_fft_c2r", "fft_fftshift", "fft_ifftshift")
def transform(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    x, sizes = c.of(a["self"]), size_of(node)
    over = dims(a["dim"], len(x))
    if a["dim"] is None and a.get("s") is not None:
        over = over[-len(a["s"]) :]
    why = f"{where(node)}: frequencies"
    c.pin([x[d] for d in over], why)
    out: Axes = tuple(c.fresh(sizes[d], why) if d in over else axis for d, axis in enumerate(x))
    return Typed(out)
