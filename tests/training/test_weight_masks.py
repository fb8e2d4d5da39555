"""Masks during training: what they hold at zero, and that all of it can be taken back."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from surgeon.errors import InvalidArgument, WeightsError
from surgeon.training.weight_masks import Masks


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def pattern(model: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(p.shape, generator=generator) > 0.5 for n, p in model.named_parameters() if p.dim() > 1}


def value(model: nn.Module, name: str) -> nn.Parameter:
    return model.get_parameter(name)


def grad(model: nn.Module, name: str) -> torch.Tensor:
    gradient = model.get_parameter(name).grad
    assert gradient is not None
    return gradient


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 6)).square().sum().backward()
    optimizer.step()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_leaves_masked_entries_at_zero_and_moves_the_others(name: str) -> None:
    model = mlp()
    optimizer, masks, keep = OPTIMIZERS[name](model.parameters()), Masks(model), pattern(model)
    step(model, optimizer)  # moments that would move masked entries
    masks.set(keep)
    for _ in range(3):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        step(model, optimizer)
        masks.enforce()
        for n, parameter in model.named_parameters():
            if n in keep:
                assert parameter[~keep[n]].eq(0).all() and grad(model, n)[~keep[n]].eq(0).all()
                assert parameter[keep[n]].ne(before[n][keep[n]]).any()


def test_gradients_are_those_of_the_masked_function() -> None:
    model, x = mlp(), torch.randn(4, 6)
    keep = pattern(model)
    weights = {n: (p.detach() * keep[n] if n in keep else p.detach()) for n, p in model.named_parameters()}
    leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
    masked = {n: w * keep[n] if n in keep else w for n, w in leaves.items()}
    torch.func.functional_call(model, masked, x).square().sum().backward()
    Masks(model).set(keep)
    model(x).square().sum().backward()
    for n, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, leaves[n].grad)


def test_an_infinite_gradient_of_a_masked_entry_is_zero() -> None:
    model = nn.Linear(2, 1, bias=False)
    Masks(model).set({"weight": torch.tensor([[True, False]])})
    model(torch.tensor([[1.0, float("inf")]]).nan_to_num(posinf=0)).backward()
    model.weight.grad = None
    (model.weight * torch.tensor([[1.0, float("nan")]])).sum().backward()
    assert model.weight.grad is not None and model.weight.grad.tolist() == [[1.0, 0.0]]


def test_release_gives_everything_back() -> None:
    model = mlp()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    keys, masks = list(model.state_dict()), Masks(model)
    masks.set(pattern(model, 0))
    masks.set(pattern(model, 1))
    assert list(model.state_dict()) == keys
    masks.release()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert not masks.keep
    model(torch.randn(4, 6)).sum().backward()
    assert grad(model, "0.weight").ne(0).all(1).any()


def test_entries_that_come_back_have_the_value_that_they_had_when_they_were_masked() -> None:
    model = mlp()
    old, masks = value(model, "0.weight").detach().clone(), Masks(model)
    first, second = pattern(model, 0), pattern(model, 1)
    masks.set(first)
    with torch.no_grad():
        value(model, "0.weight").add_(1)
    masks.set(second)
    name = "0.weight"
    back, held = second[name] & ~first[name], second[name] & first[name]
    assert torch.equal(value(model, "0.weight")[back], old[back])
    torch.testing.assert_close(value(model, "0.weight")[held], old[held] + 1)
    assert value(model, "0.weight")[~second[name]].eq(0).all()
    masks.release()
    gone_later = first[name] & ~second[name]
    torch.testing.assert_close(value(model, "0.weight")[gone_later], old[gone_later] + 1)


def test_masks_of_other_parameters_stay() -> None:
    model = mlp()
    masks, keep = Masks(model), pattern(model)
    masks.set({"0.weight": keep["0.weight"]})
    masks.set({"2.weight": keep["2.weight"]})
    assert set(masks.keep) == {"0.weight", "2.weight"}
    assert value(model, "0.weight")[~keep["0.weight"]].eq(0).all()


def test_tied_parameters_are_masked_once() -> None:
    model = mlp()
    model.add_module("again", nn.Linear(6, 8))
    model.get_submodule("again").weight = value(model, "0.weight")
    keep = pattern(mlp())["0.weight"]
    masks = Masks(model)
    masks.set({"again.weight": keep})
    assert list(masks.keep) == ["0.weight"]
    assert value(model, "again.weight")[~keep].eq(0).all()
    with pytest.raises(InvalidArgument, match=r"again\.weight is tied to 0\.weight, but has another mask"):
        masks.set({"0.weight": keep, "again.weight": ~keep})
    masks.set({"0.weight": keep, "again.weight": keep})


def test_a_copy_has_the_zeros_alone() -> None:
    model, keep = mlp(), pattern(mlp())
    Masks(model).set(keep)
    twin = copy.deepcopy(model)
    assert torch.equal(value(twin, "0.weight"), value(model, "0.weight"))
    twin(torch.randn(4, 6)).sum().backward()
    assert grad(twin, "0.weight")[~keep["0.weight"]].ne(0).any()


def test_parameters_that_are_replaced_or_frozen_are_held_too() -> None:
    model, keep = mlp(), pattern(mlp())
    value(model, "2.weight").requires_grad_(False)
    masks = Masks(model)
    masks.set(keep)
    model.load_state_dict({n: torch.ones_like(p) for n, p in model.state_dict().items()}, assign=True)
    value(model, "2.weight").requires_grad_(True)
    masks.enforce()
    model(torch.randn(4, 6)).square().sum().backward()
    for name in keep:
        parameter = model.get_parameter(name)
        assert torch.equal(parameter.ne(0), keep[name]) and grad(model, name)[~keep[name]].eq(0).all()


def test_state_is_resumed_from_a_file(tmp_path: Path) -> None:
    model = mlp()
    before, masks = value(model, "0.weight").detach().clone(), Masks(model)
    masks.set(pattern(model))
    save_file({**model.state_dict()}, tmp_path / "model")
    save_file(masks.state_dict(), tmp_path / "masks")
    for model_first in (True, False):
        other = mlp()
        value(other, "0.weight").data.fill_(7)
        resumed = Masks(other)
        resumed.set({"0.weight": torch.zeros(8, 6, dtype=torch.bool), "0.bias": torch.zeros(8, dtype=torch.bool)})
        if model_first:
            other.load_state_dict(load_file(tmp_path / "model"))
        resumed.load_state_dict(load_file(tmp_path / "masks"))
        if not model_first:
            other.load_state_dict(load_file(tmp_path / "model"))
        assert set(resumed.keep) == {"0.weight", "2.weight"}
        assert all(torch.equal(value(other, n), value(model, n)) for n in ("0.weight", "0.bias"))
        resumed.release()
        assert torch.equal(value(other, "0.weight"), before)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({"3.weight": torch.ones(3, 8).bool()}, "'3.weight' is not a parameter"),
    "another shape": ({"0.weight": torch.ones(6, 8).bool()}, r"boolean tensor of shape \(8, 6\), not torch.bool of"),
    "numbers": ({"0.weight": torch.ones(8, 6)}, "not torch.float32"),
    "a list": ({"0.weight": [True]}, "not list"),
}


@pytest.mark.parametrize("name", BAD)
def test_careless_masks_are_refused_and_change_nothing(name: str) -> None:
    keep, message = BAD[name]
    model = mlp()
    masks = Masks(model)
    with pytest.raises(InvalidArgument, match=message):
        masks.set({"2.weight": torch.zeros(3, 8).bool(), **keep})
    assert value(model, "2.weight").ne(0).all() and not masks.keep


def test_the_state_of_another_model_is_refused() -> None:
    model = mlp()
    masks = Masks(model)
    masks.set(pattern(model))
    state = masks.state_dict()
    with pytest.raises(WeightsError, match="the state is of another model"):
        Masks(nn.Linear(2, 2)).load_state_dict(state)
    with pytest.raises(WeightsError, match=r"0\.weight does not belong"):
        masks.load_state_dict({k: v for k, v in state.items() if k != "0.weight.keep"})
    with pytest.raises(WeightsError, match=r"0\.weight does not belong to the state of masks"):
        masks.load_state_dict(model.state_dict())
    with pytest.raises(InvalidArgument, match="model is a dict"):
        Masks({})  # type: ignore[arg-type]
