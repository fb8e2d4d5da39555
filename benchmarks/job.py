"""A published file's job: what it is scored by, and what it is made smaller with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

#: Inputs by the file's names; those of calibration, the first axis the samples.
Arrays = Mapping[str, np.ndarray]
#: Samples that are run at once.
TOGETHER = 16


def average(scores: np.ndarray) -> float:
    return float(scores.mean())


@dataclass(frozen=True)
class Job:
    """The job of the file of this name.

    `score` gives a number, or several, for each test sample, `summary` makes one of all of them. `unlabeled` are the
    inputs to calibrate with, other samples than those of the test; `beside` are inputs that are the same in all runs.
    At most `samples` of them are taken. `measured` are the samples of one run when it is timed.
    """

    file: str
    score: Callable[[Path], Sequence[float] | Sequence[tuple[float, float]]]
    unlabeled: Callable[[], Arrays]
    beside: Arrays | None = None
    summary: Callable[[np.ndarray], float] = average
    samples: int = 256
    measured: int = 1

    def runs(self, most: int) -> list[dict[str, np.ndarray]]:
        """Unlabeled inputs of at most so many runs."""
        given, size, beside = self.unlabeled(), self.measured, self.beside or {}
        count = min(len(next(iter(given.values()))) // size, most)
        return [
            {**{name: array[at * size : (at + 1) * size].copy() for name, array in given.items()}, **beside}
            for at in range(count)
        ]

    def scored(self, path: Path) -> list[float]:
        """The score of a file in percent, and the half of its 95 % interval, by a bootstrap over the samples."""
        scores, rng = np.asarray(self.score(path)), np.random.default_rng(0)
        drawn = [self.summary(scores[rng.integers(len(scores), size=len(scores))]) for _ in range(500)]
        return [round(100 * self.summary(scores), 2), round(196 * float(np.std(drawn)), 2)]


def run(path: Path, inputs: Arrays, beside: Arrays | None = None, together: int = TOGETHER) -> list[np.ndarray]:
    """The outputs of a file, a few samples at once."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    count = len(next(iter(inputs.values())))
    parts = [
        session.run(None, {**{name: array[at : at + together] for name, array in inputs.items()}, **(beside or {})})
        for at in range(0, count, together)
    ]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]
