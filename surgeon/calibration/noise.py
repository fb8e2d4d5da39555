"""Inputs made of noise, for when there are no data: smooth where the model convolves, as pictures and sounds are.

Neighboring values of natural signals are alike at every scale, so that noise is drawn at several resolutions and
summed. What units compute from it tells which of them can be rebuilt from the others, as long as something in the model
gives its values the scale that they have on real data: batch norms, once they have statistics of this noise, or others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from surgeon.errors import InvalidArgument, InvalidModel
from surgeon.frontend.trace import Graph
from surgeon.ir.operators import is_a, operator_name
from surgeon.rules import arguments
from surgeon.rules.base import size_of
from surgeon.support.memory import share_of_memory

#: The share of the memory that inputs may take.
MEMORY = 1 / 8
#: Noise is drawn at resolutions of 1, 1/2, 1/4, … as long as so many values are left, with these weights and then 1.
FEWEST = 3
WEIGHTS = (0.5, 0.7)
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
_BATCH_NORMS = {"batch_norm", "_native_batch_norm_legit_no_training"}
_NORMS = {"layer_norm", "native_layer_norm", "rms_norm", "group_norm", "instance_norm"}
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "convolution"}


@dataclass(frozen=True)
class Made:
    """The leaves of inputs for a graph, and what was made of them.

    `noise`, `unscaled` and `restated` are as in `Calibration`. `drawn` are the leaves that are noise, `batched` those
    that have a row for each sample.
    """

    leaves: list[Any]
    note: str
    noise: bool = True
    unscaled: bool = False
    restated: bool = False
    drawn: list[int] = field(default_factory=list)
    batched: list[int] = field(default_factory=list)


def noise_for(graph: Graph, samples: int = 256, seed: int = 0) -> Made:
    """Noise for a graph, of at least `samples` samples; tokens are drawn from the rows of their embedding.

    Raises:
        InvalidArgument: the samples don't fit into memory.
        InvalidModel: no input is a batch of numbers or tokens.

    >>> from torch import nn
    >>> from surgeon.frontend.trace import trace
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> made = noise_for(trace(net, torch.zeros(2, 3, 16, 16)), 8)
    >>> made.leaves[0].shape, made.restated, made.unscaled
    (torch.Size([8, 3, 16, 16]), True, False)
    """
    names = {operator_name(node) for node in graph.nodes}
    restated, scaled = bool(names & _BATCH_NORMS), bool(names & (_BATCH_NORMS | _NORMS))
    made = draw(graph, samples, torch.Generator().manual_seed(seed))
    if not restated:
        return replace(made, unscaled=not scaled)
    note = f"{made.note}, and batch norms take its statistics while units are judged and layers are fitted"
    return replace(made, note=note, restated=True)


def draw(
    graph: Graph, samples: int, generator: torch.Generator, only: Collection[fx.Node] | None = None
) -> Made:
    """Noise for floating inputs, of those `only` if given, and random tokens; other inputs are like the example's."""
    if not graph.dynamic:
        samples = -(-samples // graph.batch) * graph.batch
    leaves = pytree.tree_leaves(graph.inputs)
    one = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor)) / graph.batch
    if one * samples > (most := share_of_memory(MEMORY)):
        raise InvalidArgument(
            f"samples={samples}: so many inputs take {one * samples / 1e9:,.0f} GB, which this machine can't hold "
            f"besides what is computed from them; give at most {int(most / one)}"
        )
    batched, drawn, tokens = [], [], []
    for place, node in enumerate(node for node in graph.nodes if node.op == "placeholder"):
        leaf = leaves[place]
        if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != graph.batch:
            continue
        batched.append(place)
        rows = _rows(graph, node)
        if leaf.is_floating_point() and (only is None or node in only):
            leaves[place] = _like(leaf.detach(), samples, _smooth_axes(node, leaf), generator)
            drawn.append(place)
        elif rows is not None:
            leaves[place] = torch.randint(rows, (samples, *leaf.shape[1:]), generator=generator).to(leaf)
            tokens.append(place)
        else:
            leaves[place] = leaf.detach()[torch.arange(samples, device=leaf.device) % len(leaf)]
    if not drawn and not tokens:
        raise InvalidModel("no inputs can be synthesized: none is a batch of numbers, or of tokens of an embedding")
    note = f"inputs are {'noise' if drawn else 'tokens'}, drawn at random"
    return Made(leaves, note, drawn=drawn, batched=batched)


def _like(example: Tensor, samples: int, smooth: Collection[int], generator: torch.Generator) -> Tensor:
    """Noise with the mean and the spread of an example; standard normal if the example is constant."""
    noise = _smooth((samples, *example.shape[1:]), smooth, generator).to(example.device)
    values = example.float()
    spread, mean = values.std(unbiased=False), values.mean()
    usable = bool(torch.isfinite(spread + mean)) and float(spread) > 0
    return (noise * spread + mean if usable else noise).to(example)


def _smooth(shape: tuple[int, ...], axes: Collection[int], generator: torch.Generator) -> Tensor:
    """Normal noise of a spread of 1, alike at neighbors along `axes`, which come one after the other."""
    found = torch.randn(shape, generator=generator)
    if not axes or len(axes) not in _MODES:
        return found
    first, last = min(axes), max(axes) + 1
    sizes = shape[first:last]
    found *= WEIGHTS[0]
    step, squares = 2, WEIGHTS[0] ** 2
    while all(size // step >= FEWEST for size in sizes):
        weight = WEIGHTS[1] if step == 2 else 1.0
        coarse = torch.randn(*shape[:first], *(size // step for size in sizes), *shape[last:], generator=generator)
        moved = coarse.movedim(list(range(first, last)), list(range(-len(axes), 0)))
        flat = moved.reshape(-1, 1, *moved.shape[-len(axes) :])
        fine = F.interpolate(flat, size=sizes, mode=_MODES[len(axes)]).reshape(*moved.shape[: -len(axes)], *sizes)
        fine = fine.movedim(list(range(-len(axes), 0)), list(range(first, last)))
        spread = float(fine.std())
        found += weight / max(spread, 1e-12) * fine
        squares += weight**2
        step *= 2
    return found / squares**0.5


def _smooth_axes(node: fx.Node, leaf: Tensor) -> list[int]:
    """The axes along which neighbors are alike: those that are convolved, or an image's; of features, their places."""
    if leaf.dim() >= 4:
        return list(range(2, leaf.dim()))
    if _is_convolved(node):
        return [leaf.dim() - 1] if leaf.dim() > 1 else []
    return [1] if leaf.dim() == 3 else []


def _is_convolved(node: fx.Node) -> bool:
    """Whether a convolution reads an input, perhaps in another shape."""
    return any(operator_name(user) in _CONVOLUTIONS for _, user in _read(node))


def _read(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The operators that read a value, perhaps in another shape, each with what of it they read."""
    waiting = [node]
    while waiting:
        value = waiting.pop()
        for user in value.users:
            yield value, user
            if is_a(user, "identity", "view", "cast"):
                waiting.append(user)


def _rows(graph: Graph, node: fx.Node) -> int | None:
    """The rows of the smallest embedding that a placeholder's values are looked up in; None if there is none."""
    looked_up = [(value, arguments(user)) for value, user in _read(node) if operator_name(user) == "embedding"]
    return min((size_of(given["weight"])[0] for value, given in looked_up if given["indices"] is value), default=None)
