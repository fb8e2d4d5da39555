"""Noise in place of data: smooth where signals are, and with batch norms of its own statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from surgeon.calibration.data import calibrate
from surgeon.calibration.noise import Made, noise_for
from surgeon.calibration.restated import judged_on, restated, stored
from surgeon.errors import InvalidArgument, InvalidModel
from surgeon.frontend.trace import Inputs, trace
from surgeon.groups.analyze import analyze
from surgeon.groups.interpreter import Interpreter


def real(count: int, seed: int = 0) -> Tensor:
    """Smooth, of another mean and spread than noise."""
    noise = torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    return 3 + 2 * F.interpolate(noise, size=(12, 12), mode="bilinear")


class Normed(nn.Sequential):
    """A classifier of where the mean is highest, trained for a moment."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(2, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 4),
        )
        optimizer = torch.optim.Adam(self.parameters(), 1e-2)
        for step in range(40):
            x = real(64, step)
            loss = F.cross_entropy(self(x), labels(x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.eval()


def labels(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x.mean(1), 2).flatten(1).argmax(1)


@pytest.fixture(scope="module")
def net() -> Normed:
    return Normed()


def deviation(slim: nn.Module, net: nn.Module) -> float:
    """Of the outputs on real inputs, relative."""
    x = real(512, 99)
    with torch.no_grad():
        wanted = net(x)
        return float((slim(x) - wanted).norm() / (wanted - wanted.mean(0)).norm())


def test_noise_makes_up_for_a_cut_without_data(net: Normed) -> None:
    options: dict[str, Any] = {"example_inputs": torch.randn(2, 2, 12, 12), "importance": "magnitude"}
    plain = surgeon.shrink(net, 0.7, compensate=False, **options)
    slim, report = surgeon.shrink(net, 0.7, data="noise", return_report=True, **options)
    assert deviation(slim, net) < 0.6 * deviation(plain, net)
    assert any("take its statistics" in note for note in report.recovery.notes)
    assert report.recovery.distilled is None


def test_units_are_judged_on_noise_too(net: Normed) -> None:
    options: dict[str, Any] = {"example_inputs": torch.randn(2, 2, 12, 12)}
    plain = surgeon.shrink(net, 0.7, compensate=False, **options)
    assert deviation(surgeon.shrink(net, 0.7, data="noise", **options), net) < 0.6 * deviation(plain, net)


def test_a_plan_can_be_recovered_with_noise(net: Normed) -> None:
    plan = surgeon.plan(net, 0.7, example_inputs=torch.randn(2, 2, 12, 12))
    slim = plan.apply(net)
    before = {name: value.clone() for name, value in slim.state_dict().items()}
    better = surgeon.recover(net, slim, plan, "noise")
    assert deviation(better, net) < 0.6 * deviation(slim, net)
    assert all(torch.equal(value, before[name]) for name, value in slim.state_dict().items())


def test_nothing_is_changed_where_nothing_is_cut(net: Normed) -> None:
    plan = surgeon.plan(net, 0.0, example_inputs=torch.randn(2, 2, 12, 12))
    same = surgeon.recover(net, plan.apply(net), plan, "noise")
    for name, value in net.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], value)


def test_batch_norms_take_the_statistics_of_the_inputs_each_after_those_before(net: Normed) -> None:
    groups = analyze(net, torch.randn(2, 2, 12, 12))
    batches: list[Inputs] = [((torch.randn(16, 2, 12, 12),), {})]
    found = restated(groups, batches)
    reference = Normed().train()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        reference(batches[0][0][0])
    unbiased = 16 * 144 / (16 * 144 - 1)
    for norm, module in zip(stored(groups), [reference[1], reference[4]], strict=True):
        torch.testing.assert_close(found.graph.tensor(norm.mean), module.running_mean)
        torch.testing.assert_close(found.graph.tensor(norm.variance) * unbiased, module.running_var)
        assert groups.graph.tensor(norm.mean) is not found.graph.tensor(norm.mean)
    with torch.no_grad():
        whole = Interpreter(groups.graph, batches[0]).run()[0]
    torch.testing.assert_close(whole, net(batches[0][0][0]))


def test_neighbors_are_alike_where_a_model_convolves() -> None:
    def likeness(x: Tensor, axis: int) -> float:
        a, b = x.narrow(axis, 0, x.shape[axis] - 1), x.narrow(axis, 1, x.shape[axis] - 1)
        return float((a * b).mean() / x.square().mean())

    def drawn(model: nn.Module, example: Tensor) -> Tensor:
        made: Made = noise_for(trace(model, example), 64)
        value: Tensor = made.leaves[0]
        assert abs(float(value.std()) - 1) < 0.1
        return value

    image = drawn(nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 32, 32))
    assert likeness(image, 2) > 0.5 and likeness(image, 3) > 0.5 and abs(likeness(image, 1)) < 0.1
    sound = drawn(nn.Conv1d(2, 4, 3), torch.zeros(2, 2, 256))
    assert likeness(sound, 2) > 0.5
    wave = drawn(nn.Sequential(nn.Unflatten(1, (1, 256)), nn.Conv1d(1, 4, 3)), torch.zeros(2, 256))
    assert likeness(wave, 1) > 0.5
    states = drawn(nn.Linear(8, 4), torch.zeros(2, 64, 8))
    assert likeness(states, 1) > 0.5 and abs(likeness(states, 2)) < 0.1
    assert abs(likeness(drawn(nn.Linear(64, 4), torch.zeros(2, 64)), 1)) < 0.1


@pytest.mark.parametrize(("layer", "unscaled", "again"), [
    (nn.Identity(), True, False), (nn.LayerNorm(16), False, False), (nn.BatchNorm1d(16), False, True),
])
def test_what_gives_values_their_scale(layer: nn.Module, unscaled: bool, again: bool) -> None:
    net = nn.Sequential(nn.Linear(4, 16), layer, nn.ReLU(), nn.Linear(16, 2)).eval()
    groups = analyze(net, torch.zeros(2, 4))
    found = calibrate("noise", groups.graph, net, 32)
    assert (found.noise, found.unscaled, found.restated) == (True, unscaled, again)
    assert (judged_on(groups, found) is groups) is not again


def test_noise_is_no_data_to_train_on() -> None:
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    with pytest.raises(InvalidArgument, match="labeled data"):
        surgeon.shrink(net, 0.5, example_inputs=torch.zeros(2, 4), data="noise", loss=F.cross_entropy)
    with pytest.raises(InvalidArgument, match="ranges of noise"):
        surgeon.quantize(net, "noise", example_inputs=torch.zeros(2, 4))


def test_inputs_that_cannot_be_drawn_are_refused() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.two(F.relu(self.one(x.float())))
            return out

    with pytest.raises(InvalidModel, match="no inputs can be synthesized"):
        surgeon.shrink(Counts(), 0.5, example_inputs=torch.ones(2, 4, dtype=torch.long), data="noise")
