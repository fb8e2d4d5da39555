"""Operators of a module's own code, computed over kept positions only while its parameters are masked.

They are found as they are called: while a module's `forward` runs, a `TorchFunctionMode` sees each torch function, and
counts, in order, those that the graph has as operators of this very module.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from surgeon.errors import SurgeryError
from surgeon.rules import arguments
from surgeon.verification.reference import STATISTICS

_HALF = (torch.float16, torch.bfloat16)


def operator_name(target: object) -> str:
    """The name shared by an ATen operator and the functions that call it.

    >>> operator_name(torch.ops.aten._softmax.default), operator_name(torch.Tensor.__matmul__)
    ('softmax', 'matmul')
    """
    name = target._opname if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", "")
    return str(name).strip("_")


@dataclass(frozen=True)
class Site:
    """One operator, and the kept positions of its operand `operand`, as a boolean mask for each dim.

    `given` are the operator's arguments as traced, with tensors replaced by None, and `tensors` the names of those
    tensors, in order. A statistic is computed by its formula; otherwise the operand's other positions are zeroed.
    """

    place: str
    operator: str
    operand: str
    keep: Mapping[int, Tensor]
    given: Mapping[str, Any]
    tensors: tuple[str, ...]
    statistic: bool

    @classmethod
    def of(cls, node: fx.Node, place: str, operand: str, keep: Mapping[int, Tensor], statistic: bool) -> Site:
        given = arguments(node)
        tensors = tuple(name for name, value in given.items() if isinstance(value, fx.Node))
        constants = {name: None if name in tensors else value for name, value in given.items()}
        return cls(place, node.target._opname, operand, keep, constants, tensors, statistic)  # type: ignore[union-attr]

    def same(self, other: Site) -> bool:
        return self.keep.keys() == other.keep.keys() and all(
            torch.equal(keep, other.keep[dim]) for dim, keep in self.keep.items()
        )

    def compute(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The operator's result over the kept positions."""
        found = self._tensors(function, args, kwargs)
        x = found.get(self.operand)
        if not isinstance(x, Tensor) or any(
            dim >= x.dim() or x.shape[dim] != len(keep) for dim, keep in self.keep.items()
        ):
            raise SurgeryError(f"{self.place}: the operand's shape differs from the traced one")
        mask = torch.ones((), dtype=torch.bool, device=x.device)
        for dim, keep in self.keep.items():
            mask = mask & keep.to(x.device).reshape([-1 if d == dim else 1 for d in range(x.dim())])
        if not self.statistic:
            zeroed = x.masked_fill(~mask, 0)
            args, kwargs = pytree.tree_map(lambda value: zeroed if value is x else value, (args, dict(kwargs)))
            return function(*args, **kwargs)
        return self._statistic(found, x, mask)

    def _statistic(self, found: Mapping[str, Tensor], x: Tensor, mask: Tensor) -> Any:
        values = {**self.given, **found}
        if float(values.get("dropout_p") or 0) > 0:
            raise SurgeryError(f"{self.place}: attention over removed keys can't be masked with dropout")
        half = x.dtype in _HALF
        if half:
            values = {n: v.float() if isinstance(v, Tensor) and v.dtype in _HALF else v for n, v in values.items()}
            x = values[self.operand]
        result = STATISTICS[self.operator][1](values, mask.to(x.dtype).expand_as(x))
        wide = torch.is_autocast_enabled(x.device.type) or values.get("dtype") == torch.float32
        if half and not wide:
            return pytree.tree_map(lambda value: value.to(found[self.operand].dtype), result)
        return result

    def _tensors(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The call's tensors, by their names in the operator's schema."""
        try:
            named = dict(inspect.signature(function).bind(*args, **kwargs).arguments)
        except (ValueError, TypeError):  # torch's C functions have no signature; their tensors come in order
            named = dict(kwargs)
            left = [name for name in self.tensors if name not in kwargs]
            named |= zip(left, (value for value in args if isinstance(value, Tensor)), strict=False)
        for name, other in (("self", "input"), ("input", "self")):
            if name in self.tensors and name not in named and other in named:
                named[name] = named[other]
        return {name: named[name] for name in self.tensors if isinstance(named.get(name), Tensor)}


class _Mode(TorchFunctionMode):
    """Counts a module's own operators during one call, and computes the sites among them."""

    def __init__(self, sites: Mapping[tuple[str, int], Site], counted: Mapping[str, int]) -> None:
        super().__init__()
        self.sites, self.counted = sites, counted
        self.seen: Counter[str] = Counter()
        self.inside = 0  # running calls of submodules, whose operators are not this module's own

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = operator_name(func)
        if self.inside or name not in self.counted:
            return func(*args, **(kwargs or {}))
        site = self.sites.get((name, self.seen[name]))
        self.seen[name] += 1
        return site.compute(func, args, kwargs or {}) if site is not None else func(*args, **(kwargs or {}))


@dataclass
class Interceptor:
    """The sites in the code of one module, by operator name and index among the operators of that name in a call.

    `counted` says how many operators of each of these names a call has.
    """

    path: str
    sites: Mapping[tuple[str, int], Site]
    counted: Mapping[str, int]
    running: list[_Mode] = field(default_factory=list, repr=False)

    def attach(self, module: nn.Module) -> list[RemovableHandle]:
        """Hook the module and its submodules; returns the handles that undo it."""
        handles = [
            module.register_forward_pre_hook(self.enter),
            module.register_forward_hook(self.leave, prepend=True, always_call=True),
        ]
        for inner in module.modules():
            if inner is not module:
                handles.append(inner.register_forward_pre_hook(self.pause, prepend=True))
                handles.append(inner.register_forward_hook(self.resume, always_call=True))
        return handles

    def enter(self, module: nn.Module, args: Any) -> None:
        mode = _Mode(self.sites, self.counted)
        mode.__enter__()
        self.running.append(mode)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        mode = self.running.pop()
        mode.__exit__(None, None, None)
        if output is not None and mode.seen != Counter(self.counted):  # without output, forward has failed
            raise SurgeryError(
                f"{self.path or type(module).__name__}: its code calls {dict(mode.seen)} where {dict(self.counted)} "
                "were traced, so its masked units can't be told from the others"
            )

    def pause(self, module: nn.Module, args: Any) -> None:
        if self.running:
            self.running[-1].inside += 1

    def resume(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.running:
            self.running[-1].inside -= 1
