"""Importance criteria: how much each unit of a group is worth.

A criterion is a function of the groups, one group and a random generator that returns a non-negative number for each
unit. `register` adds one to the table under a name.
"""

from surgeon.scoring.gradient_criteria import GRADIENT_CRITERIA, Gradients
from surgeon.scoring.scoring import score
from surgeon.scoring.weight_criteria import CRITERIA, Criterion, register

__all__ = ["CRITERIA", "GRADIENT_CRITERIA", "Criterion", "Gradients", "register", "score"]
