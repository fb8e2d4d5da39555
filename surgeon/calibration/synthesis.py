"""Inputs synthesized from the model alone, for when there are no data: they match its batch norms' statistics.

Noise is optimized, by gradient descent, until each batch norm sees about the mean and variance that it stored in
training (Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020, arXiv:2001.00281), and until the
model is as confident of a class, each in turn, as for what it was trained on (Yin et al., "Dreaming to Distill:
Data-free Knowledge Transfer via DeepInversion", CVPR 2020, arXiv:1912.08795). Both are found from the graph.

Without batch norms the noise stays noise, and tokens are drawn from the rows of their embedding: the units' activations
still show which of them can replace which, as their weights alone do (Srinivas and Babu, "Data-free Parameter
Pruning for Deep Neural Networks", BMVC 2015, arXiv:1507.06149).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from surgeon.calibration.footprint import bytes_backwards
from surgeon.errors import InvalidArgument, InvalidModel
from surgeon.frontend.infer_inputs import infer
from surgeon.frontend.isolation import undisturbed
from surgeon.frontend.parameters import public
from surgeon.frontend.trace import Graph, normalize_inputs, trace_inputs
from surgeon.groups.interpreter import Interpreter, floating, single
from surgeon.groups.weights import check_finite, check_real
from surgeon.ir.operators import operator_name
from surgeon.rules import arguments
from surgeon.rules.base import size_of
from surgeon.support.memory import share_of_memory, working_memory
from surgeon.support.progress import counter, stage

#: Steps of Adam, and the rate of the first.
STEPS = 50
RATE = 0.2
#: The weight of cross-entropy besides the batch norms' mean divergence, in nats.
CLASSES = 0.02
#: Samples that batch norms see at once, as in training; fewer if the values that gradients need would take more than
#: the share `MEMORY` of the memory.
TOGETHER = 64
MEMORY = 1 / 8


@dataclass(frozen=True)
class Synthetic:
    """The leaves of inputs for a graph, and whether they are only noise."""

    leaves: list[Any]
    noise: bool
    note: str


@dataclass(frozen=True)
class Norm:
    """A batch norm that reads `source`, and its running mean and variance, (C,)."""

    source: fx.Node
    mean: Tensor
    variance: Tensor

    def divergence(self, x: Tensor) -> Tensor:
        """How far the channels of x (B, C, …) are from these: nats per channel, as of normal distributions."""
        others = [0, *range(2, x.dim())]
        mean, variance = x.mean(others), x.var(others, unbiased=False)
        # A channel that hardly ever varied would outweigh all others.
        wanted = self.variance.clamp(min=1e-3 * float(self.variance.mean()) + 1e-12)
        ratio = variance.clamp(min=1e-12) / wanted
        return 0.5 * (ratio + (mean - self.mean) ** 2 / wanted - 1 - ratio.log()).mean()


def norms(graph: Graph) -> list[Norm]:
    """The batch norms of a graph that have running statistics.

    >>> from torch import nn
    >>> from surgeon.frontend.trace import trace
    >>> net = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.ReLU())
    >>> [norm.mean.tolist() for norm in norms(trace(net, torch.zeros(2, 2, 4)))]
    [[0.0, 0.0, 0.0]]
    """
    found = []
    for node in graph.nodes:
        if operator_name(node) != "batch_norm":
            continue
        given = arguments(node)
        names = [graph.tensors.get(getattr(given[name], "name", "")) for name in ("running_mean", "running_var")]
        if given["training"] or names[0] is None or names[1] is None:
            continue
        mean, variance = (graph.tensor(name).detach().float() for name in names if name is not None)
        found.append(Norm(given["input"], mean, variance))
    return found


@public()
@undisturbed()
def synthesize(model: nn.Module, example_inputs: Any = None, *, samples: int = 256, seed: int = 0) -> Any:
    """Inputs made from the model alone, for `data=` of `surgeon.shrink` and `surgeon.recover` when there are none.

    Noise is optimized until the model's batch norms see the statistics that they stored in training, which takes a
    minute for a small network and longer for a large one. Without batch norms it stays noise, with the mean and the
    spread of the example inputs; tokens are drawn at random.

    Args:
        model: the trained model; it is left as it is, and runs in eval mode.
        example_inputs: as for `surgeon.shrink`; inputs that can't be noise, such as masks, are like these.
        samples: how many of them.
        seed: of the noise.

    Returns:
        A tensor `(samples, …)`; a dict of them where inputs go by keyword, a list of one tuple where there are several.

    Raises:
        InvalidArgument: an argument is out of range.
        InvalidModel: the model has no input that could be drawn, or computes NaN or infinity.
        TraceError: `torch.export` can't trace the model.

    >>> net = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.ReLU())
    >>> synthesize(net, torch.zeros(1, 2, 8), samples=16).shape
    torch.Size([16, 2, 8])
    """
    inputs = infer(model) if example_inputs is None else normalize_inputs(example_inputs)
    with stage("trace"):
        graph = trace_inputs(model, inputs)
    check_finite(graph)
    check_real(graph)
    made = synthesize_for(graph, samples, seed)
    args, kwargs = pytree.tree_unflatten(made.leaves, pytree.tree_structure(graph.inputs))
    if len(args) == 1 and not kwargs:
        return args[0]
    return kwargs if not args else [args]


def synthesize_for(graph: Graph, samples: int = 256, seed: int = 0) -> Synthetic:
    """Inputs of at least `samples` samples for a graph.

    Raises:
        InvalidArgument: the samples don't fit into memory.
        InvalidModel: no input is a batch of numbers or tokens, or the model computes NaN or infinity.
    """
    generator = torch.Generator().manual_seed(seed)
    remembered = norms(graph)
    watched = _ancestors(norm.source for norm in remembered)
    if not graph.dynamic:
        samples = -(-samples // graph.batch) * graph.batch
    leaves = pytree.tree_leaves(graph.inputs)
    one = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor)) / graph.batch
    if one * samples > (most := share_of_memory(MEMORY)):
        raise InvalidArgument(
            f"samples={samples}: so many inputs take {one * samples / 1e9:,.0f} GB, which this machine can't hold "
            f"besides what is computed from them; give at most {int(most / one)}"
        )
    batched: list[int] = []
    moved: list[int] = []
    drawn: list[int] = []
    for place, node in enumerate(node for node in graph.nodes if node.op == "placeholder"):
        leaf = leaves[place]
        if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != graph.batch:
            continue
        batched.append(place)
        shape, rows = (samples, *leaf.shape[1:]), _rows(graph, node)
        noise = leaf.is_floating_point() and (node in watched or not remembered)
        if noise:
            leaves[place] = _noise(leaf.detach(), shape, generator)
            (moved if node in watched else drawn).append(place)
        elif rows is not None:
            leaves[place] = torch.randint(rows, shape, generator=generator).to(leaf)
            drawn.append(place)
        else:
            leaves[place] = leaf.detach()[torch.arange(samples, device=leaf.device) % len(leaf)]
    if moved:
        nats = _descend(graph, remembered, leaves, batched, moved, samples)
        note = f"inputs are synthesized: batch norms see their statistics within {nats:.3f} nats a channel"
        return Synthetic(leaves, noise=False, note=note)
    if drawn:
        note = "inputs are drawn at random: the model has no batch norms that tell what it was trained on"
        return Synthetic(leaves, noise=True, note=note)
    raise InvalidModel("no inputs can be synthesized: none is a batch of numbers, or of tokens of an embedding")


def _noise(example: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal noise with the mean and the spread of an example; standard normal if the example is constant."""
    noise = torch.randn(shape, generator=generator).to(example.device)
    values = example.float()
    spread, mean = values.std(unbiased=False), values.mean()
    usable = bool(torch.isfinite(spread + mean)) and float(spread) > 0
    return (noise * spread + mean if usable else noise).to(example)


def _descend(
    graph: Graph, remembered: list[Norm], leaves: list[Any], batched: list[int], moved: list[int], samples: int
) -> float:
    """Optimize the leaves `moved`, of those that are `batched`; returns the divergence that is left, in nats."""
    affordable = working_memory() // bytes_backwards(graph)
    together = max(1, min(TOGETHER, affordable)) if graph.dynamic else graph.batch
    parts = torch.arange(samples).split(together)
    left = 0.0
    with counter("synthesize") as progress, torch.enable_grad():
        for index, part in enumerate(parts):
            mine = [leaf[part] if place in batched else leaf for place, leaf in enumerate(leaves)]
            free = [mine[place].requires_grad_() for place in moved]
            optimizer = torch.optim.Adam(free, lr=RATE)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
            for step in range(STEPS):
                progress(index * STEPS + step, len(parts) * STEPS)
                apart, unsure = _objective(graph, remembered, mine, part)
                if not bool(torch.isfinite(apart + unsure)):
                    raise InvalidModel(
                        "no inputs can be synthesized: the model computes NaN or infinity; pass data= on which it "
                        "gives numbers"
                    )
                optimizer.zero_grad()
                (apart + CLASSES * unsure).backward()
                optimizer.step()
                schedule.step()
            for place in moved:
                leaves[place][part] = mine[place].detach()
            left += float(apart.detach()) * len(part) / samples
    return left


def _objective(graph: Graph, remembered: list[Norm], leaves: list[Any], part: Tensor) -> tuple[Tensor, Tensor]:
    """The batch norms' mean divergence, and the cross-entropy of classes in turn, where there are classes."""
    run, values = Interpreter(graph, leaves), iter(leaves)
    by_source: dict[fx.Node, list[Norm]] = {}
    for norm in remembered:
        by_source.setdefault(norm.source, []).append(norm)
    apart: list[Tensor] = []
    value: Any = None
    for node in run:
        if node.op == "placeholder":
            value = single(next(values))
            run.set(node, value)  # with its gradient
        else:
            value = run.compute(node)
        apart += [norm.divergence(value) for norm in by_source.get(node, ())]
    return torch.stack(apart).mean(), _cross_entropy(floating(value), part).to(apart[0].device)


def _cross_entropy(outputs: list[Tensor], part: Tensor) -> Tensor:
    """Of a single output with one row for each sample, taken for logits, with another class for each; else 0."""
    if len(outputs) != 1 or outputs[0].dim() != 2 or outputs[0].shape[1] < 2 or len(outputs[0]) != len(part):
        return torch.zeros(())
    return F.cross_entropy(outputs[0].float(), part.to(outputs[0].device) % outputs[0].shape[1])


def _ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes, and all that they are computed from."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _rows(graph: Graph, node: fx.Node) -> int | None:
    """The rows of the smallest embedding that a placeholder's values are looked up in; None if there is none."""
    looked_up = [arguments(user) for user in node.users if operator_name(user) == "embedding"]
    return min((size_of(given["weight"])[0] for given in looked_up if given["indices"] is node), default=None)
