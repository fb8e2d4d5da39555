"""Scripted parts of a model, in a traced copy of it: operators that run them as they are, since their code is gone."""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from surgeon.frontend.isolation import quietly

#: Calls of scripted modules that are remembered, the last ones.
REMEMBERED = 256


class _Call:
    """A scripted module and how it is called; what it returns has the structure `form`."""

    def __init__(self, module: torch.jit.ScriptModule, leaves: list[Any], spec: Any) -> None:
        self._modules: dict[torch.dtype, Any] = {torch.float32: module}
        self._leaves, self._spec = leaves, spec
        self.form: Any = None

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        kind = next((value.dtype for value in tensors if value.is_floating_point()), torch.float32)
        if kind not in self._modules:
            self._modules[kind] = copy.deepcopy(self._modules[torch.float32]).to(kind)
        given = iter(tensors)
        args, kwargs = pytree.tree_unflatten(
            [next(given) if leaf is None else leaf[0] for leaf in self._leaves], self._spec
        )
        found, self.form = pytree.tree_flatten(self._modules[kind](*args, **kwargs))
        return [value.clone() for value in found]


_CALLS: OrderedDict[str, _Call] = OrderedDict()


class _StandIn(nn.Module):
    """Calls a scripted module by an operator."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        super().__init__()
        self._held = [module]
        found = hashlib.sha256(str(module.graph).encode())
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            found.update(name.encode() + value.detach().cpu().double().numpy().tobytes())
        self._name = found.hexdigest()[:16]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        rest = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
        key = f"{self._name} {hashlib.sha256(f'{spec}{rest}'.encode()).hexdigest()[:16]}"
        if key not in _CALLS:
            _CALLS[key] = _Call(self._held[0], rest, spec)
            while len(_CALLS) > REMEMBERED:
                _CALLS.popitem(last=False)
        found = torch.ops.surgeon.scripted(tensors, key)
        return pytree.tree_unflatten(found, _CALLS[key].form)


@contextmanager
def with_opaque_scripts(model: nn.Module) -> Iterator[None]:
    """With one operator in place of each scripted module in `model`, a copy of the user's."""
    changed: list[tuple[nn.Module, str, torch.jit.ScriptModule]] = []
    todo = [model]
    seen: set[int] = set()
    while todo:
        module = todo.pop()
        seen.add(id(module))
        for name, child in module._modules.items() if not isinstance(module, torch.jit.ScriptModule) else ():
            if isinstance(child, torch.jit.ScriptModule):
                changed.append((module, name, child))
            elif child is not None and id(child) not in seen:
                todo.append(child)
    made = {id(child): child for _, _, child in changed}
    stands = {key: _StandIn(child) for key, child in made.items()}
    for module, name, child in changed:
        module._modules[name] = stands[id(child)]
    try:
        yield
    finally:
        for module, name, child in changed:
            module._modules[name] = child


@torch.library.custom_op("surgeon::scripted", mutates_args=(), schema="(Tensor[] inputs, str key) -> Tensor[]")
def _scripted(inputs: list[Tensor], key: str) -> list[Tensor]:
    return _CALLS[key]([value.detach() for value in inputs])


@_scripted.register_fake
def _shapes(inputs: list[Tensor], key: str) -> list[Tensor]:
    return seen_shapes(_CALLS[key], inputs)


def seen_shapes(run: Callable[[list[Tensor]], list[Tensor]], inputs: list[Tensor]) -> list[Tensor]:
    """Tensors of the shapes that it gives, seen from those at the sizes of the example inputs, and at others."""
    sizes = [[_number(size) for size in value.shape] for value in inputs]
    found = _at(inputs, sizes, run)
    shapes: list[list[Any]] = [list(value.shape) for value in found]
    every: list[Any] = [size for value in inputs for size in value.shape]
    symbols = {str(size): size for size in every if not isinstance(size, int)}
    for name, symbol in symbols.items():
        more = [
            [number + (str(size) == name) for number, size in zip(numbers, value.shape, strict=True)]
            for numbers, value in zip(sizes, inputs, strict=True)
        ]
        for shape, value, first in zip(shapes, _at(inputs, more, run), found, strict=True):
            for axis, (a, b) in enumerate(zip(value.shape, first.shape, strict=True)):
                if a != b:
                    shape[axis] = shape[axis] + (a - b) * (symbol - _number(symbol))
    like = next((value for value in inputs), torch.zeros(()))
    return [like.new_empty(shape, dtype=_kind(inputs, value)) for shape, value in zip(shapes, found, strict=True)]


def _kind(inputs: list[Tensor], value: Tensor) -> torch.dtype:
    given = next((each.dtype for each in inputs if each.is_floating_point()), value.dtype)
    return given if value.is_floating_point() else value.dtype


def _number(size: Any) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


def _at(
    inputs: list[Tensor], sizes: list[list[int]], run: Callable[[list[Tensor]], list[Tensor]]
) -> list[Tensor]:
    with _disable_current_modes(), quietly(), torch.no_grad():
        return run([
            torch.zeros(numbers, dtype=torch.float32 if value.is_floating_point() else value.dtype)
            for numbers, value in zip(sizes, inputs, strict=True)
        ])


def _saved(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.given = inputs


def _backward(ctx: Any, gradients: list[Tensor | None]) -> Any:
    inputs, key = ctx.given
    learnt = [v.detach().requires_grad_() if v.is_floating_point() else v for v in inputs]
    wanted = [value for value in learnt if value.requires_grad]
    with torch.enable_grad():
        found = _CALLS[key](learnt)
        pairs = [(a, b) for a, b in zip(found, gradients, strict=True) if b is not None and a.requires_grad]
        own = iter(torch.autograd.grad([a for a, _ in pairs], wanted, [b for _, b in pairs], allow_unused=True))
    return [next(own) if value.requires_grad else None for value in learnt], None


_scripted.register_autograd(_backward, setup_context=_saved)
