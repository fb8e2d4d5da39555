"""An epoch of training after the cut: surgeon's, recovered from unlabeled images, and Torch-Pruning's best.

The same loop for both (`models.train.fit`: the network's own recipe, a one-cycle rate), the same images in the same
order, and for each the best of the same peak rates, by images of the training set that are held back.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from typing import Any

import torch
from torch import Tensor, nn

import models
from benchmarks import peers
from benchmarks.accuracy_rows import Subject, macs, recipes
from models import train

RATES = (0.5, 0.1)
"""Peak rates, as shares of those that the networks were trained with."""
HELD_BACK = 2000

Row = dict[str, Any]


def tune(subject: Subject, ratio: float) -> Row:
    """surgeon's, cut at any width, and trained for an epoch."""
    return _tuned(subject, subject.shrink(ratio, align=1))


def tune_peer(subject: Subject, ratio: float) -> Row:
    """Torch-Pruning's best of L2 by all three scopes and of Taylor, and trained for an epoch."""
    torch.manual_seed(subject.seed)
    held, _ = _split(subject)
    chosen = [recipe for recipe in recipes(subject) if recipe.criterion in ("L2", "Taylor")]
    _, best = peers.best(
        subject.model, (subject.inputs,), chosen, lambda model: macs(model, subject.inputs),
        (1 - ratio) * subject.macs,
        lambda model: models.accuracy(model, subject.train[held], subject.train_labels[held]),
    )
    if best is None:
        raise RuntimeError(f"Torch-Pruning can't cut {subject.network}")
    return {"criterion": best[0], **_tuned(subject, best[1])}


def trained(subject: Subject, model: nn.Module) -> nn.Module:
    """The model after an epoch at the rate that is best on images held back."""
    return _trained(subject, model)[1]


def _split(subject: Subject) -> tuple[Tensor, Tensor]:
    """The training images that are held back, and the others."""
    order = torch.randperm(len(subject.train), generator=torch.Generator().manual_seed(subject.seed + 1000))
    return order[:HELD_BACK], order[HELD_BACK:]


def _tuned(subject: Subject, model: nn.Module) -> Row:
    """Accuracy straight after the cut, and after an epoch at the rate that is best on images held back."""
    start = time.process_time()
    tried, _ = _trained(subject, model)
    best = max(tried.values(), key=lambda row: row["held_back"])
    return {
        "straight": subject.accuracy(model), "accuracy": best["accuracy"], "rates": tried,
        "images": len(_split(subject)[1]), "macs": macs(model, subject.inputs) / subject.macs,
        "seconds": time.process_time() - start,
    }


def _trained(subject: Subject, model: nn.Module) -> tuple[dict[str, Row], nn.Module]:
    """What an epoch gives at each rate, and the model of the rate that is best on images held back."""
    held, shown = _split(subject)
    recipe = train.RECIPES[subject.network]
    tried: dict[str, Row] = {}
    made: dict[str, nn.Module] = {}
    for share in RATES:
        each = copy.deepcopy(model)
        train.fit(
            each, dataclasses.replace(recipe, rate=share * recipe.rate), subject.train[shown],
            subject.train_labels[shown], epochs=1, seed=subject.seed,
        )
        each.eval()
        made[f"{share:g}"] = each
        tried[f"{share:g}"] = {
            "held_back": models.accuracy(each, subject.train[held], subject.train_labels[held]),
            "accuracy": subject.accuracy(each),
        }
    return tried, made[max(tried, key=lambda name: tried[name]["held_back"])]
