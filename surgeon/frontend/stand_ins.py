"""What stands in a traced copy of a model for parts of it that note or draw what is no result of the model's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase, ObserverBase

from surgeon.frontend.outputs import with_open_outputs
from surgeon.frontend.packed import with_padded_sequences
from surgeon.frontend.scripted import with_opaque_scripts


@contextmanager
def as_traced(model: nn.Module) -> Iterator[None]:
    """With `model`, a copy of the user's, as it is traced, recorded and compared: its outputs are open, see
    `with_open_outputs`, what quantizers observe stays as it is, packed sequences are padded, and scripted modules are
    operators."""
    with (
        with_open_outputs(model), with_fixed_quantizers(model), with_padded_sequences(model),
        with_opaque_scripts(model),
    ):
        yield


@contextmanager
def with_fixed_quantizers(model: nn.Module) -> Iterator[None]:
    """With fake quantizers that round to the scales that they have, and observers that let pass what they see.

    Their statistics of what passes are no result of the model. What they hold for each channel is read together with
    the channels, so that it is cut with them.
    """
    found: dict[nn.Module, partial[Tensor]] = {}
    for module in model.modules():
        if isinstance(module, FakeQuantizeBase):
            found[module] = partial(_fake_quantized, module, bool(module.fake_quant_enabled[0]))
        elif isinstance(module, ObserverBase):
            found[module] = partial(_observed, module)
    for module, forward in found.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module in found:
            vars(module).pop("forward", None)


def _observed(observer: nn.Module, x: Tensor) -> Tensor:
    axis = getattr(observer, "ch_axis", -1)
    bounds = [value for value in observer.buffers() if value.dim() == 1 and _fits(value, x, axis)]
    return _beside(x, [_along(value, x, axis) for value in bounds])


def _fake_quantized(quantizer: FakeQuantizeBase, enabled: bool, x: Tensor) -> Tensor:
    """`x`, rounded to its levels; its gradient is that of `x`."""
    axis = getattr(quantizer, "ch_axis", -1)
    along = [value for value in quantizer.buffers() if value.dim() == 1 and _fits(value, x, axis)]
    x = _beside(x, [_along(value, x, axis) for value in along])
    if not enabled:
        return x
    scale, zero = (
        _along(value, x, axis) if _fits(value, x, axis) else value[:1].reshape([])
        for value in (quantizer.get_buffer("scale"), quantizer.get_buffer("zero_point"))
    )
    zero = zero.to(x.dtype)
    limits = (getattr(quantizer, name) for name in ("quant_min", "quant_max"))
    levels = torch.clamp(torch.round(x / scale) + zero, *limits)
    return x + ((levels - zero) * scale - x).detach()


def _fits(value: Tensor, x: Tensor, axis: int) -> bool:
    return axis >= 0 and value.dim() == 1 and value.shape[0] == x.shape[axis] != 1


def _along(value: Tensor, x: Tensor, axis: int) -> Tensor:
    """One number for each channel, as it is broadcast."""
    return value.reshape([-1 if each == axis else 1 for each in range(x.dim())])


def _beside(x: Tensor, values: list[Tensor]) -> Tensor:
    """`x` itself, by operators that read the values too."""
    for value in values:
        x = torch.where(torch.ones_like(value, dtype=torch.bool), x, value.to(x.dtype))
    return x
