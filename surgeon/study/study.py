"""A study: carries out and resumes its runs, and gives their rows, a table and plots."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from surgeon.errors import InvalidArgument
from surgeon.study import figures, latency, workers
from surgeon.study.runs import Run
from surgeon.study.store import Row, store
from surgeon.study.table import markdown
from surgeon.study.task import Task, check, load
from surgeon.support.arguments import POSITIVE
from surgeon.support.files import StrPath, write_text
from surgeon.support.progress import counter

TABLE = "table.md"
BY_MACS = "metric-macs"
BY_LATENCY = "metric-latency"


class Study:
    """Runs of one task, whose result rows are kept in a folder.

    A study that is started again in its folder resumes: it carries out the runs without a row, each from its last
    finished epoch, and retries runs that failed.

    Args:
        task: `package.module:NAME` or `folder/file.py:NAME`, or the task itself, which then stays in this process.
        folder: where everything is written; created if missing.
        runs: the runs, such as `surgeon.study.grid(…)`.
        measure: whether to measure the latency of the resulting models too, in onnxruntime on one thread.
        threads: torch's threads in each process; with one, a run's result is always the same.

    Raises:
        InvalidArgument: the task is not one, or the folder holds another study.
        OutputError: the folder can't be written.

    >>> import tempfile, torch
    >>> from surgeon.study import grid
    >>> class Line:                                            # a surgeon.study.Task
    ...     epochs, retraining = 1, 1
    ...     model = lambda self: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    ...     inputs = lambda self: torch.zeros(2, 4)
    ...     batches = lambda self: [(torch.ones(16, 4), torch.ones(16, 1))] * 8
    ...     loss = lambda self, model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])
    ...     optimizer = lambda self, parameters, retraining: torch.optim.SGD(parameters, lr=0.1)
    ...     metric = lambda self, model: -model(torch.ones(1, 4)).sub(1).abs().item()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     study = Study(Line(), folder, grid(ratios=[0.5], seeds=1, baselines=[]))
    ...     print(len(study.pending))
    ...     rows = study.run()
    ...     print(len(study.pending), study.rows == rows, rows[0]["macs"] < rows[0]["dense_macs"])
    ...     print(study.table().count("magnitude"), study.write()[0].name)
    1
    0 True True
    1 table.md
    """

    def __init__(
        self, task: str | Task, folder: StrPath, runs: Iterable[Run], *, measure: bool = False, threads: int = 1
    ) -> None:
        self.measure, self.threads = measure, POSITIVE("threads", threads)
        self.runs = tuple(dict.fromkeys(runs))
        if not self.runs:
            raise InvalidArgument("the study has no runs; see surgeon.study.grid")
        name = _absolute(task) if isinstance(task, str) else None
        self.task = load(name) if name is not None else check(task)
        self._shared = name is not None
        self._store = store(folder)
        settings = {
            "task": name if name is not None else type(self.task).__qualname__, "epochs": self.task.epochs,
            "retraining": self.task.retraining, "measure": measure, "threads": self.threads,
        }
        self._store.begin(settings, self.runs, os.getcwd())

    @property
    def pending(self) -> tuple[Run, ...]:
        """The runs without a row, and those that failed."""
        return tuple(run for run in self.runs if (row := self._store.row(run)) is None or "error" in row)

    @property
    def rows(self) -> list[Row]:
        """The rows so far, each a dict.

        `run` holds the settings; `dense`, `before` and `after` are the metric of the dense model and of the pruned one
        before retraining (None if it is pruned during retraining) and after; `macs`, `dense_macs`, `params` (nonzero
        ones) and `dense_params` are sizes, `latency` the measurements. A failed run's row has `error` instead.
        """
        return self._store.rows(self.runs)

    def run(self, jobs: int = 1, ray: str | None = None) -> list[Row]:
        """Carry out the pending runs, and return all rows.

        Args:
            jobs: the number of processes on this machine.
            ray: instead, the address of a Ray cluster ("auto" for one that runs on this machine, "local" to start one
                for the study).

        Raises:
            InvalidArgument: several processes are requested, but the task was not given by name; or ray is not
                installed.
            SurgeonError: a process ended before its work was done.
        """
        jobs = POSITIVE("jobs", jobs)
        if (jobs > 1 or ray is not None) and not self._shared:
            raise InvalidArgument("other processes import the task: give its name, package.module:NAME or file.py:NAME")
        pending = self.pending
        with counter("study") as progress, workers.threads(self.threads):

            def count() -> None:
                progress(len(self.runs) - len(self.pending), len(self.runs))

            if ray is not None:
                workers.on_ray(pending, self._store, None if ray == "local" else ray, count)
            elif jobs > 1 and len(pending) > 1:
                workers.in_processes(pending, self._store, jobs, count)
            else:
                workers.here(self.task, pending, self._store, count)
        if self.measure:
            latency.measure(self.runs, self._store)
        return self.rows

    def table(self) -> str:
        """A table of the means over seeds, as Markdown."""
        return markdown(self.rows)

    def write(self) -> list[Path]:
        """Write the table and, if matplotlib is installed, the plots; returns the paths.

        Raises:
            OutputError: the folder can't be written.
        """
        made = [self._store.folder / TABLE]
        write_text(made[0], self.table())
        plots: dict[str, Any] = {BY_MACS: figures.by_macs}
        if self.measure:
            plots[BY_LATENCY] = figures.by_latency
        rows = [row for row in self.rows if "error" not in row]
        if figures.available() and rows:
            for name, draw in plots.items():
                path = self._store.folder / f"{name}.svg"
                write_text(path, figures.svg(draw(rows)))
                made.append(path)
        return made


def _absolute(spec: str) -> str:
    source, colon, name = spec.rpartition(":")
    return f"{Path(source).absolute()}{colon}{name}" if source.endswith(".py") else spec
