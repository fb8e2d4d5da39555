"""Convolutions that are too wide for the covariance of all inputs, taken channel by channel."""

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.calibration import channels


def network(seed: int = 0) -> nn.Module:
    """A network that loses nothing with half of its 24 channels, which are copies of the others."""
    torch.manual_seed(seed)
    first, second = nn.Conv1d(2, 24, 3), nn.Conv1d(24, 6, 5)
    with torch.no_grad():
        first.weight[12:], first.bias[12:] = first.weight[:12] * 2, first.bias[:12] * 2  # type: ignore[index]
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 26, 4)).eval()


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "WIDEST", 64)


def lost(network: nn.Module, data: Tensor, compensate: bool = True) -> float:
    slim = surgeon.shrink(
        network, 0.4, example_inputs=data[:2], data=data, align=1, distill=False, compensate=compensate
    )
    held = torch.randn(64, 2, 32, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        wanted = network(held)
        return float((slim(held) - wanted).norm() / (wanted - wanted.mean(0)).norm())


@pytest.mark.usefixtures("wide")
def test_copies_of_channels_are_found_and_made_up_for() -> None:
    data = torch.randn(128, 2, 32, generator=torch.Generator().manual_seed(1))
    assert lost(network(), data) < 0.05
    assert lost(network(), data, compensate=False) > 0.2


@pytest.mark.usefixtures("wide")
def test_no_covariance_of_all_inputs_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    add = channels.rows

    def watched(*args: object, **kwargs: object) -> Tensor:
        found = add(*args, **kwargs)  # type: ignore[arg-type]
        sizes.append(found.shape[2])
        return found

    monkeypatch.setattr(channels, "rows", watched)
    data = torch.randn(64, 2, 32, generator=torch.Generator().manual_seed(1))
    lost(network(), data)
    assert sizes and max(sizes) <= 48  # the channels of both models; the inputs are 5 times as many
