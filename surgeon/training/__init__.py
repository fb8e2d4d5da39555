"""Pruning while a model trains: masks first, surgery later; and retraining what is left."""

from surgeon.training.dropout import scale_dropout
from surgeon.training.freezing import frozen
from surgeon.training.loop import fit
from surgeon.training.masks import Masks
from surgeon.training.pruner import Decision, Pruner
from surgeon.training.regularizers import batch_norm_l1, group_lasso, l1, l2
from surgeon.training.survivors import reinitialize, rewind
from surgeon.training.teacher import distillation
from surgeon.training.units import UnitMasks

__all__ = [
    "Decision",
    "Masks",
    "Pruner",
    "UnitMasks",
    "batch_norm_l1",
    "distillation",
    "fit",
    "frozen",
    "group_lasso",
    "l1",
    "l2",
    "reinitialize",
    "rewind",
    "scale_dropout",
]
