"""Batch norms with the statistics of given inputs, which are others than those that they stored in training.

On noise, running statistics are wrong: what batch norms put out is of no scale that later layers ever saw. With the
statistics of the noise itself, each channel has the mean and the variance that it has on real data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from surgeon.calibration import batch_norm
from surgeon.calibration.batch_norm import BatchNorm
from surgeon.calibration.data import Calibration
from surgeon.calibration.footprint import bytes_ahead
from surgeon.calibration.parameter_slots import Slots
from surgeon.frontend.trace import Inputs, batch_size
from surgeon.groups.coupling import Groups
from surgeon.groups.interpreter import Interpreter
from surgeon.support.memory import working_memory

#: The most samples that statistics are taken of.
SAMPLES = 64


@dataclass(frozen=True)
class Stored:
    """The names of a batch norm's running mean and variance."""

    mean: str
    variance: str
    eps: float


def judged_on(groups: Groups, data: Calibration) -> Groups:
    """The groups to run on `data`: with batch norms of the data's own statistics, if these have to be restated."""
    if not data.restated:
        return groups
    own = groups.graph
    if id(own) not in data.known:
        data.known[id(own)] = own, restated(groups, data.batches).graph
    return replace(groups, graph=data.known[id(own)][1])


def restated(groups: Groups, batches: Sequence[Inputs]) -> Groups:
    """The groups, for a graph whose batch norms have stored the statistics of `batches`, each after those before it."""
    graph = groups.graph
    found = {norm.node: norm for norm in _norms(groups)}
    values = dict(graph.values)
    names: dict[str, list[str]] = {}
    for name in values:
        names.setdefault(graph.canonical.get(name, name), []).append(name)
    few = _few(groups, batches)
    run = Interpreter(graph, *few, parameter=lambda name, _: values[name])
    with torch.no_grad():
        for node in run:
            if node in found:
                norm = found[node]
                mean, variance = batch_norm.statistics(run.value(norm.source, batch) for batch in range(len(few)))
                for slot, value in ((norm.mean, mean), (norm.variance, variance)):
                    new = values[slot.name].detach().clone()
                    new.view(-1)[slot.places.flatten()] = value.to(new)
                    values |= dict.fromkeys(names[graph.canonical.get(slot.name, slot.name)], new)
                run.refresh()
            for batch in range(len(few)):
                run.compute(node, batch)
    return replace(groups, graph=replace(graph, values=values))


def never_trained(groups: Groups) -> bool:
    """Whether all batch norms have the statistics that they start with: others would change what the model computes."""
    values = groups.graph.values
    norms = stored(groups)
    return bool(norms) and all(
        not bool(values[norm.mean].any()) and bool((values[norm.variance] == 1).all()) for norm in norms
    )


def stored(groups: Groups) -> list[Stored]:
    """The batch norms whose statistics `restated` replaces."""
    return [Stored(norm.mean.name, norm.variance.name, norm.eps) for norm in _norms(groups)]


def carried_over(
    norm: Stored, before: Mapping[str, Tensor], on_noise: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The running mean and variance that make up on real data for what those of `after` make up for on noise.

    Means move by the same, as a bias would, since what a layer reads is of the same scale; variances by the same ratio.

    Args:
        norm: the batch norm.
        before: its statistics of real data.
        on_noise: its statistics of noise.
        after: the latter once layers were fitted and statistics estimated on noise.

    >>> one, two, four = (torch.full((1,), float(value)) for value in (1, 2, 4))
    >>> norm = Stored("m", "v", 0.0)
    >>> carried_over(norm, {"m": four, "v": four}, {"m": one, "v": one}, {"m": two, "v": two})
    (tensor([5.]), tensor([8.]))
    """
    ratio = (after[norm.variance] + norm.eps) / (on_noise[norm.variance] + norm.eps)
    variance = ((before[norm.variance] + norm.eps) * ratio - norm.eps).clamp(min=0.0)
    return before[norm.mean] + after[norm.mean] - on_noise[norm.mean], variance


def _norms(groups: Groups) -> Iterator[BatchNorm]:
    graph = groups.graph
    slots = Slots(groups, {node: node for node in graph.nodes}, dict(graph.values))
    for node in graph.nodes:
        if (norm := batch_norm.find(node, slots.find)) is not None:
            yield norm


def _few(groups: Groups, batches: Sequence[Inputs]) -> list[Inputs]:
    """Some of the batches, so that all of them can be run in lockstep."""
    most = 2 * working_memory() // max(max(bytes_ahead(groups.graph).values()), 1)  # these count two models
    found: list[Inputs] = []
    count = 0
    for batch in batches:
        count += batch_size(batch)
        if found and count > min(most, SAMPLES):
            break
        found.append(batch)
    return found
