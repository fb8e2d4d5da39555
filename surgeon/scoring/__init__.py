"""Criteria: how much each unit of a group is worth.

A criterion is a plain function of the groups, one group and a random generator that gives a non-negative number for
each unit. `register` adds one to the table under a name.
"""

from surgeon.scoring.gradient_criteria import GRADIENT_CRITERIA, Gradients
from surgeon.scoring.scoring import check_finite, score
from surgeon.scoring.weight_criteria import CRITERIA, Criterion, register

__all__ = ["CRITERIA", "GRADIENT_CRITERIA", "Criterion", "Gradients", "check_finite", "register", "score"]
