"""Pruning during training, with masks first and surgery at the end; and retraining the smaller model."""

from surgeon.training.distillation import distillation
from surgeon.training.dropout import scale_dropout
from surgeon.training.freezing import frozen
from surgeon.training.loop import fit
from surgeon.training.pruner import Decision, Pruner
from surgeon.training.regularizers import batch_norm_l1, group_lasso, l1, l2
from surgeon.training.rewinding import reinitialize, rewind
from surgeon.training.unit_masks import UnitMasks
from surgeon.training.weight_masks import Masks

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
