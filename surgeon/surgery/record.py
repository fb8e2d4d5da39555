"""What a module computes, as the calls of operators that it makes on tensors without values.

Where two modules make the same calls, they compute the same. Recording takes a fifth of the time of an export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from surgeon.frontend.functionalize import functional_variant
from surgeon.frontend.isolation import quietly, with_masks_as_given, without_fast_attention
from surgeon.frontend.trace import Inputs
from surgeon.ir.operators import by_name, is_a, operator_name
from surgeon.surgery.canonical import Call, Shape, Stream, Value, call_of, map_leaves, results_of, values


class Stand:
    """Tensors without values that stand for real ones, one for each."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        self._of: dict[int, tuple[Tensor, Tensor]] = {}  # the real ones too, so that no identity is given out twice
        self._real: dict[int, int] = {}

    def of(self, value: Any) -> Any:
        """The stand-in of a tensor; anything else as it is."""
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            return value
        if id(value) not in self._of:
            with self.mode:
                fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
            fake.requires_grad_(value.requires_grad)  # composite operators look at it
            self._of[id(value)] = (value, fake)
            self._real[id(fake)] = id(value)
        return self._of[id(value)][1]

    def real(self, fake: Tensor) -> int | None:
        """The identity of the real tensor that this one stands for, if it stands for one."""
        return self._real.get(id(fake))


class Recorder(TorchDispatchMode):
    """Notes the calls made inside it; enter it inside of `stand.mode`."""

    supports_higher_order_operators = True

    def __init__(self, stand: Stand) -> None:
        super().__init__()
        self.stand = stand
        self._calls: list[Call] = []
        self._values: dict[int, Value] = {}
        self._alive: list[Tensor] = []  # so that no identity is given out twice
        self._sharing: dict[int, set[int]] = {}  # tensors by the memory that they are in
        self._doubt = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            self._doubt = True  # an operator over regions, which may hide calls
            return func(*args, **kwargs)
        args, kwargs = map_leaves(args, self.stand.of), map_leaves(kwargs, self.stand.of)
        named = by_name(func, args, kwargs)
        told = map_leaves(named, lambda each: self._value(each) if isinstance(each, Tensor) else each)
        result = func(*args, **kwargs)
        self._note(func, named, told, result)
        return result

    def stream(self, outputs: Any) -> Stream | None:
        """The calls that `outputs` need, in order, and the outputs; None where they do not tell what is computed."""
        ends = [self._value(leaf) for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
        if self._doubt:
            return None
        needed: set[int] = set()
        todo = [value.call for value in ends]
        while todo:
            index = todo.pop()
            if index >= 0 and index not in needed:
                needed.add(index)
                todo += [value.call for value in values(self._calls[index].arguments)]
        order = {-1: -1} | {index: place for place, index in enumerate(sorted(needed))}

        def renamed(value: Any) -> Any:
            return Value(order[value.call], value.place) if isinstance(value, Value) else value

        calls = [self._calls[index] for index in sorted(needed)]
        return Stream(
            [replace(call, arguments=map_leaves(call.arguments, renamed)) for call in calls], [renamed(v) for v in ends]
        )

    def _value(self, tensor: Tensor) -> Value:
        tensor = self.stand.of(tensor)
        if id(tensor) not in self._values:
            real = self.stand.real(tensor)
            self._doubt |= real is None  # it came about unseen
            self._know(tensor, Value(-1, real or 0))
        return self._values[id(tensor)]

    def _know(self, tensor: Tensor, value: Value) -> None:
        self._values[id(tensor)] = value
        self._alive.append(tensor)
        self._sharing.setdefault(tensor.untyped_storage()._cdata, set()).add(id(tensor))

    def _note(self, func: Any, named: Mapping[str, Any], told: dict[str, Any], result: Any) -> None:
        if self._doubt:
            return
        results = results_of(result)
        if not any(isinstance(each, Tensor) for each in results):
            return
        if func._schema.is_mutable:
            plain = functional_variant(func)
            if plain is None or result is not (target := named.get("self")) or not self._alone(target):
                self._doubt = True  # others may see what is written
                return
            func = plain
        elif is_a(func, "identity") or (_moves_nothing(func, named) and _alike(named["self"], result)):
            self._know(result, told["self"])
            return
        shapes = [_shape(each) for each in results]
        if not all(isinstance(size, int) for shape in shapes for size in shape):
            self._doubt = True  # sizes that depend on values are named differently from run to run
            return
        for place, each in enumerate(results):
            if isinstance(each, Tensor):
                self._know(each, Value(len(self._calls), place))
        self._calls.append(call_of(func, told, _shape(named.get("self")), shapes, result))

    def _alone(self, tensor: Tensor) -> bool:
        """Whether a call made it, and no other tensor is in its memory."""
        made = self.stand.real(tensor) is None
        return made and self._sharing.get(tensor.untyped_storage()._cdata) == {id(tensor)}


def _moves_nothing(func: Any, named: Mapping[str, Any]) -> bool:
    """Whether an operator computes its input where the shapes are the same."""
    return is_a(func, "view") or (operator_name(func) == "slice" and named["step"] == 1)


def _alike(a: Tensor, b: Tensor) -> bool:
    return (_shape(a), a.dtype) == (_shape(b), b.dtype)


def _shape(value: Any) -> Shape:
    """Sizes; those that depend on values by their names, as nothing can be asked of them."""
    sizes: tuple[Any, ...] = tuple(value.shape) if isinstance(value, Tensor) else ()
    return tuple(size if isinstance(size, int) else str(size) for size in sizes)


def record(module: nn.Module, inputs: Inputs, stand: Stand) -> Stream | None:
    """The calls that `module` makes; None where they do not tell what it computes. Raises what its forward raises."""
    args, kwargs = pytree.tree_map(stand.of, inputs)
    recorder = Recorder(stand)
    with quietly(), with_masks_as_given(), without_fast_attention(), torch.no_grad(), stand.mode, recorder:
        outputs = module(*args, **kwargs)
    return recorder.stream(outputs)
