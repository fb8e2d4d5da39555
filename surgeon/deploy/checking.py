"""Holds an ONNX file against the model that it is of, at the sizes of the example and at others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from surgeon.deploy.flat import Flat
from surgeon.deploy.free_axes import FreeAxes
from surgeon.deploy.inputs import Call, Place
from surgeon.deploy.parity import Parity, check_parity
from surgeon.errors import ExportError, SurgeonError, first_line

Shapes = tuple[Mapping[str, tuple[int, ...]], ...]


class NotFree(ExportError):
    """Some axes can't be free: `places`."""

    def __init__(self, message: str, places: set[Place]) -> None:
        super().__init__(message)
        self.places = places


@dataclass(frozen=True)
class Checking:
    """A file, and what it is held against: `flat` on inputs like those of `call`, which has the file's names.

    `given` are inputs that only the file takes.
    """

    flat: Flat
    call: Call
    path: Path
    tolerance: float
    seed: int
    given: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __call__(self, axes: FreeAxes) -> tuple[Parity, Shapes]:
        """Hold the file against PyTorch on the example, and at other sizes of these axes.

        Raises:
            ExportError: it deviates.
            NotFree: it does so at other sizes; `places` are the axes at fault.
        """
        samples, free = [self.call.tensors], self.samples(axes)
        if not axes.names:
            samples.append(self.call.sample(torch.Generator().manual_seed(self.seed)))
        parity = self._parity(samples)
        try:
            other = self._parity(free)
        except ExportError as error:
            raise NotFree(f"at other sizes, {first_line(error)}", self._to_blame(axes)) from error
        shapes = {repr(shape): shape for shape in map(self.call.shapes, [*samples, *free])}
        notes = tuple(dict.fromkeys((*parity.notes, *other.notes)))
        deviation = max(parity.deviation, other.deviation)
        return Parity(deviation, parity.outputs, notes), tuple(shapes.values())

    def samples(self, axes: FreeAxes) -> list[tuple[Tensor, ...]]:
        """Random inputs at another size of all these axes at once, and of 1 and 3 rows."""
        generator = torch.Generator().manual_seed(self.seed)
        found: list[tuple[Tensor, ...]] = []
        if axes.names:
            found.append(self.call.at(axes.others).sample(generator))
        for size in (1, 3):
            if any(sample[tensor].shape[0] != size for tensor, _ in axes.batch for sample in found[:1]):
                found.append(self.call.at(axes.rows(size)).sample(generator))
        return found

    def _to_blame(self, axes: FreeAxes) -> set[Place]:
        """The axes at other sizes of which the file is wrong; all but the batch where none is alone."""
        generator = torch.Generator().manual_seed(self.seed)
        found: set[Place] = set()
        for each in axes.classes():
            sizes = {place: axes.others[place] for place in each}
            try:
                self._parity([self.call.at(sizes).sample(generator)])
            except SurgeonError:
                found |= each
        return found or (set(axes.names) - axes.batch) or set(axes.names)

    def _parity(self, samples: Sequence[Sequence[Tensor]]) -> Parity:
        return check_parity(
            self.path, self.flat, samples, input_names=self.call.names, tolerance=self.tolerance,
            precise=self.flat.in_double, given=self.given,
        )
