"""What users prune with today, on the terms of the benchmarks: Torch-Pruning, by the recipe that its examples give.

Global ranking by group magnitude, the classifier left alone, position and class tokens declared, and so are the heads
of attention; its pruning ratio is of channels, so the one that lands at a share of the MACs is searched for. Beside it
the structured pruning of `torch.nn.utils.prune`, which zeroes channels where they are.
"""

import copy
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

STEPS = 10
#: How far from the MACs that are asked for a model may be to count.
MISSED = 0.1

#: Torch-Pruning's criteria by the names that its papers have, as it builds them.
CRITERIA: dict[str, Callable[[Any], Any]] = {
    "L1": lambda importance: importance.GroupMagnitudeImportance(p=1),
    "L2": lambda importance: importance.GroupMagnitudeImportance(p=2),
    "BatchNorm scale": lambda importance: importance.BNScaleImportance(),
    "LAMP": lambda importance: importance.LAMPImportance(p=2),
    "FPGM": lambda importance: importance.FPGMImportance(),
    "random": lambda importance: importance.RandomImportance(),
    "Taylor": lambda importance: importance.GroupTaylorImportance(),
    "Hessian": lambda importance: importance.GroupHessianImportance(),
}
#: Those that learn from labels.
LABELED = ("Taylor", "Hessian")


@dataclass(frozen=True)
class Recipe:
    """How Torch-Pruning is asked: what ranks channels, across which of them, which layers stay as they are.

    `labeled` is images and labels, for the criteria of `LABELED`. `ignored` names modules.
    """

    criterion: str = "L2"
    scope: str = "global"
    round_to: int | None = None
    labeled: tuple[Tensor, Tensor] | None = None
    ignored: tuple[str, ...] = ()
    max_ratio: float = 1.0

    @property
    def name(self) -> str:
        """The criterion, and how it ranks where that is not globally."""
        return self.criterion if self.scope == "global" else f"{self.criterion}, {self.scope}"


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
        raise SystemExit("these benchmarks compare with Torch-Pruning: pip install 'model-surgeon[peers]'") from error


def build(model: nn.Module, inputs: Any, ratio: float, recipe: Recipe = Recipe()) -> Any:
    """Torch-Pruning's pruner for `model`, which it will change; this traces the model and builds its graph.

    `inputs` are a tuple of positional inputs, or a dict.
    """
    peer = torch_pruning()
    rounded = {m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    tokens = [
        (value, value.dim() - 1)
        for module in model.modules()
        for value in module.parameters(recurse=False)
        if value.dim() == 3 and value.shape[0] == 1  # class and position tokens are (1, tokens, width)
    ]
    ignored = [model.get_submodule(name) for name in recipe.ignored]
    importance = CRITERIA[recipe.criterion](peer.importance)
    made = peer.pruner.BasePruner(
        model,
        inputs,
        importance=importance,
        global_pruning=recipe.scope != "local",
        isomorphic=recipe.scope == "isomorphic",
        pruning_ratio=ratio,
        max_pruning_ratio=recipe.max_ratio,
        ignored_layers=ignored or [[module for module in model.modules() if isinstance(module, nn.Linear)][-1]],
        round_to=math.lcm(recipe.round_to or 1, *rounded) if recipe.round_to or rounded else None,
        in_channel_groups={},  # its defaults are shared by all pruners, and changed
        out_channel_groups={},
        num_heads={layer: heads for _, layers, heads in attentions(model) for layer in layers},
        unwrapped_parameters=tokens,
    )
    if recipe.criterion in LABELED:
        _differentiate(model, recipe, importance)
    return made


def attentions(model: nn.Module) -> list[tuple[nn.Module, list[nn.Linear], int]]:
    """The modules that split linear layers into heads by their own integers, those layers, and how many heads."""
    found = []
    for module in model.modules():
        heads = getattr(module, "num_heads", getattr(module, "num_attention_heads", None))
        children = [getattr(module, name, None) for name in ("qkv", "query", "key", "value")]
        layers = [child for child in children if isinstance(child, nn.Linear)]
        if isinstance(heads, int) and layers:
            found.append((module, layers, heads))
    return found


def _differentiate(model: nn.Module, recipe: Recipe, importance: Any) -> None:
    """Leave gradients of the loss on the model, and each image's with a criterion that wants it."""
    if recipe.labeled is None:
        raise ValueError(f"{recipe.criterion} needs images and labels")
    images, labels = recipe.labeled
    losses = F.cross_entropy(model(images), labels, reduction="none")
    if recipe.criterion == "Taylor":
        losses.mean().backward()
        return
    for index, loss in enumerate(losses):
        model.zero_grad()
        loss.backward(retain_graph=index + 1 < len(losses))
        importance.accumulate_grad(model)


def cut(model: nn.Module, inputs: Any, ratio: float, recipe: Recipe = Recipe()) -> nn.Module:
    """A copy of `model` without `ratio` of its channels; the numbers that its code goes by are set, as examples do."""
    slim = copy.deepcopy(model)
    build(slim, inputs, ratio, recipe).step()
    slim.zero_grad()
    patches: Any = getattr(slim, "conv_proj", None)
    if isinstance(patches, nn.Conv2d):  # torchvision's transformers
        vars(slim)["hidden_dim"] = patches.out_channels
    for module, layers, heads in attentions(slim):
        each = layers[0].out_features // (heads * (3 if len(layers) == 1 else 1))
        for name, value in {"head_dim": each, "attention_head_size": each, "all_head_size": heads * each}.items():
            if hasattr(module, name):
                setattr(module, name, value)
    with torch.no_grad():
        slim(**inputs) if isinstance(inputs, dict) else slim(*inputs)
    return slim


def best(
    model: nn.Module, inputs: Any, recipes: Sequence[Recipe], macs: Callable[[nn.Module], float], target: float,
    judge: Callable[[nn.Module], float],
) -> tuple[dict[str, dict[str, Any]], tuple[str, nn.Module] | None]:
    """What every recipe gives at `target` MACs: its score by `judge` and its MACs, or the error that it ends in.

    And the name and the model of the best one, if any runs.
    """
    found: dict[str, dict[str, Any]] = {}
    models: dict[str, nn.Module] = {}
    for recipe in recipes:
        try:
            one = land(lambda ratio: cut(model, inputs, ratio, recipe), macs, target)  # noqa: B023  (called at once)
        except Exception as error:  # noqa: BLE001  (the peer may raise anything)
            found[recipe.name] = {"error": f"{type(error).__name__}: {error}"}
            continue
        if abs(one.macs / target - 1) > MISSED:
            found[recipe.name] = {"error": f"it comes no nearer than {one.macs / target:.2f} times the MACs asked for"}
            continue
        found[recipe.name] = {"score": judge(one.model), "macs": one.macs}
        models[recipe.name] = one.model
    if not models:
        return found, None
    name = max(models, key=lambda each: found[each]["score"])
    return found, (name, models[name])


def zeroed(model: nn.Module, share: float) -> nn.Module:
    """A copy in which `torch.nn.utils.prune` zeroed that share of every layer's channels, by their L2 norm.

    The last linear layer is left alone. Nothing gets smaller.
    """
    slim = copy.deepcopy(model)
    layers = [module for module in slim.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer in layers[:-1]:
        prune.ln_structured(layer, "weight", amount=share, n=2, dim=0)
        prune.remove(layer, "weight")
    return slim


def land(
    make: Callable[[float], nn.Module], macs: Callable[[nn.Module], float], target: float, tolerance: float = 0.01
) -> Found:
    """The model that `make(ratio)` gives whose MACs are nearest to `target`.

    The search ends within `tolerance` (a share of the target) or after ten steps: with rounded widths a model may
    not come nearer. MACs go about with the square of the share of channels that stays, so roots are interpolated.
    """
    low: tuple[float, float] | None = None
    high = (1.0, 0.0)
    best: Found | None = None
    ratio = 0.3
    for step in range(STEPS):
        model = make(ratio)
        found = Found(model, macs(model), ratio)
        if best is None or abs(found.macs - target) < abs(best.macs - target):
            best = found
        if abs(found.macs - target) <= tolerance * target:
            break
        here = (ratio, math.sqrt(found.macs))
        low, high = (here, high) if found.macs > target else (low, here)
        if step % 3 == 2:  # where the interpolation creeps towards a jump
            ratio = ((low[0] if low else 0.0) + high[0]) / 2
            continue
        left = low or (0.0, here[1] / (1 - ratio))
        ratio = left[0] + (high[0] - left[0]) * (left[1] - math.sqrt(target)) / max(left[1] - high[1], 1e-9)
        ratio = min(max(ratio, 0.0), high[0])
    assert best is not None
    return best
