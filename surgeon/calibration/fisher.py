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

from surgeon.calibration import channels
from surgeon.calibration.data import Calibration
from surgeon.calibration.layers import Contraction
from surgeon.calibration.logits import logits, unsquashed
from surgeon.calibration.moments import ENOUGH
from surgeon.calibration.padding import Padding
from surgeon.calibration.readers import Loose, Reader, find_readers
from surgeon.frontend.trace import Inputs, batch_size, count_numbers
from surgeon.groups.coupling import Groups
from surgeon.groups.interpreter import Interpreter, floating
from surgeon.rules.base import size_of
from surgeon.support.progress import counter

#: Multiply-accumulate operations that running the model forward and backward may take. Where it would take more, labels
#: are drawn once for each batch, and not `DRAWS` times; and then gradients are those of fewer samples, but of `FEWEST`.
OPERATIONS = 1.5e12
DRAWS = 2
FEWEST = 64
#: The same on noise, which says less.
NOISE_OPERATIONS = 1.5e11
#: The operations that a number takes to be computed by any operator, and moved about.
MOVED = 20
#: Rows that moments are computed from, for each input of an operator; no more than enough, where these would take over
#: this many multiply-accumulate operations.
ROWS_PER_INPUT = 40
FEWEST_ROWS = 4096
MOST_OPERATIONS = 1e11
#: Moments that lack rows take them from batches that have this many times as many.
SPARSE = 2


# From the outputs of the graph and the index of the batch to log-likelihoods, summed over its samples.
Likelihoods = Callable[[list[Tensor], int, torch.Generator], Iterable[Tensor]]


@dataclass(frozen=True)
class Sensitivity:
    """Readers and loose values of a model, the number of samples times draws, and the likelihoods they are based on.

    `draws` is how often labels are drawn, `work` how many operations the model takes for one sample.
    """

    readers: tuple[Reader, ...]
    loose: tuple[Loose, ...]
    samples: int
    draws: int
    work: float
    likelihoods: Likelihoods = field(repr=False)


def measure(
    groups: Groups, data: Calibration, seed: int = 0, likelihoods: Likelihoods | None = None, share: float = 1.0,
    fewest: int = FEWEST,
) -> Sensitivity:
    """Run the model forward and backward on `data`; `likelihoods` are by default those of drawn labels.

    This takes a `share` of the operations that it may take. Of a large model, gradients are those of some of the
    batches, of at least the `fewest` samples; moments that these have too few rows for take more from the others.
    """
    batches = data.batches
    readers, loose = find_readers(groups)
    work, count, most = _work(groups, readers), sum(map(batch_size, batches)), share * operations_on(data)
    draws = DRAWS if work * count * (1 + 2 * DRAWS) <= most else 1
    places = spread(batches, most / max(work * (1 + 2 * draws), 1.0), fewest)
    padding = Padding(groups)
    drawn = likelihoods or partial(_drawn, draws=draws, shown=lambda number: padding.outputs(batches[number]))
    found = Sensitivity(tuple(readers), tuple(loose), 0, draws, work, drawn)
    samples = 0
    for run in backwards(groups, found, batches, seed, places):
        readers = [_added(reader, run, len(places), padding) for reader in readers]
        for one in loose:
            for leaf, effects in loose_effects(groups, one, run).items():
                one.energy[leaf] += effects.square().sum(0).numpy()
        samples += run.size
    rest = [batches[place] for place in sorted({*range(len(batches))} - {*places})]
    _more_rows(groups, readers, rest, padding, torch.Generator().manual_seed(seed))
    return replace(found, readers=tuple(readers), samples=samples)


def spread(batches: Sequence[Inputs], most: float, fewest: int) -> list[int]:
    """The places of batches, spread over all, of `most` samples in all, or of the `fewest` if these are more.

    >>> spread([((torch.zeros(2, 1),), {})] * 8, 6.0, 4)
    [0, 2, 5]
    """
    count = min(len(batches), max(1, int(max(most, fewest) * len(batches) / sum(map(batch_size, batches)))))
    return [place * len(batches) // count for place in range(count)]


def _work(groups: Groups, readers: Iterable[Reader]) -> float:
    """About how many multiply-accumulate operations the model takes for one sample."""
    products = sum(math.prod(size_of(reader.layer.node)) * reader.inputs for reader in readers)
    values = (node for node in groups.graph.nodes if node.op == "call_function")
    moved = sum(math.prod(size_of(node)) for node in values if isinstance(node.meta.get("val"), Tensor))
    return float(products + MOVED * moved) / max(groups.graph.batch, 1)


def _more_rows(
    groups: Groups, readers: Iterable[Reader], batches: Sequence[Inputs], padding: Padding, generator: torch.Generator
) -> None:
    """Add rows of these batches, or of as many as are needed, to the moments that have too few."""
    scarce = {reader.layer.node: reader for reader in readers if reader.moments.count < _enough(reader)}
    if not scarce or not batches:
        return
    lacking = max((_enough(reader) - reader.moments.count) / max(reader.positions, 1.0) for reader in scarce.values())
    batches = [batches[place] for place in spread(batches, SPARSE * lacking, 1)]
    wanted = {node: (_enough(reader) - reader.moments.count) / len(batches) for node, reader in scarce.items()}
    sizes = [count_numbers(batch) for batch in batches]
    with torch.no_grad(), counter("sensitivity") as progress:
        for done, batch in enumerate(batches):
            progress(sum(sizes[:done]), sum(sizes))
            run, left = Interpreter(groups.graph, batch), set(scarce)
            for node in run:
                value = run.compute(node)
                if node not in left:
                    continue
                left.remove(node)
                x, layer = run.operands(node)[scarce[node].layer.source], scarce[node].layer
                if scarce[node].taps == 1:
                    share = wanted[node] / max(_positions(layer, value, batch, padding), 1)
                    rows, _ = layer.rows(x, value, share, generator, padding.shown(node, batch))
                else:
                    rows = channels.rows(x, wanted[node], generator, padding.shown(layer.source, batch))
                scarce[node].moments.add(rows, rows[:, :, :0])
                if not left:
                    break


def _enough(reader: Reader) -> float:
    """The rows that moments should have; what would take too many operations is not asked for."""
    inputs = reader.inputs // reader.taps
    return min(ENOUGH * inputs, max(MOST_OPERATIONS / inputs**2, 2 * inputs))


def _positions(layer: Contraction, output: Tensor, batch: Inputs, padding: Padding) -> int:
    """How many positions of a layer's output hold no padding."""
    groups, _, outputs = layer.matrix(layer.weight.places).shape
    return padding.count(layer.node, output, batch) // (groups * outputs)


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
    sizes = [count_numbers(batches[place]) for place in chosen]
    with counter("sensitivity") as progress:
        for done, place in enumerate(chosen):
            progress(sum(sizes[:done]), sum(sizes))
            yield from _batch(groups, sensitivity, batches[place], place, generator)


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
    inputs = reader.inputs // reader.taps
    total = _positions(reader.layer, gradient, run.batch, padding)
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
    reader.gradients.add(slopes)
    return replace(
        reader, count=reader.count + slopes.shape[1], samples=reader.samples + run.size, between=between,
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
