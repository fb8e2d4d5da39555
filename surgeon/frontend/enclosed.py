"""Tensors that torch.export takes for constants: parameters that a function encloses, and what containers hold."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor

from surgeon.frontend.held import held_tensors

#: How torch.export names tensors that are no attributes of the model.
_LIFTED = "lifted_tensor_"


def name_enclosed(module: fx.GraphModule, model: nn.Module) -> None:
    """Read parameters that a function encloses, as one put in place of a forward may, under their own names.

    So are tensors in the lists, tuples and dicts of a module. To torch.export all these are constants that share their
    memory.
    """
    lifted = [n for n in module.graph.nodes if n.op == "get_attr" and _LIFTED in str(n.target).rpartition(".")[2]]
    own: dict[Any, tuple[str, Tensor]] = {}
    for name, value in (*model.named_parameters(), *held_tensors(model)) if lifted else ():
        own.setdefault(_view(value), (name, value))
    for node in lifted:
        constant = attrgetter(str(node.target))(module)
        found = own.get(_view(constant)) if isinstance(constant, Tensor) else None
        if found is None:
            continue
        name, value = found
        path, _, last = name.rpartition(".")
        owner: nn.Module = module
        for part in path.split(".") if path else ():
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if isinstance(value, nn.Parameter):
            owner.register_parameter(last, value)
        elif last not in owner._buffers:
            owner.register_buffer(last, value)
        node.target = name


def _view(value: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same elements of the same memory."""
    if isinstance(value, FakeTensor) or value.layout is not torch.strided or not value.numel():
        return (id(value),)
    return value.data_ptr(), tuple(value.shape), value.stride(), value.dtype, value.device
