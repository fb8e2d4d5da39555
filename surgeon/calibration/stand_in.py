"""What a cut is judged on and made up for with where no data are given: a little noise; or why it can't be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.calibration.data import HELD_BACK, Calibration, calibrate
from surgeon.calibration.readers import find_readers
from surgeon.calibration.restated import judged_on, never_trained
from surgeon.errors import InvalidInputs, first_line
from surgeon.frontend.parameters import NOISE
from surgeon.groups.coupling import Groups
from surgeon.groups.interpreter import Interpreter, floating
from surgeon.rules.base import size_of
from surgeon.support.progress import stage

#: Samples of noise, and the fewest that are worth their while.
SAMPLES = 64
FEWEST = 8
#: Multiply-accumulate operations: above the first, there are fewer samples, and above the second there is no noise.
MODERATE = 8e11
MOST = 4e12
#: How often the model is run on each sample, and a layer's inputs are solved for, about.
PASSES, SOLVED = 12, 2
#: Samples on which outputs are compared, for each that units are judged on; only one where these are few.
CHECKED = 2
#: Outputs that differ by less from sample to sample, relative to their norm, tell nothing.
ALIKE = 1e-4
#: What does better.
REMEDY = "unlabeled inputs (data=) do better"

_T = TypeVar("_T")


class Unserved(Exception):
    """Why noise does not serve for a model."""


def noise_for_cut(model: nn.Module, groups: Groups, seed: int) -> Calibration:
    """A little noise, within bounded work, on which the model computes something that depends on it.

    Raises:
        Unserved: there is none, or the work would be too much.
    """
    samples = _affordable(groups)
    if never_trained(groups):
        raise Unserved("no batch norm has statistics of any input: all means are 0 and all variances 1")
    with stage("noise"):
        return served(lambda: _made(model, groups, samples, seed))


def _made(model: nn.Module, groups: Groups, samples: int, seed: int) -> Calibration:
    noise = _varied(groups, calibrate(NOISE, groups.graph, model, samples, seed=seed))
    checked = samples if samples < SAMPLES else CHECKED * samples
    return replace(noise, checks=calibrate(NOISE, groups.graph, model, checked, seed=seed + 1).batches)


def served(work: Callable[[], _T]) -> _T:
    """The result of work on noise.

    Raises:
        Unserved: it failed, for a reason that a model may give on inputs that nobody made for it.
    """
    try:
        return work()  # on inputs that they were never meant for, operators raise anything
    except Exception as error:
        raise Unserved(first_line(error)) from error


def finite(*judgments: Mapping[int, np.ndarray]) -> None:
    """Make sure that all scores or damages are numbers.

    Raises:
        Unserved: some are not.
    """
    if not all(np.isfinite(values).all() for each in judgments for values in each.values()):
        raise Unserved("on noise, the model or its gradients are not finite")


def _affordable(groups: Groups) -> int:
    """How many samples the work allows."""
    each, once = 1.0, 0.0
    for reader in find_readers(groups)[0]:
        count, inputs, outputs = reader.layer.matrix(reader.layer.weight.places).shape
        each += PASSES * math.prod(size_of(reader.layer.node)) * inputs / max(groups.graph.batch, 1)
        once += SOLVED * count * inputs**2 * (inputs + outputs)
    least = once + FEWEST * each
    if least > MOST:
        raise Unserved(
            f"on noise this takes {least:.1e} multiply-accumulate operations, and by itself shrink spends at most "
            f'{MOST:.0e} on it; data="{NOISE}" takes the time'
        )
    return int(min(max(MODERATE / each, FEWEST), SAMPLES))


def _varied(groups: Groups, data: Calibration) -> Calibration:
    """The noise, once the model was run on some of it.

    Raises:
        InvalidInputs: outputs are not finite, or about the same for every sample.
    """
    judged = judged_on(groups, data)
    outputs: list[list[Tensor]] = []
    count = 0
    with torch.no_grad():
        for batch in data.batches:
            outputs.append(floating(Interpreter(judged.graph, batch).run()))
            count += max((len(each) for each in outputs[-1] if each.dim()), default=1)
            if count >= HELD_BACK:
                break
    if not all(bool(torch.isfinite(each).all()) for found in outputs for each in found):
        raise InvalidInputs("on noise, the model computes NaN or infinity")
    if not any(_differ([found[place] for found in outputs]) for place in range(len(outputs[0]))):
        raise InvalidInputs("on noise, the model's outputs are about the same for every sample")
    return data


def _differ(values: list[Tensor]) -> bool:
    """Whether an output is another one for other samples."""
    if not values[0].dim() or len({tuple(value.shape[1:]) for value in values}) > 1:
        return True  # these can't be compared
    rows = torch.cat(values).double()
    return len(rows) < 2 or float((rows - rows.mean(0)).norm()) > ALIKE * float(rows.norm())


