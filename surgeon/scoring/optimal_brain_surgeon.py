"""The order in which the units of a group are best removed, and the damage when the rest compensates for each.

Optimal Brain Surgeon (Hassibi and Stork, NeurIPS 1992) for units: of a reader with weights W, input covariance H and
output-gradient moments G, removing the inputs S costs ½ tr(G W_S [H⁻¹]_SS⁻¹ W_Sᵀ) for each position of its output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, fx

from surgeon.calibration.fisher import Reader, Run, Sensitivity, backwards, loose_effects, per_sample
from surgeon.frontend.trace import Inputs
from surgeon.groups.coupling import Group, Groups

#: A group is emptied in about this many steps.
STEPS = 64
#: The removed shares of a group at which the damage is measured more closely.
STOPS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Cut:
    """A group at one width: the units that are removed, and how much its readers' matrices (G, f, o) changed."""

    gone: np.ndarray
    changes: dict[fx.Node, Tensor]


@dataclass(frozen=True)
class Curve:
    """The units of a group in the order of their removal, and the damage once 1, 2, … are removed: `(units,)`.

    `cuts` are a few of the states on the way, by width.
    """

    order: np.ndarray
    damage: np.ndarray
    cuts: dict[int, Cut] = field(default_factory=dict, repr=False)

    @property
    def scores(self) -> np.ndarray:
        """A score for each unit: the damage at its removal, which is higher for units removed later. `(units,)`."""
        scores = np.zeros(len(self.order))
        scores[self.order] = self.damage
        return scores

    @property
    def by_width(self) -> np.ndarray:
        """The damage at the widths 1, 2, … units: `(units,)`, never increasing, 0 at the end."""
        return np.append(self.damage[:-1][::-1], 0.0)


def eliminate(group: Group, sensitivity: Sensitivity, ridge: float = 1e-2, ranked: bool = False) -> Curve:
    """Remove the units of a group, those with the least damage first, or from the last to the first if `ranked`.

    `ridge` damps the covariances, as in compensation.
    """
    leaf = group.leaf.id
    states = [_State(reader, leaf, ridge) for reader in sensitivity.readers if leaf in reader.units and reader.count]
    energies = (one.energy[leaf] for one in sensitivity.loose if leaf in one.energy)
    loose = sum(energies, np.zeros(group.size)) / (2 * max(sensitivity.samples, 1))
    stops = sorted({round(group.size * (1 - share)) for share in STOPS} - {0, group.size})
    left = np.arange(group.size)
    order: list[int] = []
    damage: list[float] = []
    cuts: dict[int, Cut] = {}
    total = 0.0
    while len(left):
        each = loose[left] + sum((state.each(left) for state in states), np.zeros(len(left)))
        ahead = [len(left) - stop for stop in stops if stop < len(left)]
        count = min(max(1, group.size // STEPS), len(left), *ahead)
        chosen = np.arange(len(left))[::-1][:count] if ranked else np.argsort(each, kind="stable")[:count]
        gone = left[chosen]
        together = float(loose[gone].sum()) + sum(state.remove(gone) for state in states)
        share = np.cumsum(np.maximum(each[chosen], 0.0))
        steps = share / share[-1] if share[-1] > 0 else np.arange(1, count + 1) / count
        order += gone.tolist()
        damage += (total + max(together, 0.0) * steps).tolist()
        total += max(together, 0.0)
        left = np.delete(left, chosen)
        if len(left) in stops:
            cuts[len(left)] = Cut(np.array(order), {state.reader.layer.node: state.change() for state in states})
    return Curve(np.array(order), np.array(damage), cuts)


class _State:
    """A reader's inverse covariance and weights while its inputs are removed."""

    def __init__(self, reader: Reader, leaf: int, ridge: float) -> None:
        self.reader = reader
        covariance, _ = reader.moments.covariances()
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        damped = covariance + torch.diag_embed(reader.moments.damping(diagonal, ridge))
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        self.matrix = reader.layer.matrix(reader.layer.weight.read()).double()
        self.metric = reader.metric / 2
        self.units = reader.units[leaf].to(self.inverse.device)
        self.start = self.matrix
        self.inputs = torch.arange(self.units.shape[1], device=self.units.device).expand(self.units.shape)

    def change(self) -> Tensor:
        """How much the matrix (G, f, o) changed; rows of removed inputs are 0 now."""
        change = -self.start
        groups = torch.arange(len(self.inputs), device=self.inputs.device)[:, None]
        change[groups, self.inputs] += self.matrix
        return change.float()

    def _places(self, units: np.ndarray) -> Tensor:
        """The inputs of some units, (G, units, k)."""
        wanted = torch.as_tensor(units, device=self.units.device)
        hits = self.units[:, None, :] == wanted[None, :, None]
        count = int(hits[0, 0].sum())
        return hits.nonzero()[:, 2].reshape(len(self.units), len(units), count)

    def _costs(self, places: Tensor) -> Tensor:
        """The damage of removing each set of inputs (G, sets, k): (sets,)."""
        groups = torch.arange(len(places), device=places.device)[:, None, None]
        block = self._block(places, places)
        rows = self.matrix[groups, places]
        gram = rows @ self.metric[:, None] @ rows.transpose(-1, -2)
        return torch.linalg.solve(block, gram).diagonal(dim1=-2, dim2=-1).sum((0, 2))

    def _block(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The blocks of the inverse covariance at these inputs, (G, …, rows, columns)."""
        groups = torch.arange(len(rows), device=rows.device).reshape(-1, *[1] * rows.dim())
        return self.inverse[groups, rows[..., :, None], columns[..., None, :]]

    def each(self, units: np.ndarray) -> np.ndarray:
        """The damage of removing each unit alone, `(units,)`."""
        return self._costs(self._places(units)).cpu().numpy()

    def remove(self, units: np.ndarray) -> float:
        places = self._places(units).flatten(1)
        cost = float(self._costs(places[:, None]).sum())
        groups = torch.arange(len(places), device=places.device)[:, None]
        kept = torch.ones(self.units.shape, dtype=torch.bool, device=places.device)
        kept[groups, places] = False
        rest = kept.nonzero()[:, 1].reshape(len(places), -1)
        across = self._block(rest, places)
        solved = torch.linalg.solve(self._block(places, places), across.transpose(1, 2))  # (G, removed, rest)
        self.matrix = self.matrix[groups, rest] - solved.transpose(1, 2) @ self.matrix[groups, places]
        self.inverse = self._block(rest, rest) - across @ solved
        self.units, self.inputs = self.units[groups, rest], self.inputs[groups, rest]
        return cost


def refine(groups: Groups, curves: Mapping[int, Curve], sensitivity: Sensitivity, batches: Sequence[Inputs],
           seed: int = 0) -> dict[int, Curve]:
    """The curves, corrected by the effect of their cuts on the log-likelihood, to first order, sample by sample.

    That includes what the curves neglect: correlations between a sample's positions, and between a group's readers.
    """
    sums = {(leaf, width): 0.0 for leaf, curve in curves.items() for width in curve.cuts}
    samples = 0
    for run in backwards(groups, sensitivity, batches, seed):
        samples += run.size
        effects = [loose_effects(groups, one, run) for one in sensitivity.loose]
        for leaf, width in sums:
            cut = curves[leaf].cuts[width]
            total = torch.zeros(1, dtype=torch.float64)
            for reader in sensitivity.readers:
                if reader.layer.node in cut.changes:
                    total = total + _effect(reader, cut.changes[reader.layer.node], run)
            for each in effects:
                if leaf in each:
                    total = total + each[leaf][:, cut.gone].sum(1)
            sums[leaf, width] += float(total.square().sum())
    found = {}
    for leaf, curve in curves.items():
        measured = {width: sums[leaf, width] / (2 * max(samples, 1)) for width in curve.cuts}
        found[leaf] = _through(curve, measured)
    return found


def _effect(reader: Reader, change: Tensor, run: Run) -> Tensor:
    """The effect of a change of a reader's matrix on the log-likelihood of each sample, to first order: (samples,).

    The bias compensates for the change of the mean.
    """
    layer = reader.layer
    gradient = run.gradients[layer.node]
    moved = run.respond(layer, change.to(gradient))
    if layer.along is not None:
        mean = (reader.moments.means[0][:, None, :] @ change.double())[:, 0]
        moved = moved - layer.along(mean).to(gradient)
    return per_sample((moved * gradient).double()[..., None], run.size)[:, 0]


def _through(curve: Curve, measured: Mapping[int, float]) -> Curve:
    """The curve, scaled to pass through the damage measured at some widths; it stays monotone."""
    size = len(curve.order)
    widths = sorted(measured)
    if not widths:
        return curve
    ratios = []
    for width in widths:
        known = curve.damage[size - width - 1]
        ratios.append(np.log(max(measured[width], 1e-300) / known) if known > 0 and measured[width] > 0 else 0.0)
    scale = np.exp(np.interp(size - np.arange(1, size + 1), widths, ratios))
    return replace(curve, damage=np.maximum.accumulate(curve.damage * scale), cuts={})
