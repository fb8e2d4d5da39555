"""Inputs synthesized from the model alone, for when there are no data: they match its batch norms' statistics.

Noise is optimized, by gradient descent, until each batch norm sees about the mean and variance that it stored in
training (Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020, arXiv:2001.00281), and until the
model is as confident of a class, each in turn, as for what it was trained on (Yin et al., "Dreaming to Distill:
Data-free Knowledge Transfer via DeepInversion", CVPR 2020, arXiv:1912.08795). Both are found from the graph.

Without batch norms the noise stays noise, and tokens are drawn from the rows of their embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from surgeon.calibration.footprint import bytes_backwards
from surgeon.calibration.noise import Made, draw, noise_for
from surgeon.errors import InvalidModel
from surgeon.frontend.infer_inputs import infer
from surgeon.frontend.isolation import undisturbed
from surgeon.frontend.parameters import public
from surgeon.frontend.trace import Graph, normalize_inputs, trace_inputs
from surgeon.groups.interpreter import Interpreter, floating, single
from surgeon.groups.weights import check_finite, check_real
from surgeon.ir.operators import operator_name
from surgeon.rules import arguments
from surgeon.support.memory import working_memory
from surgeon.support.progress import counter, stage

#: Steps of Adam, and the rate of the first.
STEPS = 50
RATE = 0.2
#: The weight of cross-entropy besides the batch norms' mean divergence, in nats.
CLASSES = 0.02
#: Samples that batch norms see at once, as in training; fewer if the values that gradients need would take more than
#: the working memory.
TOGETHER = 64


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
        seed: of the random numbers that the noise is made of.

    Returns:
        A tensor `(samples, …)`; a dict of them where inputs go by keyword, a list of one tuple where there are several.

    Raises:
        InvalidArgument, InvalidInputs: bad input.
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


def synthesize_for(graph: Graph, samples: int = 256, seed: int = 0) -> Made:
    """Inputs of at least `samples` samples for a graph.

    Raises:
        InvalidArgument: the samples don't fit into memory.
        InvalidModel: no input is a batch of numbers or tokens, or the model computes NaN or infinity.
    """
    remembered = norms(graph)
    if not remembered:
        return noise_for(graph, samples, seed)
    watched = _ancestors(norm.source for norm in remembered)
    made = draw(graph, samples, torch.Generator().manual_seed(seed), watched)
    if not made.drawn:
        return made
    samples = len(made.leaves[made.drawn[0]])
    nats = _descend(graph, remembered, made.leaves, made.batched, made.drawn, samples)
    note = f"inputs are synthesized: batch norms see their statistics within {nats:.3f} nats a channel"
    return replace(made, note=note, noise=False)


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
