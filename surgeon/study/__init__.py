"""Studies: many train-prune-retrain runs with baselines, one result row per run, summarized in a table and plots."""

from surgeon.study.runs import Run, grid
from surgeon.study.study import Study
from surgeon.study.task import Task

__all__ = ["Run", "Study", "Task", "grid"]
