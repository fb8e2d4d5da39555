"""What a model uses at other sizes of its inputs than those of the example."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from surgeon.frontend.free_sizes import IsolatedCopy, Unfit, resized
from surgeon.frontend.trace import Inputs
from surgeon.surgery.ladder import Rung, beyond


def used_beyond(model: nn.Module, rung: Rung, names: Collection[str]) -> bool:
    """Whether one of the named parameters is used where a condition of the rung does not hold, in eval mode.

    Each condition is broken once. Where that takes sizes that are too large to try, it is taken to be so.
    """
    inputs = rung.groups.graph.inputs
    return any(at is None or used(model, resized(inputs, at), names) for at in beyond(rung))


def used(model: nn.Module, inputs: Inputs, names: Collection[str]) -> set[str]:
    """Those of the named parameters that operators read while the model runs on these inputs, in eval mode.

    There are none where it does not run.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> sorted(used(net, ((torch.zeros(1, 2),), {}), ["0.weight", "1.bias"]))
    ['0.weight', '1.bias']
    """
    noted = _Noted()

    def named(copy: nn.Module) -> None:
        own = dict(copy.named_parameters(remove_duplicate=False))
        noted.names = {id(own[name]): name for name in names}

    runner = IsolatedCopy(model, named)
    with noted:
        found = runner.run(inputs)
    return set() if isinstance(found, Unfit) else noted.found


class _Noted(TorchFunctionMode):
    """Notes which of the tensors in `names` functions are given, by their ids."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[int, str] = {}
        self.found: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in pytree.tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and id(value) in self.names:
                self.found.add(self.names[id(value)])
        return func(*args, **(kwargs or {}))
