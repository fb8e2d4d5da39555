"""How far a smaller model's outputs are from the original's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from surgeon.calibration.padding import Padding
from surgeon.frontend.trace import Inputs
from surgeon.groups.coupling import Groups
from surgeon.groups.interpreter import floating
from surgeon.recovery.pair import Pair
from surgeon.rules import Kept
from surgeon.support.memory import working_memory

#: The part of the working memory that the original's outputs may take, so that they are computed once.
PART = 1 / 8


class OutputDeviation:
    """Measures smaller models by their outputs on some batches, without padding, relative to the original's norm."""

    def __init__(self, groups: Groups, kept: Kept, batches: Sequence[Inputs]) -> None:
        self._groups, self._kept, self._batches = groups, kept, batches
        self._padding = Padding(groups)
        self._wanted: list[list[Tensor]] = []

    def of(self, tensors: Mapping[str, Tensor]) -> float:
        """The deviation with these tensors of the smaller model, by name."""
        pair = Pair(self._groups, self._kept, tensors)
        apart = size = 0.0
        with torch.no_grad():
            for place, batch in enumerate(self._batches):
                wanted = self._wanted[place] if place < len(self._wanted) else self._original(pair, place)
                mine = floating(pair.smaller(batch, tensors=pair.own).run())
                both = (self._padding.in_a_row(each, batch) for each in (mine, wanted))
                for a, b in zip(*both, strict=True):
                    apart += float((a - b).double().square().sum())
                    size += float(b.double().square().sum())
        return (apart / size) ** 0.5 if size else apart

    def _original(self, pair: Pair, place: int) -> list[Tensor]:
        wanted = floating(pair.original(self._batches[place]).run())
        if sum(each.nbytes for each in wanted) * len(self._batches) <= working_memory(PART):
            self._wanted.append(wanted)
        return wanted
