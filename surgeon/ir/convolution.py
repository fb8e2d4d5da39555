"""A convolution's arguments, normalized: one number for each spatial axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def each(value: Any, rank: int) -> list[int]:
    """An argument such as a stride, as one number for each axis.

    >>> each(2, 2), each([3], 2), each((1, 2), 2)
    ([2, 2], [3, 3], [1, 2])
    """
    values = [value] if isinstance(value, int) else [int(v) for v in value]
    return values * rank if len(values) == 1 else values


def pads(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[list[int], list[int]]:
    """The padding before and after each axis; `padding` may be "same" or "valid".

    >>> pads("same", [4], [1]), pads(1, [3, 3], [1, 1])
    (([1], [2]), ([1, 1], [1, 1]))
    """
    if isinstance(padding, str):
        totals = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        return [total // 2 for total in totals], [total - total // 2 for total in totals]
    amounts = each(padding, len(kernel))
    return amounts, amounts
