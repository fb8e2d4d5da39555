"""Operators that take a size as a number, written with others that take it as a symbol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class SymbolicSizes(TorchFunctionMode):
    """While a model is traced with symbols for sizes: no operator makes a number of one if others do the same.

    That is pooling over the whole of an image, and evenly spaced numbers.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.linspace and _is_spaced(*args, **kwargs):
            return _spaced(*args, **kwargs)
        if func in _MEANS and _averages_all(*args, **kwargs):
            return _over_image(torch.mean, *args, **kwargs)
        if func in _MAXIMA and _takes_maximum_of_all(*args, **kwargs):
            return _over_image(torch.amax, *args, **kwargs)
        return func(*args, **kwargs)


_MEANS = {torch.avg_pool1d, torch._C._nn.avg_pool2d, torch._C._nn.avg_pool3d}
_MAXIMA = {F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d}


def _averages_all(
    input: Any = None, kernel_size: Any = None, stride: Any = None, padding: Any = 0, ceil_mode: Any = False,
    count_include_pad: Any = True, divisor_override: Any = None,
) -> bool:
    return divisor_override is None and _is_whole(input, kernel_size, padding)


def _takes_maximum_of_all(
    input: Any = None, kernel_size: Any = None, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: Any = False, return_indices: Any = False,
) -> bool:
    together = all(each == 1 for each in _listed(dilation))
    return together and not return_indices and _is_whole(input, kernel_size, padding)


def _over_image(reduce: Callable[..., Tensor], input: Tensor, *rest: Any, **named: Any) -> Tensor:
    return reduce(input, dim=tuple(range(2 - input.dim(), 0)), keepdim=True)


def _is_whole(x: Any, kernel_size: Any, padding: Any) -> bool:
    """Whether a pooling has one window, which is all of its input: the sizes are the same symbols."""
    if not isinstance(x, Tensor) or not isinstance(kernel_size, Sequence):
        return False
    sizes = x.shape[2:]
    return (
        any(isinstance(size, torch.SymInt) for size in kernel_size)
        and len(sizes) == len(kernel_size)
        and not any(_listed(padding))
        and all(_same(a, b) for a, b in zip(sizes, kernel_size, strict=True))
    )


def _listed(value: Any) -> Sequence[Any]:
    return [value] if isinstance(value, int) else value


def _same(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    """Whether two sizes are one formula; numbers are not asked for, which would tie the trace to them."""
    if isinstance(a, torch.SymInt) and isinstance(b, torch.SymInt):
        return bool(a.node.expr == b.node.expr)
    return not isinstance(a, torch.SymInt) and not isinstance(b, torch.SymInt) and a == b


def _is_spaced(start: Any = None, end: Any = None, steps: Any = None, **options: Any) -> bool:
    numbers = all(isinstance(each, int | float) for each in (start, end))
    return isinstance(steps, torch.SymInt) and numbers and options.get("out") is None


def _spaced(start: float, end: float, steps: Any, **options: Any) -> Tensor:
    """As torch.linspace, which counts from the nearer end."""
    dtype = options.get("dtype") or torch.get_default_dtype()
    index = torch.arange(steps, dtype=dtype, device=options.get("device"))
    step = (end - start) / torch.sym_max(steps - 1, 1)
    return torch.where(index < steps // 2, start + index * step, end - (steps - 1 - index) * step)
