"""An operator over masked units, computed as the smaller one that surgery makes of it: on the positions that are kept.

Where it is all that a layer of torch computes, a hook on that layer puts its result in the place of the layer's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from surgeon.errors import SurgeryError
from surgeon.groups.coupling import Groups
from surgeon.ir.axes import Axis
from surgeon.rules import Axes, Kept, arguments, where

#: Operators whose axes count from the front, whatever rank the operand has.
_CHANNELS_FIRST = ("group_norm", "batch_norm", "instance_norm", "native_batch_norm")


def operator_name(target: object) -> str:
    """The name that an ATen operator and the functions which call it have in common.

    >>> operator_name(torch.ops.aten._softmax.default), operator_name(torch.Tensor.__matmul__)
    ('softmax', 'matmul')
    """
    name = target._opname if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", "")
    return str(name).strip("_")


@dataclass(frozen=True)
class _Cut:
    """Which positions of one axis of a tensor are kept; `dim` counts from the end where it is negative."""

    dim: int
    size: int
    positions: Tensor

    def same(self, other: _Cut) -> bool:
        return (self.dim, self.size) == (other.dim, other.size) and torch.equal(self.positions, other.positions)

    def fits(self, x: Any) -> bool:
        return isinstance(x, Tensor) and -x.dim() <= self.dim < x.dim() and x.shape[self.dim] == self.size

    def gather(self, x: Tensor) -> Tensor:
        return x.index_select(self.dim, self.positions.to(x.device))

    def scatter(self, x: Tensor) -> Tensor:
        dim = self.dim % x.dim()
        zeros = x.new_zeros([*x.shape[:dim], self.size, *x.shape[dim + 1 :]])
        return zeros.index_copy(dim, self.positions.to(x.device), x)


@dataclass(frozen=True)
class Site:
    """An operator of the graph, and what is kept of its operands and results.

    `given` are the smaller operator's arguments, tensors as None; an argument in `trailing` is that many of the last
    sizes of the first operand. `kept` says for each operand what is kept of it, `out` the same of each result. The
    operator is held by its name, as operators can't be pickled.
    """

    place: str
    operator: tuple[str, str, str]
    given: Mapping[str, Any]
    trailing: Mapping[str, int]
    kept: Mapping[str, tuple[_Cut, ...]]
    out: tuple[tuple[_Cut, ...], ...]

    @classmethod
    def of(cls, groups: Groups, kept: Kept, node: fx.Node, over: Iterable[Axis]) -> Site | None:
        """The node where units are gone of the axes that it sums `over`; None if there is no smaller one of it."""
        typed, given = groups.typed[node], arguments(node)
        operands = {name: value for name, value in given.items() if isinstance(value, fx.Node)}
        axes = {name: groups.axes[value] for name, value in operands.items()}
        listed = any(isinstance(each, fx.Node) for v in given.values() if isinstance(v, list | tuple) for each in v)
        if typed.target is not None or listed or not axes or any(isinstance(each, list) for each in axes.values()):
            return None
        # Units of other axes stay: their zeros are no one's business here.
        summed = {leaf.id for axis in over for leaf in groups.space.leaves(axis)}
        only = groups.kept({leaf: units for leaf, units in kept.keep.items() if leaf in summed})
        front = operator_name(node.target).startswith(_CHANNELS_FIRST) or _from_front(given.get("dim"))
        first = [axis.size for axis in next(iter(axes.values())) if not isinstance(axis, tuple)]
        trailing = {
            name: len(value)
            for name, value in given.items()
            if name in typed.args and isinstance(value, list) and value == first[-len(value) :]
        }
        constants = {name: None if name in operands else value for name, value in given.items()}
        printed = {name: print_(only) for name, print_ in typed.args.items()}
        schema = node.target._schema  # type: ignore[union-attr]
        return cls(
            where(node),
            (*schema.name.split("::"), schema.overload_name or "default"),
            {**constants, **printed},
            trailing,
            {name: _cuts(each, only, front) for name, each in axes.items() if isinstance(each, tuple)},
            tuple(_cuts(each, only, front) for each in (typed.out if isinstance(typed.out, list) else [typed.out])),
        )

    @property
    def sizes(self) -> set[int]:
        """The full sizes of the axes that units are gone of."""
        return {cut.size for cuts in self.kept.values() for cut in cuts}

    def same(self, other: Site) -> bool:
        """Whether both compute the same of the same operands."""
        if (self.operator, self.given, self.kept.keys()) != (other.operator, other.given, other.kept.keys()):
            return False
        pairs = zip([*self.kept.values(), *self.out], [*other.kept.values(), *other.out], strict=True)
        return all(len(a) == len(b) and all(x.same(y) for x, y in zip(a, b, strict=True)) for a, b in pairs)

    def compute(self, found: Mapping[str, Any]) -> Any:
        """The smaller operator's result at the kept positions, and zeros at the others.

        `found` are the call's arguments by their names in the operator's schema. Tensors, numbers that are no sizes
        and types are taken from there, the rest is as it was traced.

        Raises:
            SurgeryError: an operand is missing or not of the shape that was traced.
        """
        values = dict(self.given)
        values |= {n: v for n, v in found.items() if n in values and isinstance(v, Tensor | float | torch.dtype)}
        for name, cuts in self.kept.items():
            x = values[name]
            if not all(cut.fits(x) for cut in cuts) or not isinstance(x, Tensor):
                shape = list(x.shape) if isinstance(x, Tensor) else x
                raise SurgeryError(
                    f"{self.place}: {name} is {shape} where sizes {[cut.size for cut in cuts]} were traced, so its "
                    "masked units can't be told from the others\nRemedy: call it on no other tensors, or give those a "
                    "module of their own."
                )
            for cut in cuts:
                x = cut.gather(x)
            values[name] = x
        first = values[next(iter(self.kept))]
        values |= {name: first.shape[-count:] for name, count in self.trailing.items()}
        namespace, name, overload = self.operator
        result = getattr(getattr(getattr(torch.ops, namespace), name), overload)(**values)
        if isinstance(result, Tensor):
            return _scattered(result, self.out[0])
        return tuple(_scattered(each, cuts) for each, cuts in zip(result, self.out, strict=True))


def _from_front(dim: Any) -> bool:
    return any(each >= 0 for each in (dim if isinstance(dim, list) else [dim]) if isinstance(each, int))


def _cuts(axes: Axes, kept: Kept, front: bool) -> tuple[_Cut, ...]:
    return tuple(
        _Cut(dim if front else dim - len(axes), axis.size, torch.from_numpy(kept.positions(axis).copy()))
        for dim, axis in enumerate(axes)
        if kept.changed(axis)
    )


def _scattered(x: Tensor, cuts: tuple[_Cut, ...]) -> Tensor:
    for cut in cuts:
        x = cut.scatter(x)
    return x


@dataclass(frozen=True)
class MaskedLayer:
    """A layer of torch that is one operator, over kept units: a forward hook that gives another result.

    The layer keeps its class, its parameters and its own hooks, which see the masked result. Its tensors and numbers
    are read when it is called, from attributes that are named as the operator's arguments are.
    """

    site: Site

    @staticmethod
    def possible(module: nn.Module) -> bool:
        """Whether the module is a layer of torch, with torch's own forward and nothing in it."""
        code = getattr(type(module).forward, "__module__", "")
        return code.startswith("torch.nn.modules") and "forward" not in vars(module) and not any(module.children())

    def attach(self, module: nn.Module) -> list[RemovableHandle]:
        """Hook the layer; the handle that undoes it."""
        return [module.register_forward_hook(self.masked, prepend=True, with_kwargs=True)]

    def masked(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """What the layer gives, over its kept units."""
        operand, *others = self.site.given
        found = {name: getattr(module, name, None) for name in others}
        result = self.site.compute({**found, operand: args[0] if args else kwargs["input"]})
        return result if isinstance(result, Tensor) else result[0]
