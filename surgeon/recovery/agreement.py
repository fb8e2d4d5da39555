"""How much of a model's function a smaller one keeps, by what both put out for inputs that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from surgeon.calibration.padding import Padding
from surgeon.frontend.trace import Inputs
from surgeon.groups.coupling import Groups
from surgeon.groups.interpreter import floating
from surgeon.recovery.pair import Pair
from surgeon.rules import Kept

#: An agreement below this is told to be low.
LOW = 0.9


@dataclass(frozen=True)
class Agreement:
    """The part of the function that is kept, 0 to 1.

    Of outputs that look like classes, one row of several numbers for each sample, it is the share of the `samples`
    whose largest number is at the same place; else, by sample, the mean cosine between the differences of both models'
    outputs from the original's mean. `noise` says that the inputs are noise.

    >>> print(Agreement(0.75, classes=True, samples=64, noise=False))
    kept: 75 % of 64 inputs that nothing was fitted to get the original's class (give or take 11 points)
    >>> print(Agreement(0.98, classes=False, samples=64, noise=True))
    kept: on 64 samples of noise, outputs have a mean cosine of 0.980 to the original's; a guess: real inputs tell
    """

    share: float
    classes: bool
    samples: int
    noise: bool

    def __str__(self) -> str:
        inputs = f"{self.samples} {'samples of noise' if self.noise else 'inputs that nothing was fitted to'}"
        guess = "; a guess: real inputs tell" if self.noise else ""
        if not self.classes:
            return f"kept: on {inputs}, outputs have a mean cosine of {self.share:.3f} to the original's{guess}"
        off = 200 * (max(self.share * (1 - self.share), 0.25 / self.samples) / self.samples) ** 0.5
        doubt = guess or f" (give or take {off:.0f} points)"
        return f"kept: {100 * self.share:.3g} % of {inputs} get the original's class{doubt}"

    @property
    def warning(self) -> str:
        """What is to be done where little is kept; else empty."""
        if self.share >= LOW:
            return ""
        more = "unlabeled inputs (data=)" if self.noise else "more of them (samples=)"
        return f"warning: little of the function is kept. Remedy: {more}, a smaller ratio, or fine-tuning"


def agreement(
    groups: Groups, kept: Kept, tensors: Mapping[str, Tensor], batches: Sequence[Inputs], noise: bool
) -> Agreement | None:
    """Compare both models, the smaller one with these tensors by name, on some batches; None if nothing compares."""
    pair, padding = Pair(groups, kept, tensors), Padding(groups)
    total, count, classes = 0.0, 0, False
    with torch.no_grad():
        for batch in batches:
            wanted = floating(pair.original(batch).run())
            mine = floating(pair.smaller(batch, tensors=pair.own).run())
            classes = len(wanted) == 1 and wanted[0].dim() == 2 and wanted[0].shape[1] > 1
            if classes:
                found = (mine[0].argmax(1) == wanted[0].argmax(1)).float()
            else:
                masks = padding.outputs(batch)
                found = _cosines(*(_rows(each, masks) for each in (mine, wanted)))
            total += float(found.sum())
            count += len(found)
    return Agreement(total / count, classes, count, noise) if count else None


def _rows(outputs: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Tensor:
    """All outputs, a row for each sample, with zeros for padding."""
    shown = [
        value if mask is None else value.where(mask.expand(value.shape), torch.zeros_like(value))
        for value, mask in zip(outputs, masks, strict=True)
    ]
    samples = max((len(value) for value in shown if value.dim()), default=0)
    alike = [value.reshape(samples, -1) for value in shown if value.dim() and len(value) == samples and samples]
    return torch.cat(alike, 1).float() if alike else torch.zeros(0, 1)


def _cosines(mine: Tensor, wanted: Tensor) -> Tensor:
    center = wanted.mean(0) if len(wanted) > 1 else torch.zeros(())
    same = (mine == wanted).all(1)
    return torch.where(same, 1.0, F.cosine_similarity(mine - center, wanted - center))
