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

from surgeon.calibration.fisher import OPERATIONS, Run, Sensitivity, backwards, loose_effects, per_sample, spread
from surgeon.calibration.readers import WIDE, Reader
from surgeon.frontend.trace import Inputs
from surgeon.groups.coupling import Group, Groups

RIDGE = 1e-2
#: A group is emptied in about this many steps.
STEPS = 64
#: Samples that damages are refined on whatever operations that takes.
FEWEST = 32
#: Binary digits of a damage that are compared, and of the largest below which one is taken for none.
_DIGITS = 16
_NEGLIGIBLE = 40
#: Positions of each sample from which the gradient by a matrix takes less work than what each change of it puts out.
SEVERAL = 16
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


def eliminate(
    group: Group, sensitivity: Sensitivity, ridges: Mapping[fx.Node, float] | None = None, ranked: bool = False
) -> Curve:
    """Remove the units of a group, those with the least damage first, or from the last to the first if `ranked`.

    `ridges` damp the covariances of the readers' inputs, as in compensation; by default each with `RIDGE`.
    """
    leaf, known = group.leaf.id, ridges or {}
    states = [
        _State(reader, leaf, known.get(reader.layer.node, RIDGE))
        for reader in sensitivity.readers if leaf in reader.units and reader.count
    ]
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
        chosen = np.arange(len(left))[::-1][:count] if ranked else _ascending(each)[:count]
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


def work_of(group: Group, sensitivity: Sensitivity) -> float:
    """About how many operations the elimination of a group takes, to tell how much is left."""
    total = 0.0
    for reader in sensitivity.readers:
        if group.leaf.id in reader.units and reader.count:
            start = reader.by_place(reader.layer.matrix(reader.layer.weight.places))
            groups, inputs, outputs = start.shape
            places = _inputs(reader.units[group.leaf.id][:, :: reader.taps])
            if _separable(reader, start, places):
                inputs, outputs = places.shape[1], outputs * places.shape[2]
            total += groups * inputs**2 * (inputs + outputs)
    return total


class _State:
    """A reader's inverse covariance, and the products of its inputs' weights, while its inputs are removed.

    Products are those of weights by the metric: W M Wᵀ (G, f, f). Removing inputs takes F Fᵀ from the inverse
    covariance and F Hᵀ + H Fᵀ from the products, with F and H of as many columns. It is not taken before a part is
    asked for: together, the `factors` F (G, f, removed) are those of a Cholesky decomposition whose pivots are the
    removed inputs, and H are the `halves`. The blocks of single units on both diagonals are kept up to date. Of a very
    wide convolution, inputs are channels here, and outputs those of all taps. What any of these hold for removed inputs
    means nothing.
    """

    def __init__(self, reader: Reader, leaf: int, ridge: float) -> None:
        self.reader = reader
        covariance, _ = reader.moments.covariances()
        covariance.diagonal(dim1=1, dim2=2).add_(reader.moments.damping(covariance.diagonal(dim1=1, dim2=2), ridge))
        self.shape = (matrix := reader.layer.matrix(reader.layer.weight.read()).double()).shape
        self.start = reader.by_place(matrix)
        self.inputs = _inputs(reader.units[leaf][:, :: reader.taps].to(self.start.device))
        self.of_units = self.inputs if _separable(reader, self.start, self.inputs) else None
        measured = reader.measured(self.start) / 2
        if self.of_units is not None:
            covariance, within = _separated(covariance, self.of_units)
            measured = torch.einsum("gst,guto->guso", within, _by_unit(measured, self.of_units)).flatten(2)
            self.start = _by_unit(self.start, self.of_units).flatten(2)
            self.inputs = torch.arange(self.start.shape[1], device=self.start.device).expand(len(self.start), -1)
            self.inputs = self.inputs[..., None]
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        self.products = self.start @ measured.transpose(1, 2)
        self.groups = torch.arange(len(self.start), device=self.start.device)[:, None]
        self.blocks = self._part(self.inverse, self.inputs, self.inputs)
        self.costs = self._part(self.products, self.inputs, self.inputs)
        self.left = torch.ones(self.start.shape[:2], dtype=torch.bool, device=self.start.device)
        self.factors = self.start.new_zeros((*self.start.shape[:2], self.inputs[0].numel()))
        self.halves = torch.zeros_like(self.factors)
        self.gone = self.inputs.new_zeros(len(self.start), 0)

    def each(self, units: np.ndarray) -> np.ndarray:
        """The damage of removing each unit alone, `(units,)`."""
        blocks, costs = self.blocks[:, units], self.costs[:, units]
        found = costs / blocks if blocks.shape[2] == 1 else torch.cholesky_solve(costs, torch.linalg.cholesky(blocks))
        return found.diagonal(dim1=2, dim2=3).sum((0, 2)).cpu().numpy()

    def remove(self, units: np.ndarray) -> float:
        """Remove units, which may not be removed yet; the damage."""
        gone = self.inputs[:, units].flatten(1)
        self.left[self.groups, gone] = False
        rest = self.left.nonzero()[:, 1].reshape(len(gone), -1)
        # `factors` need the rows of what is removed too: those are the pivots.
        rows, (start, end) = torch.cat([gone, rest], 1), (self.gone.shape[1], self.gone.shape[1] + gone.shape[1])
        factors, halves = (each[self.groups, rows, :start] for each in (self.factors, self.halves))
        own = slice(0, gone.shape[1])
        inverse, products = (
            each[self.groups, gone].transpose(1, 2)[self.groups, rows] for each in (self.inverse, self.products)
        )
        inverse -= factors @ factors[:, own].transpose(1, 2)
        products -= factors @ halves[:, own].transpose(1, 2) + halves @ factors[:, own].transpose(1, 2)
        pivot = torch.linalg.cholesky(inverse[:, own])
        across = _solved(pivot, inverse.transpose(1, 2)).transpose(1, 2)
        products = _solved(pivot, products.transpose(1, 2)).transpose(1, 2)
        damage = _solved(pivot, products[:, own])
        half = products - across @ damage.transpose(1, 2) / 2
        self.factors[self.groups, rows, start:end] = across
        self.halves[self.groups, rows, start:end] = half
        across, half = (each[self.groups[..., None], self.inputs, start:end] for each in (self.factors, self.halves))
        self.blocks -= across @ across.transpose(2, 3)
        twice = across @ half.transpose(2, 3)
        self.costs -= twice + twice.transpose(2, 3)
        self.gone = torch.cat([self.gone, gone], 1)
        return float(damage.diagonal(dim1=1, dim2=2).sum())

    def change(self) -> Tensor:
        """How much the matrix (G, f, o) changed; rows of removed inputs are 0 now."""
        rest = self.left.nonzero()[:, 1].reshape(len(self.left), -1)
        removed, width = self.start[self.groups, self.gone], self.gone.shape[1]
        pivots, others = (self.factors[self.groups, rows, :width] for rows in (self.gone, rest))
        change = -self.start
        change[self.groups, rest] = -(others.float() @ _solved(pivots, removed).float()).double()
        if self.of_units is not None:
            whole = change.new_empty(self.shape)
            whole[self.groups, self.of_units.flatten(1)] = change.reshape(whole.shape)
            change = whole
        return change.reshape(self.shape).float().contiguous()  # which is read for every sample

    def _part(self, matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """The parts of a matrix (G, f, f) at these inputs (G, …, rows), (G, …, columns)."""
        groups = self.groups.reshape(-1, *[1] * rows.dim())
        return matrix[groups, rows[..., :, None], columns[..., None, :]]


def _ascending(damages: np.ndarray) -> np.ndarray:
    """The places of damages in ascending order; what differs by no more than rounding comes in the order of the places.

    Units that are equal, or that nothing reads, would else go in the order that rounding gives them, which depends on
    the number of threads.
    """
    mantissa, exponent = np.frexp(damages)
    rounded = np.ldexp(np.round(mantissa * 2.0**_DIGITS), exponent - _DIGITS)
    rounded[damages < damages.max() * 2.0**-_NEGLIGIBLE] = 0.0
    return np.argsort(rounded, kind="stable")


def _inputs(units: Tensor) -> Tensor:
    """The inputs of each unit, (G, units, k), from the unit that each input belongs to, or -1: (G, f)."""
    order = units.argsort(dim=1, stable=True)
    count = int(units.max()) + 1
    first = int((units[0] < 0).sum())
    return order[:, first:].reshape(len(units), count, -1)


def _separable(reader: Reader, start: Tensor, inputs: Tensor) -> bool:
    """Whether there are many inputs, several of each unit, and none beside; not where moments are of channels."""
    return reader.taps == 1 and inputs.shape[2] > 1 and start.shape[1] > WIDE and inputs[0].numel() == start.shape[1]


def _by_unit(matrix: Tensor, inputs: Tensor) -> Tensor:
    """The rows of a matrix (G, f, o) by units: (G, units, k, o)."""
    return matrix[torch.arange(len(matrix), device=matrix.device)[:, None, None], inputs]


def _separated(covariance: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """A covariance (G, f, f) as a Kronecker product: among units (G, units, units), and within one of them (G, k, k).

    Of inputs that are a kernel's places, whose covariance is about the same for all units but for its scale.
    """
    groups = torch.arange(len(covariance), device=covariance.device)[:, None, None]
    places = inputs.shape[2]
    among = covariance.new_zeros(*inputs.shape[:2], inputs.shape[1])
    within = covariance.new_zeros(len(covariance), places, places)
    for first in range(places):
        among += covariance[groups, inputs[:, :, None, first], inputs[:, None, :, first]]
        for second in range(places):
            within[:, first, second] = covariance[groups[:, 0], inputs[..., first], inputs[..., second]].sum(1)
    return among / places, within * (places / within.diagonal(dim1=1, dim2=2).sum(1)[:, None, None])


def _solved(factor: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, right, upper=False)


def refine(
    groups: Groups, curves: Mapping[int, Curve], sensitivity: Sensitivity, batches: Sequence[Inputs], seed: int = 0,
    operations: float = OPERATIONS, fewest: int = FEWEST,
) -> dict[int, Curve]:
    """The curves, corrected by the effect of their cuts on the log-likelihood, to first order, sample by sample.

    That includes what the curves neglect: correlations between a sample's positions, and between a group's readers. Of
    a large model, fewer samples are run: as many as `operations` allow, but at least the `fewest`.
    """
    sums = {(leaf, width): 0.0 for leaf, curve in curves.items() for width in curve.cuts}
    samples = 0
    most = operations / max(sensitivity.work * (1 + sensitivity.draws * (1 + len(STOPS))), 1.0)
    for run in backwards(groups, sensitivity, batches, seed, spread(batches, most, fewest)):
        samples += run.size
        totals = {place: torch.zeros(1, dtype=torch.float64) for place in sums}
        for reader in sensitivity.readers:
            cuts = {place: curves[place[0]].cuts[place[1]].changes.get(reader.layer.node) for place in sums}
            changes = {place: change for place, change in cuts.items() if change is not None}
            for place, effect in zip(changes, _effects(reader, list(changes.values()), run), strict=True):
                totals[place] = totals[place] + effect
        for one in sensitivity.loose:
            for leaf, each in loose_effects(groups, one, run).items():
                for width, cut in curves[leaf].cuts.items():
                    totals[leaf, width] = totals[leaf, width] + each[:, cut.gone].sum(1)
        for place, total in totals.items():
            sums[place] += float(total.square().sum())
    found = {}
    for leaf, curve in curves.items():
        measured = {width: sums[leaf, width] / (2 * max(samples, 1)) for width in curve.cuts}
        found[leaf] = _through(curve, measured)
    return found


def _effects(reader: Reader, changes: Sequence[Tensor], run: Run) -> list[Tensor]:
    """The effects of changes of a reader's matrix on the log-likelihood of each sample, to first order: (samples,).

    The bias compensates for the change of the mean.
    """
    layer, gradient = reader.layer, run.gradients[reader.layer.node]
    if not changes:
        return []
    if layer.along is not None and gradient.numel() >= SEVERAL * run.size * changes[0].shape[0] * changes[0].shape[2]:
        return _by_gradients(reader, changes, run)
    found = []
    for change in changes:
        moved = run.respond(layer, change.to(gradient))
        if layer.along is not None:
            mean = (reader.means[:, None, :] @ change.double())[:, 0]
            moved = moved - layer.along(mean).to(gradient)
        found.append(per_sample((moved * gradient).double()[..., None], run.size)[:, 0])
    return found


def _by_gradients(reader: Reader, changes: Sequence[Tensor], run: Run) -> list[Tensor]:
    """As `_effects`, from the gradient by the matrix, of one sample after the other: it is the same for all changes."""
    inputs, slopes = run.input(reader.layer), run.gradients[reader.layer.node]
    apart = run.size if len(slopes) % run.size == 0 and len(inputs) == len(slopes) else 1
    found = torch.zeros(len(changes), apart, dtype=torch.float64)
    mean = reader.means[:, None, :].to(inputs)
    for sample, (x, g) in enumerate(zip(inputs.chunk(apart), slopes.chunk(apart), strict=True)):
        rows, own = reader.layer.rows(x, g, 1.0, run.generator)
        gradient = (rows - mean).transpose(1, 2) @ own
        for place, change in enumerate(changes):
            found[place, sample] = torch.dot(gradient.flatten(), change.to(gradient).flatten()).cpu()
    return list(found)


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
