"""What stands in a traced copy of a model for parts of it that note or draw what is no result of the model's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase, ObserverBase
from torch.overrides import TorchFunctionMode

from surgeon.frontend.isolation import with_forwards
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
    with with_forwards(found), _Formulas():
        yield


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
    lowest, highest = (getattr(quantizer, name) for name in ("quant_min", "quant_max"))
    return _rounded(x, scale, zero, lowest, highest)


def _rounded(x: Tensor, scale: Any, zero: Any, lowest: int, highest: int) -> Tensor:
    """`x` at the nearest levels; its gradient is that of `x`."""
    zero = zero.to(x.dtype) if isinstance(zero, Tensor) else zero
    levels = torch.clamp(torch.round(x / scale) + zero, lowest, highest)
    return x + ((levels - zero) * scale - x).detach()


class _Formulas(TorchFunctionMode):
    """The functions of torch that quantize and dequantize, by what they compute: export does not know them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PER_TENSOR:
            return _per_tensor(*args, **(kwargs or {}))
        if func in _PER_CHANNEL:
            return _per_channel(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


_PER_TENSOR = {torch.fake_quantize_per_tensor_affine, torch._fake_quantize_learnable_per_tensor_affine}
_PER_CHANNEL = {torch.fake_quantize_per_channel_affine, torch._fake_quantize_learnable_per_channel_affine}


def _per_tensor(
    input: Tensor, scale: Any, zero_point: Any, quant_min: int, quant_max: int, grad_factor: float = 1.0
) -> Tensor:
    return _rounded(input, scale, zero_point, quant_min, quant_max)


def _per_channel(
    input: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int,
    grad_factor: float = 1.0,
) -> Tensor:
    scale, zero_point = (_along(value, input, axis % input.dim()) for value in (scale, zero_point))
    return _rounded(input, scale, zero_point, quant_min, quant_max)


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
