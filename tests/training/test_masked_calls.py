"""Masked layers and masked calls, in all the ways in which a training may run a forward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from surgeon.errors import SurgeryError
from surgeon.groups.analyze import analyse
from surgeon.surgery.build import carry_out
from surgeon.training.masked_calls import MaskedCalls
from surgeon.training.masked_statistics import MaskedLayer
from surgeon.training.unit_masks import UnitMasks


class Rms(nn.Module):
    """A norm written by hand, as many transformers have one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.failing = False

    def forward(self, x: Tensor) -> Tensor:
        square = x.pow(2).mean(-1, keepdim=True)
        if self.failing:
            raise RuntimeError("no")
        return self.weight * x * torch.rsqrt(square + 1e-6)


class Block(nn.Module):
    """Layers of torch and functions of its own code over a stream that is pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.rms = nn.LayerNorm(8), Rms(8)
        self.mix, self.drop = nn.Linear(8, 8), nn.Dropout(0.0)
        self.checkpointed = self.logging = self.branching = self.recursive = False
        self.logged: list[float] = []

    def forward(self, x: Tensor, depth: int = 0) -> Tensor:
        if self.training and self.logging:
            self.logged.append(float(x.detach().mean(1)[0, 0]))
        if self.training and self.branching:
            x = F.softmax(x, -1)
        if self.recursive and depth < 2:
            return self(x, depth + 1)
        x = checkpoint(self.inner, x, use_reentrant=False) if self.checkpointed else self.inner(x)
        return x.softmax(-1)

    def inner(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm(x))
        return x + F.layer_norm(self.rms(x), x.shape[-1:])


class Tokens(nn.Module):
    """Tokens of any number through two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second, self.head = nn.Linear(4, 8), Block(), Block(), nn.Linear(8, 3)
        self.checkpointed = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in (self.first, self.second):
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(x)


def masked() -> tuple[Tokens, nn.Module, UnitMasks]:
    """A masked model, and what surgery makes of it, both in train mode."""
    torch.manual_seed(0)
    model = Tokens()
    groups = analyse(model, torch.randn(2, 5, 4))
    masks = UnitMasks(model, groups)
    masks.set({group.leaf.id: range(group.size // 2) for group in groups})
    assert masks.notes == ()
    operation, _ = carry_out(masks.bare(), groups, masks.keep)
    return model.train(), operation.module.train(), masks


def gradients(model: nn.Module) -> list[float]:
    """The norms of the gradients: those of masked entries are zero."""
    return [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]


def alike(run: Callable[[Any], Tensor], model: nn.Module, slim: nn.Module, tolerance: float = 1e-5) -> None:
    """Both give the same in a run, and learn the same from it."""
    outputs = []
    for each in (model, slim):
        each.zero_grad()
        outputs.append(run(each))
        outputs[-1].float().square().sum().backward()
    torch.testing.assert_close(outputs[0], outputs[1], rtol=tolerance, atol=tolerance)
    assert gradients(slim) == pytest.approx(gradients(model), rel=100 * tolerance, abs=100 * tolerance)


def test_another_batch_and_another_length() -> None:
    model, slim, _ = masked()
    for shape in ((2, 5, 4), (7, 5, 4), (1, 8, 4), (3, 1, 4), (6, 4)):
        x = torch.randn(shape)
        alike(lambda each, x=x: each(x), model, slim)  # type: ignore[misc]


def test_autocast() -> None:
    model, slim, _ = masked()
    x = torch.randn(4, 5, 4)

    def run(each: nn.Module) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out: Tensor = each(x)
        return out

    alike(run, model, slim, tolerance=0.03)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")
@pytest.mark.parametrize("part", ["model", "block", "norm"])
def test_compiled(part: str) -> None:
    model, slim, _ = masked()
    torch.compiler.reset()
    for count in (4, 5, 6):
        x = torch.randn(count, 5, 4)
        if part == "model":
            compiled = torch.compile(model, backend="eager")
            alike(lambda each, x=x, c=compiled: (c if each is model else each)(x), model, slim)  # type: ignore[misc]
        else:
            module = model.first if part == "block" else model.first.norm
            module.compile(backend="eager")
            alike(lambda each, x=x: each(x), model, slim)  # type: ignore[misc]


def test_blocks_are_computed_again_for_the_gradients() -> None:
    model, slim, _ = masked()
    x = torch.randn(4, 5, 4)
    model.checkpointed = True
    alike(lambda each: each(x), model, slim)


def test_own_code_that_is_computed_again_is_refused() -> None:
    model, _, _ = masked()
    model.first.checkpointed = True
    with pytest.raises(SurgeryError, match=r"first: line \d+ of .* calls layer_norm in a"):
        model(torch.randn(4, 5, 4))


def test_replicas_in_threads() -> None:
    model, slim, _ = masked()

    def replica(module: Any) -> Any:
        """As torch.nn.parallel.replicate makes them, on one device."""
        other = module._replicate_for_data_parallel()
        other._modules = {name: replica(child) for name, child in module._modules.items()}
        for name, parameter in module._parameters.items():
            setattr(other, name, parameter * 1)
        return other

    inputs = [torch.randn(4, 5, 4) for _ in range(16)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda x: replica(model)(x), inputs))
    for x, out in zip(inputs, outputs, strict=True):
        torch.testing.assert_close(out, slim(x), rtol=1e-5, atol=1e-5)


def test_recursive_calls() -> None:
    model, slim, _ = masked()
    model.first.recursive = slim.get_submodule("first").recursive = True  # type: ignore[assignment]
    x = torch.randn(4, 5, 4)
    alike(lambda each: each(x), model, slim)


def test_an_exception_in_forward_leaves_nothing_behind() -> None:
    model, slim, _ = masked()
    x = torch.randn(4, 5, 4)
    model.first.rms.failing = True
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            model(x)
    model.first.rms.failing = False
    assert torch.softmax(torch.zeros(8), 0).sum() == 1
    alike(lambda each: each(x), model, slim)


def test_other_statistics_and_hooks_are_no_one_s_business() -> None:
    model, slim, _ = masked()
    seen: list[float] = []
    model.first.logging = True  # over tokens, of which none are masked
    model.first.register_forward_pre_hook(lambda module, args: seen.append(float(args[0].detach().mean())))
    model.first.register_forward_hook(lambda module, args, out: seen.append(float(out.detach().mean())))
    x = torch.randn(4, 5, 4)
    alike(lambda each: each(x), model, slim)
    assert len(seen) == 2 and len(model.first.logged) == 1


def test_a_branch_that_was_not_traced_is_refused_and_release_ends_it() -> None:
    model, _, masks = masked()
    model.first.branching = True
    model.eval()(torch.randn(4, 5, 4))
    model.train()
    with pytest.raises(SurgeryError, match=r"first: line \d+ of .*_calls.py calls softmax in a way that was"):
        model(torch.randn(4, 5, 4))
    masks.release()
    model(torch.randn(4, 5, 4))


def test_a_layer_on_other_sizes_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Softmax(-1), nn.Linear(8, 2))
    groups = analyse(model, torch.randn(2, 4))
    masks = UnitMasks(model, groups)
    masks.set({groups.groups[0].leaf.id: range(4)})
    with pytest.raises(SurgeryError, match=r"softmax in 1: self is \[2, 6\] where sizes \[8\] were traced"):
        model[1](torch.randn(2, 6))


def test_released_modules_are_the_same_as_before() -> None:
    torch.manual_seed(0)
    model = Tokens()
    before = {name: (module, dict(vars(module))) for name, module in model.named_modules()}
    groups = analyse(model, torch.randn(2, 5, 4))
    keys, masks = list(model.state_dict()), UnitMasks(model, groups)
    masks.set({group.leaf.id: range(group.size // 2) for group in groups})
    kinds = {type(getattr(h, "__self__", None)) for m in model.modules() for h in m._forward_hooks.values()}
    assert kinds == {MaskedLayer, MaskedCalls} and list(model.state_dict()) == keys
    assert type(model.first.norm) is nn.LayerNorm
    x = torch.randn(2, 5, 4)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    masks.release()
    for name, (module, values) in before.items():
        assert model.get_submodule(name) is module and vars(module) == values
