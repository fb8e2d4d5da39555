"""Windows of a convolution, at all positions or some, against unfold of torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from surgeon.calibration.im2col import at_positions, windows


@pytest.mark.parametrize("stride, padding, dilation", [(1, 0, 1), (2, 1, 1), (1, 2, 2), (3, (0, 1), (1, 2))])
@pytest.mark.parametrize("channels_last", [False, True])
def test_windows(stride: int, padding: Any, dilation: Any, channels_last: bool) -> None:
    x = torch.randn(2, 3, 9, 8)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    expected = F.unfold(x, (3, 2), dilation, padding, stride).reshape(2, 3, 3, 2, -1).movedim(-1, 2)
    given = {name: [each] * 2 if isinstance(each, int) else list(each)
             for name, each in {"stride": stride, "padding": padding, "dilation": dilation}.items()}
    assert torch.equal(windows(x, given, (3, 2)), expected)
    chosen = torch.tensor([1, 4, 5])
    assert torch.equal(windows(x, given, (3, 2), chosen), expected[:, :, chosen])


def test_positions_of_what_is_expanded() -> None:
    shown = torch.tensor([True, False, True, True]).reshape(1, 1, 2, 2).expand(2, 3, 2, 2)
    assert at_positions(shown, torch.tensor([1, 2]))[:, 0].tolist() == [[False, True]] * 2
    assert at_positions(shown, None).shape == (2, 3, 4)
