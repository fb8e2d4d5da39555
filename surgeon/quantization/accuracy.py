"""How far the outputs of an int8 model are from the float model's, on batches that it was not calibrated with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from surgeon.device.ort_session import ORT_ERRORS, open_session
from surgeon.errors import BenchmarkError, InvalidInputs
from surgeon.quantization.calibration import Feeds

Judge = Literal["auto", "top-1", "deviation"]


@dataclass(frozen=True)
class Accuracy:
    """An int8 model compared with float32 on `rows` rows.

    `agreement` is the share of rows with the same top-1 class (None if the outputs are not class scores), `deviation`
    the largest |a - b| / |b| of an output, in Euclidean norms over all rows. `enough` says whether the measure that
    decides, `judged`, is within its `limit`.
    """

    rows: int
    agreement: float | None
    deviation: float
    judged: Literal["top-1", "deviation"]
    limit: float
    enough: bool

    def __str__(self) -> str:
        same = "" if self.agreement is None else f"same top-1 as float32 on {self.agreement:.1%}, "
        limit = f"at least {self.limit:.1%}" if self.judged == "top-1" else f"at most {self.limit:.3g}"
        return f"{same}deviation {self.deviation:.3g}, on {self.rows} held-out rows (required: {self.judged} {limit})"


def judge_by(
    reference: Path, held: Sequence[Feeds], judge: Judge, agreement: float, deviation: float, threads: int
) -> Callable[[Path], Accuracy]:
    """A function that compares a file with `reference` on the held-out batches.

    Raises:
        InvalidInputs: top-1 is requested, but the model's output is not class scores.
    """
    expected = _run(reference, held, threads)
    scores = len(expected) == 1 and expected[0].ndim == 2 and expected[0].shape[1] > 1
    if judge == "top-1" and not scores:
        shapes = ", ".join(str(each.shape) for each in expected)
        raise InvalidInputs(f"top-1 needs one output of shape (N, K), the model has {shapes}; judge by deviation")
    by_top = judge == "top-1" or (judge == "auto" and scores)

    def measure(path: Path) -> Accuracy:
        actual = _run(path, held, threads)
        far = max(map(relative, expected, actual), default=0.0)
        same = float((expected[0].argmax(1) == actual[0].argmax(1)).mean()) if scores else None
        rows = len(expected[0]) if expected and expected[0].ndim else len(held)
        if by_top and same is not None:
            return Accuracy(rows, same, far, "top-1", agreement, same >= agreement)
        return Accuracy(rows, same, far, "deviation", deviation, far <= deviation)

    return measure


def relative(expected: np.ndarray, actual: np.ndarray) -> float:
    """|a - b| / |b| in Euclidean norms, infinite if the shapes differ or a value is not finite.

    >>> relative(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    0.1
    """
    if expected.shape != actual.shape or not np.isfinite(np.asarray(actual, np.float64)).all():
        return float("inf")
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0))


def _run(path: Path, held: Sequence[Feeds], threads: int) -> list[np.ndarray]:
    """The outputs over all batches, each concatenated along its first axis where possible, else flattened."""
    session = open_session(path, threads=threads)
    try:
        runs = [session.run(None, feeds) for feeds in held]
    except ORT_ERRORS as error:
        raise BenchmarkError(f"{path.name}: onnxruntime can't run it on the calibration data: {error}") from error
    joined: list[np.ndarray] = []
    for parts in zip(*runs, strict=True):
        alike = parts[0].ndim and len({part.shape[1:] for part in parts}) == 1
        joined.append(np.concatenate(parts) if alike else np.concatenate([part.ravel() for part in parts]))
    return joined
