"""What users prune with today, on the terms of the benchmarks: Torch-Pruning, by the recipe that its examples give.

Global ranking by group magnitude, the classifier left alone, position and class tokens declared, widths of attention a
multiple of the heads. Its pruning ratio is of channels, so the one that lands at a share of the MACs is searched for.
"""

import copy
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

STEPS = 10


@dataclass(frozen=True)
class Found:
    """A model cut to about a share of its MACs, the MACs it has, and the ratio of channels that led there."""

    model: nn.Module
    macs: float
    ratio: float


def torch_pruning() -> ModuleType:
    """The package.

    Raises:
        SystemExit: it is not installed.
    """
    try:
        return importlib.import_module("torch_pruning")
    except ModuleNotFoundError as error:
        if error.name != "torch_pruning":
            raise
        raise SystemExit("these benchmarks compare with Torch-Pruning: pip install 'surgeon[peers]'") from error


def build(model: nn.Module, inputs: tuple[Tensor, ...], ratio: float, round_to: int | None = None) -> Any:
    """Torch-Pruning's pruner for `model`, which it will change; this traces the model and builds its graph."""
    peer = torch_pruning()
    heads = {m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    tokens = [
        (value, value.dim() - 1)
        for module in model.modules()
        for value in module.parameters(recurse=False)
        if value.dim() == 3 and value.shape[0] == 1  # class and position tokens are (1, tokens, width)
    ]
    return peer.pruner.MagnitudePruner(
        model,
        inputs,
        importance=peer.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=ratio,
        ignored_layers=[[module for module in model.modules() if isinstance(module, nn.Linear)][-1]],
        round_to=math.lcm(round_to or 1, *heads) if round_to or heads else None,
        unwrapped_parameters=tokens,
    )


def cut(model: nn.Module, inputs: tuple[Tensor, ...], ratio: float, round_to: int | None = None) -> nn.Module:
    """A copy of `model` without `ratio` of its channels; torchvision's transformers are told their new width."""
    slim = copy.deepcopy(model)
    build(slim, inputs, ratio, round_to).step()
    patches: Any = getattr(slim, "conv_proj", None)
    if isinstance(patches, nn.Conv2d):
        vars(slim)["hidden_dim"] = patches.out_channels
    with torch.no_grad():
        slim(*inputs)
    return slim


def land(
    make: Callable[[float], nn.Module], macs: Callable[[nn.Module], float], target: float, tolerance: float = 0.01
) -> Found:
    """The model that `make(ratio)` gives whose MACs are nearest to `target`, by bisection of the ratio.

    The search ends within `tolerance` (a share of the target) or after ten steps: with rounded widths a model may
    not come nearer.
    """
    low, high = 0.0, 1.0
    best: Found | None = None
    ratio = 0.3  # MACs go about with the square of the widths
    for _ in range(STEPS):
        model = make(ratio)
        found = Found(model, macs(model), ratio)
        if best is None or abs(found.macs - target) < abs(best.macs - target):
            best = found
        if abs(found.macs - target) <= tolerance * target:
            break
        low, high = (ratio, high) if found.macs > target else (low, ratio)
        ratio = (low + high) / 2
    assert best is not None
    return best
