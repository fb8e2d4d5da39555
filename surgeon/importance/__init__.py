"""Criteria: how much each unit of a group is worth.

A criterion is a plain function of the groups, one group and a random generator that gives a non-negative number for
each unit. `register` adds one to the table under a name.
"""

from surgeon.importance.criteria import CRITERIA, Criterion, register
from surgeon.importance.gradients import GRADIENT_CRITERIA, Gradients
from surgeon.importance.scoring import check_finite, check_real, score

__all__ = ["CRITERIA", "GRADIENT_CRITERIA", "Criterion", "Gradients", "check_finite", "check_real", "register", "score"]
