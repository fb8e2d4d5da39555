"""Studies: many runs of train, prune and retrain with their baselines, one row a run, a table and plots in the end."""

from surgeon.study.runs import Run, grid
from surgeon.study.study import Study
from surgeon.study.task import Task

__all__ = ["Run", "Study", "Task", "grid"]
