"""Distillation: the smaller model is fine-tuned end to end toward the original's outputs for unlabeled inputs.

Layers that are fitted one after the other cannot weigh their errors by what matters for the output. Here gradients of
the deviation of outputs, and of some intermediate values, do so: Hinton et al.,
"Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531; Romero et al., "FitNets", ICLR 2015. Few
inputs are augmented by mixing two at a time, since the original labels any input: Zhang et al., "mixup", ICLR 2018, and
Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from surgeon.calibration import layers
from surgeon.calibration.data import Calibration
from surgeon.calibration.footprint import bytes_backwards
from surgeon.calibration.logits import logits, unsquashed
from surgeon.calibration.padding import Padding, masks
from surgeon.calibration.parameter_slots import Slots
from surgeon.cost.cost import Cost
from surgeon.frontend.trace import Inputs
from surgeon.groups.coupling import Groups
from surgeon.groups.interpreter import Interpreter, floating, single
from surgeon.recovery.pair import Pair
from surgeon.rules import Kept
from surgeon.support.memory import working_memory
from surgeon.support.progress import counter

#: Samples of one step; fewer if what its gradients need would take more than the working memory.
TOGETHER = 64
#: Below this number of samples, training would overfit them.
FEWEST = 64
#: The most epochs, and multiply-accumulate operations of all steps: about a minute on one core.
PASSES = 20
OPERATIONS = 5e11
#: Adam's highest learning rate, and the same relative to the root mean square of a tensor.
RATE = 3e-3
RELATIVE_RATE = 3e-2
#: The share of the steps in which the learning rate rises.
RISE = 0.1
#: The most layers whose outputs are compared, spread over the model, and their weight relative to the model's outputs.
COMPARED = 8
INSIDE = 3.0


def distill_groups(
    groups: Groups, kept: Kept, model: nn.Module, tensors: Mapping[str, Tensor], data: Calibration, seed: int = 0
) -> tuple[int, str]:
    """Train the parameters that the cut affects; returns the number of steps, and if it is 0, the reason.

    Args:
        groups: of the original.
        kept: what is kept of it.
        model: the smaller model; those of its parameters that change are written to.
        tensors: all of its tensors by name.
        data: unlabeled inputs; those held back are not used. Noise and few samples are refused.
        seed: for the order of the samples, and how they are mixed.
    """
    if data.noise:
        return 0, "nothing can be learned from noise"
    run = _Learner(groups, kept, model, tensors)
    samples = _Samples(groups, data.fit, seed)
    if samples.count < FEWEST:
        return 0, f"{samples.count} samples are too few, at least {FEWEST} are needed"
    steps = _steps(groups, kept, samples)
    if not steps:
        return 0, "a single step would take too many operations"
    if not run.learnt:
        return 0, "the cut affects no floating-point parameter"
    learnt = list(run.learnt.values())
    rates = [min(RATE, RELATIVE_RATE * float(each.detach().square().mean().sqrt())) for each in learnt]
    optimizer = torch.optim.Adam([{"params": [p], "lr": rate} for p, rate in zip(learnt, rates, strict=True)])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [max(rate, 1e-12) for rate in rates], total_steps=steps + 1, pct_start=RISE, cycle_momentum=False
    )
    with torch.enable_grad(), counter("distill") as progress:
        for step in range(steps):
            progress(step, steps)
            loss = run.deviation(samples.draw())
            if not loss.requires_grad:
                return 0, "no parameter that the cut affects changes the outputs"
            if not bool(torch.isfinite(loss)):
                return 0, f"at step {step + 1} of {steps}, the deviation from the original was {loss.item()}"
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    run.write()
    return steps, ""


class _Learner:
    """The smaller model next to the original, with trainable copies of its parameters."""

    def __init__(self, groups: Groups, kept: Kept, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        graph = groups.graph
        self.pair = pair = Pair(groups, kept, tensors)
        self._padding = Padding(groups)
        self._parameters = {id(each): each for each in model.parameters() if each.is_floating_point()}
        self.learnt: dict[int, Tensor] = {}
        for node in graph.nodes:
            value = pair.own.get(graph.tensors.get(node.name, ""))
            if value is not None and id(value) in self._parameters and any(user in pair.changed for user in node.users):
                self.learnt.setdefault(id(value), single(value.detach()).clone().requires_grad_())
        self.tensors = {name: self.learnt.get(id(value), value.detach()) for name, value in pair.own.items()}
        slots = Slots(groups, pair.copies, tensors)
        contractions = [
            node for node in graph.nodes
            if node.op == "call_function" and node in pair.changed
            and layers.find(node, pair.copies[node], slots.find) is not None
        ]
        self.logits = logits(graph.nodes)
        self.compared = contractions[:: max(1, -(-len(contractions) // COMPARED))]

    def deviation(self, batch: Inputs) -> Tensor:
        """The squared deviation of the outputs and of the compared layers, relative to the original's variance.

        Of probabilities, that of their logits.
        """
        with torch.no_grad():
            inside, wanted = _run(self.pair.original(batch), self.compared, self.logits)
            left = [self.pair.at_kept(node, value) for node, value in zip(self.compared, inside, strict=True)]
        copies = [self.pair.copies[node] for node in self.compared]
        at = {place: self.pair.copies[node] for place, node in self.logits.items()}
        mine, outputs = _run(self.pair.smaller(batch, tensors=self.tensors), copies, at)
        total = torch.zeros(())
        outputs, wanted = (self._padding.in_a_row(each, batch) for each in (outputs, wanted))
        mine, left = (
            [self._padding.values(node, value, batch) for node, value in zip(self.compared, each, strict=True)]
            for each in (mine, left)
        )
        for weight, own, given in ((1.0, outputs, wanted), (INSIDE, mine, left)):
            for a, b in zip(own, given, strict=True):
                total = total + (weight / len(own) * (a - b).square().mean() / (b.var() + 1e-12)).cpu()
        return total

    def write(self) -> None:
        with torch.no_grad():
            for key, value in self.learnt.items():
                self._parameters[key].copy_(value)


def _run(
    run: Interpreter, compared: Sequence[fx.Node], at: Mapping[int, fx.Node]
) -> tuple[list[Tensor], list[Tensor]]:
    inside, value = [], None
    squashed: dict[fx.Node, Tensor] = {}
    for node in run:
        value = run.compute(node)
        if node in compared:
            inside.append(value)
        if node in at.values():
            squashed[node] = value
    return inside, floating(unsquashed(value or (), at, squashed))


class _Samples:
    """Draws batches endlessly: the samples in random order, each mixed with another one half of the time.

    Only numbers can be mixed: with any tokens or masks of padding among the inputs, nothing is.
    """

    def __init__(self, groups: Groups, batches: Sequence[Inputs], seed: int) -> None:
        graph = groups.graph
        examples = pytree.tree_leaves(graph.inputs)
        leaves = [pytree.tree_leaves(batch) for batch in batches]
        self.spec = pytree.tree_structure(graph.inputs)
        self.leaves = list(leaves[0])
        self.batched = [
            place for place, example in enumerate(examples)
            if isinstance(example, Tensor) and example.dim() and example.shape[0] == graph.batch
        ]
        by_sizes: dict[tuple[torch.Size, ...], list[list[Tensor]]] = {}
        for each in leaves:
            by_sizes.setdefault(tuple(each[place].shape[1:] for place in self.batched), []).append(each)
        affordable = working_memory() // bytes_backwards(graph)
        together = max(1, min(TOGETHER, affordable)) if graph.dynamic else graph.batch
        self.generator = torch.Generator().manual_seed(seed)
        self.pools = [
            _Pool(
                [torch.cat([one[place] for one in alike]) for place in self.batched], together, self.generator,
                mixes=not masks(graph),
            )
            for alike in by_sizes.values()
        ] if self.batched else []
        self.count = sum(pool.count for pool in self.pools)
        #: Samples of a step, as they come.
        self.together = max(1, sum(pool.together * pool.count for pool in self.pools) // max(self.count, 1))

    def draw(self) -> Inputs:
        pool = self.pools[0]
        if len(self.pools) > 1:
            shares = torch.tensor([float(each.count) for each in self.pools])
            pool = self.pools[int(torch.multinomial(shares, 1, generator=self.generator))]
        leaves = list(self.leaves)
        for place, value in zip(self.batched, pool.draw(), strict=True):
            leaves[place] = value
        made: Inputs = pytree.tree_unflatten(leaves, self.spec)
        return made


class _Pool:
    """Samples of equal sizes, which can be mixed."""

    def __init__(self, leaves: list[Tensor], together: int, generator: torch.Generator, mixes: bool) -> None:
        self._leaves, self._generator = leaves, generator
        self.count = len(leaves[0])
        self.together = min(self.count, together)
        self._mixes = mixes and all(leaf.is_floating_point() for leaf in leaves)
        self._order = torch.zeros(0, dtype=torch.long)

    def draw(self) -> list[Tensor]:
        if len(self._order) < self.together:
            self._order = torch.cat([self._order, torch.randperm(self.count, generator=self._generator)])
        chosen, self._order = self._order[: self.together], self._order[self.together :]
        other = torch.randint(self.count, (len(chosen),), generator=self._generator)
        share = 1 - torch.rand(len(chosen), generator=self._generator)
        share[torch.rand(len(chosen), generator=self._generator) < 0.5] = 1.0
        found = []
        for leaf in self._leaves:
            part = share.to(leaf).reshape([-1] + [1] * (leaf.dim() - 1)) if self._mixes else None
            found.append(leaf[chosen] if part is None else part * leaf[chosen] + (1 - part) * leaf[other])
        return found


def _steps(groups: Groups, kept: Kept, samples: _Samples) -> int:
    """As many as `PASSES` and `OPERATIONS` allow: a step runs the original forward, and the smaller model both ways."""
    cost = Cost(groups)
    operations = max(cost.macs({}) + 3 * cost.macs(kept.widths), 1.0)
    return int(min(PASSES * samples.count, OPERATIONS / operations)) // samples.together
