"""Masked units: the model computes, and learns, what is left of it after surgery."""

import copy
from collections.abc import Iterable
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from surgeon.errors import InvalidArgument, SurgeryError, WeightsError
from surgeon.groups.analyze import analyze
from surgeon.groups.coupling import Groups
from surgeon.surgery.build import carry_out
from surgeon.training.unit_masks import UnitMasks
from testbed.networks import random_network
from testbed.trial import random_plan


def first_of(groups: Groups, share: float = 0.5) -> dict[int, Iterable[int]]:
    return {group.leaf.id: range(max(1, int(group.size * share))) for group in groups}


class Convolutional(nn.Module):
    """Norms of all kinds, a residual stream, constants that are not zero, a mean over channels in forward itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.batch, self.group = nn.BatchNorm2d(8), nn.GroupNorm(2, 8)
        layers = (nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Sigmoid(), nn.Conv2d(12, 8, 1))
        self.block = nn.Sequential(*layers)
        self.layer, self.gate, self.head = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.batch(self.stem(x))
        x = x + self.block(self.group(x))
        x = x - x.mean(dim=1, keepdim=True)
        y = self.layer(x.mean(dim=(2, 3)))
        product = torch.sigmoid(self.gate(y)) @ torch.sigmoid(y).T  # neither is zero where its input is
        return self.head(y) + product.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_masked_networks_compute_what_surgery_makes_of_them(first: int) -> None:
    hooked = 0
    for seed in range(first, first + 10):
        network, inputs = random_network(seed)
        groups = analyze(network, inputs)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        masks = UnitMasks(network, groups)
        masks.set(random_plan(groups, Random(f"{seed}/0")))
        assert masks.notes == ()
        operation, _ = carry_out(masks.bare(), groups, masks.keep)
        assert masks.deviation(operation.module) < 1e-9, f"seed {seed}"
        hooked += any(module._forward_pre_hooks for module in network.modules())
        masks.release()
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        assert not any(module._forward_pre_hooks for module in network.modules())
    assert hooked


def test_training_the_masked_model_is_training_the_smaller_one() -> None:
    model = Convolutional().double().train()
    groups = analyze(model, torch.randn(4, 3, 6, 6, dtype=torch.float64))
    masks = UnitMasks(model, groups)
    masks.set(first_of(groups))
    operation, _ = carry_out(masks.bare(), groups, masks.keep)
    slim = operation.module.train()
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=0.01) for m in (model, slim)]
    for _ in range(4):
        x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
        for each, optimizer in zip((model, slim), optimizers, strict=True):
            optimizer.zero_grad()
            each(x).square().mean().backward()
            optimizer.step()
        masks.enforce()
    again, _ = carry_out(masks.bare(), groups, masks.keep)
    for (name, a), b in zip(slim.state_dict().items(), again.module.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)
    assert masks.deviation(slim) < 1e-9


def test_units_that_come_back_have_what_they_had_also_in_buffers() -> None:
    model = Convolutional().train()
    groups = analyze(model, torch.randn(4, 3, 6, 6))
    mean = model.batch.running_mean
    assert mean is not None
    before, masks = mean.clone(), UnitMasks(model, groups)
    masks.set(first_of(groups))
    model(torch.randn(4, 3, 6, 6))
    assert mean.ne(before).any()
    masks.enforce()
    stays = model.batch.weight.ne(0)
    assert stays.any() and not stays.all()
    assert torch.equal(mean[~stays], before[~stays]) and mean[stays].ne(before[stays]).all()
    masks.set({})
    assert model.get_parameter("block.0.weight").ne(0).all() and masks.keep == {}
    assert model.batch.weight.eq(1).all()
    masks.release()


def test_a_copy_computes_the_same_and_the_keys_of_the_state_stay() -> None:
    model, x = Convolutional().eval(), torch.randn(2, 3, 6, 6)
    keys = list(model.state_dict())
    groups = analyze(model, x)
    masks = UnitMasks(model, groups)
    masks.set(first_of(groups))
    assert list(model.state_dict()) == keys and type(model) is Convolutional
    twin = copy.deepcopy(model)
    masked = model(x)
    masks.release()
    assert torch.equal(twin(x), masked) and not torch.allclose(model(x), masked)


def test_state_is_resumed_from_a_file(tmp_path: Path) -> None:
    model, x = Convolutional(), torch.randn(2, 3, 6, 6)
    masks = UnitMasks(model, analyze(model, x))
    masks.set(first_of(analyze(model, x)))
    model.train()(torch.randn(4, 3, 6, 6))
    masks.enforce()
    save_file(model.state_dict(), tmp_path / "model")
    save_file(masks.state_dict(), tmp_path / "masks")
    other = Convolutional()
    resumed = UnitMasks(other, analyze(other, x))
    resumed.load_state_dict(load_file(tmp_path / "masks"))
    other.load_state_dict(load_file(tmp_path / "model"))
    assert resumed.keep == masks.keep
    assert torch.equal(other.eval()(x), model.eval()(x))
    masks.release()
    resumed.release()
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values(), strict=True))
    with pytest.raises(WeightsError, match="the model has no group"):
        UnitMasks(other, analyze(other, x)).load_state_dict({"units.nowhere": torch.tensor([0])})


def test_half_precision_keeps_its_type() -> None:
    model, x = Convolutional().eval(), torch.randn(2, 3, 6, 6)
    groups = analyze(model, x)
    masks = UnitMasks(model, groups)
    masks.set(first_of(groups))
    expected = model(x)
    model.bfloat16()
    out = model(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)


class Plain(nn.Module):
    """A norm without weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:])


class Shared(nn.Module):
    """One norm without weights, called on two groups of units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.norm = Plain()

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.norm(self.second(self.norm(self.first(x)))))


def test_a_norm_on_different_units_is_noted_and_not_wrong_in_silence() -> None:
    model = Shared()
    groups = analyze(model, torch.randn(2, 4))
    masks = UnitMasks(model, groups)
    one, two = (group.leaf.id for group in groups)
    masks.set({one: range(4), two: range(4)})
    operation, _ = carry_out(masks.bare(), groups, masks.keep)
    assert not masks.notes and masks.deviation(operation.module) < 1e-9
    masks.set({one: range(4)})
    assert list(masks.notes) == ["layer_norm in norm: the module is called several times, on different units"]


class Changing(nn.Module):
    """Its code takes another path in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.training:
            x = F.layer_norm(x, x.shape[-1:])
        return self.down(F.layer_norm(x, x.shape[-1:]))


def test_code_that_is_not_what_was_traced_is_an_error() -> None:
    model = Changing()
    groups = analyze(model, torch.randn(2, 4))
    masks = UnitMasks(model.eval(), groups)
    masks.set(first_of(groups))
    model(torch.randn(2, 4))
    with pytest.raises(SurgeryError, match=r"calls \{'layer_norm': 2\} where \{'layer_norm': 1\} were traced"):
        model.train()(torch.randn(2, 4))
    masks.release()
    model(torch.randn(2, 4))


BAD: dict[str, tuple[dict[int | None, list[int]], str]] = {
    "no leaf": ({-1: [0]}, "-1 is not the leaf of a group"),
    "nothing left": ({None: []}, "at least one of its 8 units"),
    "twice": ({None: [0, 0]}, "each once"),
    "out of range": ({None: [0, 8]}, "of its 8 units"),
}


@pytest.mark.parametrize("name", BAD)
def test_careless_units_are_refused_and_change_nothing(name: str) -> None:
    keep, message = BAD[name]
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    groups = analyze(model, torch.randn(2, 4))
    masks = UnitMasks(model, groups)
    leaf = groups.groups[0].leaf.id
    with pytest.raises(InvalidArgument, match=message):
        masks.set({leaf if key is None else key: value for key, value in keep.items()})
    assert model.get_parameter("0.weight").ne(0).all() and masks.keep == {}


class SinglePrecision(nn.Module):
    """Its code makes a tensor in single precision, whatever its parameters are."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.place, self.down = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) + self.place(torch.linspace(0, 1, 3, dtype=torch.float32)))


def test_deviations_are_measured_where_code_names_a_type() -> None:
    model = SinglePrecision()
    groups = analyze(model, torch.randn(2, 4))
    masks = UnitMasks(model, groups)
    masks.set(first_of(groups))
    operation, _ = carry_out(masks.bare(), groups, masks.keep)
    assert masks.deviation(operation.module) < 1e-9
    assert masks.deviation(model) == 0
