"""Sensitivity of the output: input moments and gradient moments of every operator that reads prunable units.

Gradients are those of the log-likelihood of labels that are drawn from the model's own softmax, so that their second
moments are the Fisher information and no labels are needed (Martens and Grosse, "Optimizing Neural Networks with
Kronecker-factored Approximate Curvature", ICML 2015); or those of a given loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from surgeon.calibration import channels, layers
from surgeon.calibration.data import Calibration
from surgeon.calibration.layers import Contraction
from surgeon.calibration.logits import logits, unsquashed
from surgeon.calibration.moments import ENOUGH, Moments, gram
from surgeon.calibration.padding import Padding
from surgeon.calibration.parameter_slots import Slots
from surgeon.frontend.trace import Inputs, batch_size
from surgeon.groups.coupling import Group, Groups
from surgeon.groups.interpreter import Interpreter, floating
from surgeon.rules.base import size_of
from surgeon.support.progress import counter

#: How often labels are drawn for each batch; once, where running the model would take more multiply-accumulate
#: operations than this.
DRAWS = 2
OPERATIONS = 1.5e12
#: The same on noise, which says less.
NOISE_OPERATIONS = 1.5e11
#: Rows that moments are computed from, for each input of an operator; no more than enough, where these would take over
#: this many multiply-accumulate operations.
ROWS_PER_INPUT = 40
FEWEST_ROWS = 4096
MOST_OPERATIONS = 1e11
#: Inputs of a layer above which those of a unit, such as a kernel's places, are taken to covary as any other unit's.
WIDE = 1024


# From the outputs of the graph and the index of the batch to log-likelihoods, summed over its samples.
Likelihoods = Callable[[list[Tensor], int, torch.Generator], Iterable[Tensor]]


@dataclass(frozen=True)
class Reader:
    """An operator that multiplies prunable units by a parameter.

    `moments` are those of its inputs, or of a very wide convolution of its channels, and then `between` is that of the
    `taps` of its kernel, up to a factor; `gradients` (G, o, o) is the sum of g gᵀ over `count` positions of its output,
    which has `positions` for each of `samples`, on average. `units` gives, by leaf, the unit that each input belongs
    to, or -1: (G, f).
    """

    layer: Contraction
    units: dict[int, Tensor]
    moments: Moments = field(default_factory=Moments)
    gradients: Tensor = field(default_factory=lambda: torch.zeros(()))
    count: int = 0
    positions: float = 0.0
    samples: int = 0
    between: Tensor = field(default_factory=lambda: torch.ones(1, 1, dtype=torch.float64))

    @property
    def inputs(self) -> int:
        """How many inputs each output is computed from."""
        return self.layer.matrix(self.layer.weight.places).shape[1]

    @property
    def taps(self) -> int:
        """How many inputs in a row share a place in the moments: those of one channel, where it is very wide."""
        return channels.taps_of(self.layer)

    @property
    def means(self) -> Tensor:
        """The mean of each input, (G, f)."""
        return self.moments.means[0].repeat_interleave(self.taps, 1)

    def by_place(self, matrix: Tensor) -> Tensor:
        """A matrix (G, f, o) whose inputs of one place in the moments are side by side: (G, f / taps, taps · o)."""
        return matrix.reshape(len(matrix), matrix.shape[1] // self.taps, -1)

    def measured(self, matrix: Tensor) -> Tensor:
        """A matrix (G, f / taps, taps · o) times the metric of its columns: of the output, and between taps."""
        taps = self.taps
        if taps == 1:
            return matrix @ self.metric
        between = self.between * (taps / self.between.diagonal().sum().clamp(min=1e-300))
        wide = matrix.reshape(*matrix.shape[:2], taps, -1) @ self.metric[:, None]
        return torch.einsum("gcto,ts->gcso", wide, between).reshape(matrix.shape)

    @property
    def metric(self) -> Tensor:
        """The Fisher information (G, o, o) of the operator's output, summed over the positions of a sample."""
        return self.gradients * (self.positions / max(self.count, 1))


@dataclass(frozen=True)
class Loose:
    """A value with prunable units that is not the input of a reader.

    `energy`, by leaf, is the sum over samples of the squared effect, to first order, of removing each unit on the
    log-likelihood: `(units,)`.
    """

    node: fx.Node
    energy: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Sensitivity:
    """Readers and loose values of a model, the number of samples times draws, and the likelihoods they are based on.

    `draws` is how often labels are drawn, `macs` how many operations the readers take for one sample.
    """

    readers: tuple[Reader, ...]
    loose: tuple[Loose, ...]
    samples: int
    draws: int
    macs: float
    likelihoods: Likelihoods = field(repr=False)


def measure(
    groups: Groups, data: Calibration, seed: int = 0, likelihoods: Likelihoods | None = None
) -> Sensitivity:
    """Run the model forward and backward on `data`; `likelihoods` are by default those of drawn labels."""
    batches = data.batches
    readers, loose = find_readers(groups)
    macs = sum(math.prod(size_of(r.layer.node)) * r.inputs for r in readers) / max(groups.graph.batch, 1)
    draws = DRAWS if macs * sum(map(batch_size, batches)) * (1 + DRAWS) <= operations_on(data) else 1
    padding = Padding(groups)
    drawn = likelihoods or partial(_drawn, draws=draws, shown=lambda number: padding.outputs(batches[number]))
    found = Sensitivity(tuple(readers), tuple(loose), 0, draws, macs, drawn)
    samples = 0
    for run in backwards(groups, found, batches, seed):
        readers = [_added(reader, run, len(batches), padding) for reader in readers]
        for one in loose:
            for leaf, effects in loose_effects(groups, one, run).items():
                one.energy[leaf] += effects.square().sum(0).numpy()
        samples += run.size
    return replace(found, readers=tuple(readers), samples=samples)


@dataclass(frozen=True)
class Run:
    """One batch of `size` samples, run forward, and backward for one of `draws` of labels.

    `operands` are those of readers, `values` the outputs of readers and loose values, `gradients` those of `values`.
    """

    size: int
    draw: int
    draws: int
    operands: dict[fx.Node, dict[fx.Node, Any]]
    values: dict[fx.Node, Tensor]
    gradients: dict[fx.Node, Tensor]
    generator: torch.Generator
    interpreter: Interpreter
    batch: Inputs

    def input(self, layer: Contraction) -> Tensor:
        value: Tensor = self.operands[layer.node][layer.source]
        return value

    def respond(self, layer: Contraction, matrix: Tensor) -> Tensor:
        """The output of a layer for its input, with another matrix and without a bias."""
        weight, given = layer.unmatrix(matrix), self.operands[layer.node]

        def evaluate(weight: Tensor) -> Tensor:
            value: Tensor = self.interpreter.evaluate(layer.node, instead={**given, layer.weight.node: weight})
            return value

        biased = layer.bias is not None or layer.unknown_bias
        with torch.no_grad():
            return evaluate(weight) - evaluate(torch.zeros_like(weight)) if biased else evaluate(weight)


def backwards(
    groups: Groups, sensitivity: Sensitivity, batches: Sequence[Inputs], seed: int, places: Sequence[int] | None = None
) -> Iterator[Run]:
    """Run the model on every batch, or on those at some places, forward once and backward for every draw of labels."""
    generator = torch.Generator().manual_seed(seed)
    chosen = range(len(batches)) if places is None else places
    sizes = [sum(each.numel() for each in pytree.tree_leaves(batches[place]) if isinstance(each, Tensor))
             for place in chosen]
    with counter("sensitivity") as progress:
        for done, place in enumerate(chosen):
            progress(sum(sizes[:done]), sum(sizes))
            yield from _batch(groups, sensitivity, batches[place], place, generator)


def find_readers(groups: Groups) -> tuple[list[Reader], list[Loose]]:
    """The readers and loose values of a model, of which nothing was measured yet."""
    slots = Slots(groups, {node: node for node in groups.graph.nodes}, dict(groups.graph.values))
    readers, loose = [], []
    for node, typed in groups.typed.items():
        if node.op != "call_function":
            continue
        summed = groups.leaves(typed.contracted)
        wanted = [group for group in groups if group.leaf in summed]
        if not wanted:
            continue
        layer = layers.find(node, node, slots.find)
        units = {group.leaf.id: _units(groups, layer, group) for group in wanted} if layer is not None else {}
        if layer is not None:
            readers.append(Reader(layer, {leaf: found for leaf, found in units.items() if found is not None}))
        if missing := [group for group in wanted if units.get(group.leaf.id) is None]:
            operand = next((n for n in node.all_input_nodes if n.op != "get_attr" and _in(groups, n, missing)), None)
            if operand is not None:
                loose.append(Loose(operand, {group.leaf.id: np.zeros(group.size) for group in missing}))
    return readers, loose


def _in(groups: Groups, node: fx.Node, wanted: Iterable[Group]) -> bool:
    axes = groups.axes[node]
    return isinstance(axes, tuple) and {group.leaf for group in wanted} <= groups.leaves(axes)


def _units(groups: Groups, layer: Contraction, group: Group) -> Tensor | None:
    """The unit of a group that each input of a layer belongs to, or -1: (G, f). None where that is not clear.

    Found from where positions along the weight's axes end up when the weight is converted to a matrix.
    """
    axes, shape = groups.axes[layer.weight.node], layer.weight.places.shape
    assert isinstance(axes, tuple)
    found: Tensor | None = None
    for dim, axis in enumerate(axes):
        wide = [1] * len(shape)
        wide[dim] = shape[dim]
        places = layer.matrix(torch.arange(shape[dim]).reshape(wide).expand(shape).contiguous())
        if bool((places != places[:, :, :1]).any()) or bool((places == places[:, :1]).all()):
            continue  # an axis of outputs, or of groups
        for units in groups.space.units(axis, group.leaf):
            here = torch.as_tensor(units)[places[:, :, 0]]
            found = here if found is None else torch.where(here >= 0, here, found)
    return found


def _batch(
    groups: Groups, sensitivity: Sensitivity, batch: Inputs, number: int, generator: torch.Generator
) -> Iterator[Run]:
    run = Interpreter(groups.graph, batch)
    readers = {reader.layer.node for reader in sensitivity.readers}
    watched = {*readers, *(one.node for one in sensitivity.loose)}
    values: dict[fx.Node, Tensor] = {}
    operands: dict[fx.Node, dict[fx.Node, Any]] = {}
    value: Any = None
    at = logits(groups.graph.nodes)
    squashed: dict[fx.Node, Tensor] = {}
    with torch.enable_grad():
        for node in run:
            value = run.compute(node)
            if node in readers:
                operands[node] = pytree.tree_map_only(Tensor, Tensor.detach, run.operands(node))
            if node in watched:
                values[node] = value if value.requires_grad else value.detach().requires_grad_()
                run.set(node, values[node])
            if node in at.values():
                squashed[node] = values.get(node, value)
        outputs = floating(unsquashed(value, at, squashed))
        losses = list(sensitivity.likelihoods(outputs, number, generator))
    size = next((len(output) for output in outputs if output.dim()), batch_size(batch))
    detached = {node: value.detach() for node, value in values.items()}
    for draw, loss in enumerate(losses):
        gradients = torch.autograd.grad(
            loss, list(values.values()), retain_graph=draw + 1 < len(losses), allow_unused=True, materialize_grads=True
        )
        by_node = dict(zip(values, gradients, strict=True))
        yield Run(size, draw, len(losses), operands, detached, by_node, generator, run, batch)


def _drawn(
    outputs: list[Tensor], number: int, generator: torch.Generator, draws: int,
    shown: Callable[[int], list[Tensor | None]],
) -> Iterator[Tensor]:
    """Log-likelihoods to differentiate, each for another draw of labels; of what is `shown`, all but padding.

    A single output with one row for each sample is taken for logits, anything else gets noise of its own scale. A lone
    number is next to other outputs what becomes of them, such as their loss; else there is no label to draw for it.
    Outputs are given as what they are a softmax or sigmoid of.
    """
    learnt = [output for output in outputs if output.requires_grad]
    own = {id(output): each for output, each in zip(outputs, shown(number), strict=True)}
    wanted = [output for output in learnt if output.dim()]
    if not wanted and learnt:
        yield torch.stack([each.cpu() for each in learnt]).sum()
        return
    for _ in range(draws if wanted else 0):
        if len(wanted) == 1 and wanted[0].dim() == 2 and wanted[0].shape[1] > 1:
            likely = F.log_softmax(wanted[0].float(), 1)
            drawn = torch.multinomial(likely.detach().exp().cpu(), 1, generator=generator).to(likely.device)
            yield likely.gather(1, drawn).sum()
            continue
        total = torch.zeros(())
        for output in wanted:
            size, mask = len(output), own[id(output)]
            output = output if mask is None else output[mask.expand(output.shape)]
            noise = torch.randn(output.shape, generator=generator).to(output)
            spread = output.detach().std().clamp(min=1e-12) * (output.numel() / size) ** 0.5
            total = total + (output * noise / spread).sum().cpu()
        yield total


def operations_on(data: Calibration) -> float:
    """The multiply-accumulate operations that running the model several times may take."""
    return NOISE_OPERATIONS if data.noise else OPERATIONS


def _added(reader: Reader, run: Run, batches: int, padding: Padding) -> Reader:
    """The reader with the moments of one more run."""
    x, gradient = run.input(reader.layer), run.gradients[reader.layer.node]
    groups, inputs, outputs = reader.layer.matrix(reader.layer.weight.places).shape
    inputs //= reader.taps
    total = padding.count(reader.layer.node, gradient, run.batch) // (groups * outputs)
    wanted = min(ROWS_PER_INPUT * inputs + FEWEST_ROWS, max(ENOUGH * inputs, MOST_OPERATIONS / inputs**2))
    share = wanted / max(total * batches * run.draws, 1)
    shown = padding.shown(reader.layer.node, run.batch)
    between = reader.between
    if reader.taps == 1:
        rows, slopes = reader.layer.rows(x, gradient, share, run.generator, shown)
    else:
        most, seen = wanted / (batches * run.draws), padding.shown(reader.layer.source, run.batch)
        rows = channels.rows(x, most, run.generator, seen)
        slopes = channels.rows(gradient, most, run.generator, shown)
        found = channels.between_taps(reader.layer, x, gradient, run.generator)
        between = found if reader.count == 0 else between + found
    if run.draw == 0 or share < 1:  # else these are the rows of the first draw
        reader.moments.add(rows, rows[:, :, :0])
    second = gram(slopes)
    return replace(
        reader, gradients=second.double() if reader.count == 0 else reader.gradients.add_(second),
        count=reader.count + slopes.shape[1], samples=reader.samples + run.size, between=between,
        positions=(reader.positions * reader.samples + total) / (reader.samples + run.size),
    )


def loose_effects(groups: Groups, loose: Loose, run: Run) -> dict[int, Tensor]:
    """The effect of removing each unit of a loose value on the log-likelihood, to first order: (samples, units)."""
    axes = groups.axes[loose.node]
    assert isinstance(axes, tuple)
    effect = -(run.values[loose.node] * run.gradients[loose.node])
    found = {}
    for group in groups:
        if group.leaf.id not in loose.energy:
            continue
        dim = next(d for d, axis in enumerate(axes) if group.leaf in groups.leaves((axis,)))
        if dim and len(effect) == run.size:  # the most common case, in which memory is read but once
            rest = [axis for axis in range(1, effect.dim()) if axis != dim]
            flat = (effect.sum(rest) if rest else effect).double().cpu()
        else:
            flat = per_sample(effect.double().movedim(dim, -1), run.size if dim else 1)
        sums = torch.zeros(len(flat), group.size + 1, dtype=torch.float64)
        for units in groups.space.units(axes[dim], group.leaf):
            sums.index_add_(1, torch.as_tensor(np.where(units < 0, group.size, units)), flat)
        found[group.leaf.id] = sums[:, :-1]
    return found


def per_sample(effect: Tensor, size: int) -> Tensor:
    """(samples …, …, n) summed to (samples, n); where the first axis is no multiple of the samples, to (1, n)."""
    whole = size if len(effect) % size == 0 else 1
    return effect.reshape(whole, -1, effect.shape[-1]).sum(1).cpu()
