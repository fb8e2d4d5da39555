"""How good a model is at its job, by a function of the user's: evaluated on data of their own, with an interval."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.calibration.data import CHUNK, Reader
from surgeon.errors import InvalidArgument, InvalidInputs
from surgeon.frontend.batches import batches
from surgeon.frontend.free_sizes import IsolatedCopy, Unfit
from surgeon.frontend.parameters import MADE
from surgeon.frontend.pictures import Pictures
from surgeon.frontend.trace import Graph, Inputs
from surgeon.support.arguments import LARGEST, call, is_number, shown

#: From feeds, a batch as the data yield it in arrays, and the list of the model's outputs, arrays too.
Score = Callable[[Any, list[np.ndarray]], float]

#: How often samples are drawn anew for an interval; less often, but not less than this, if it takes more seconds.
DRAWN, LEAST_DRAWN, SECONDS = 200, 40, 20.0
#: If the data hold fewer samples beyond those that layers are fitted on, all of them are used.
ENOUGH = 32


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, which is not known where a single batch tells it."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        between = "" if self.low is None or self.high is None else f" ({self.low:.4g} to {self.high:.4g})"
        return f"{self.value:.4g}{between}"


@dataclass(frozen=True)
class JobReport:
    """What the metric `name` gives for the original and for the smaller model, and the share of it that is `kept`.

    The intervals are those of a bootstrap over the `count` samples, or over as many batches where outputs can't be told
    apart by samples; for `kept`, the same are drawn for both models. `notes` say what the data are.

    >>> print(JobReport("score", Estimate(0.9, 0.8, 1.0), Estimate(0.81, 0.7, 0.9), Estimate(0.9), 64, "samples"))
    score: 0.9 (0.8 to 1) before, 0.81 (0.7 to 0.9) after, 0.9 of it kept; 95 % intervals, on 64 samples
    """

    name: str
    before: Estimate
    after: Estimate
    kept: Estimate | None
    count: int
    by: Literal["samples", "batches"]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        kept = "" if self.kept is None else f", {self.kept} of it kept"
        told = f"{self.name}: {self.before} before, {self.after} after{kept}; 95 % intervals, on {self.count} {self.by}"
        return "\n".join([told, *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True)
class Batch:
    """A batch as the data yield it, in arrays, the model's inputs in it, and its number of samples."""

    feeds: Any = field(repr=False)
    inputs: Inputs = field(repr=False)
    rows: int

    def part(self, rows: np.ndarray) -> Any:
        """The feeds of these samples; what has another number of them is as it was."""
        return pytree.tree_map_only(
            np.ndarray, lambda array: array[rows] if array.ndim and len(array) == self.rows else array, self.feeds
        )


class Metric:
    """A metric, for models that take the inputs of `graph`, which is `model`'s, the original.

    It is evaluated on `data`; if there are none, on `source`, of which layers are fitted on the first `samples`.

    Raises:
        InvalidArgument: there are no data, or they can't be read twice, or the metric gives no number.
        InvalidInputs: the data don't fit the model.
    """

    def __init__(self, function: Score, data: Any, graph: Graph, model: nn.Module, source: Any, samples: int) -> None:
        self._function = function
        self.name = str(getattr(function, "__name__", type(function).__name__))
        self._batches, self._notes = self._read(data, graph, model, source, samples)
        outputs = self._outputs(model)
        self._whole = _whole(self._batches, outputs)
        self._before = self._scored(outputs)
        self._original = self._finite(self._before)

    def share(self, model: nn.Module) -> float:
        """The share of the original's metric that a model keeps.

        Raises:
            InvalidArgument: the original's is not above 0, so that no share of it can be told.
        """
        if self._original <= 0:
            raise InvalidArgument(
                f"metric: {self.name} gives {self._original:.4g} for the original, of which no share can be told; "
                "give a function that is the higher the better, and above 0"
            )
        return self._finite(self._scored(self._outputs(model))) / self._original

    def report(self, model: nn.Module, seed: int = 0) -> JobReport:
        """The metric before and after, with intervals."""
        after = self._scored(self._outputs(model))
        start = time.perf_counter()
        value = self._finite(after)
        took = time.perf_counter() - start
        rng, count = np.random.default_rng(seed), len(self._numbers)
        often = int(min(DRAWN, max(LEAST_DRAWN, SECONDS / max(2 * took, 1e-9)))) if count > 1 else 0
        pairs = []
        for _ in range(often):
            drawn = rng.integers(count, size=count)
            pairs.append((self._before(drawn), after(drawn)))
        rows = np.array(pairs).reshape(-1, 2)
        rows = rows[np.isfinite(rows).all(1)]  # a correlation of equal samples is none
        kept = None
        if self._original > 0:
            above = rows[rows[:, 0] > 0]
            kept = _estimate(value / self._original, above[:, 1] / above[:, 0])
        return JobReport(
            self.name, _estimate(self._original, rows[:, 0]), _estimate(value, rows[:, 1]), kept, count,
            "batches" if self._whole is None else "samples", self._notes,
        )

    def _read(
        self, data: Any, graph: Graph, model: nn.Module, source: Any, samples: int
    ) -> tuple[list[Batch], tuple[str, ...]]:
        """The batches to evaluate on, and what is to be said of them."""
        given = source if data is None else data
        once = data is None and isinstance(given, Iterator)
        if given is None or once or (isinstance(given, str) and given in MADE):
            why = "data= are read once" if once else "there are none" if given is None else f"{given!r} is made up"
            raise InvalidArgument(
                f"metric={self.name} is evaluated on inputs of the job, and {why}; pass metric_data="
            )
        found = list(_read(given, graph, model))
        if data is not None:
            return found, ()
        beyond = list(_beyond(found, samples))
        if sum(each.rows for each in beyond) >= ENOUGH:
            return beyond, ()
        return found, ("layers were fitted on some of these samples; pass others as metric_data=",)

    def _outputs(self, model: nn.Module) -> list[list[np.ndarray]]:
        """The outputs of a model for each batch."""
        copy, found = IsolatedCopy(model), []
        for place, batch in enumerate(self._batches):
            made = copy.run(batch.inputs)
            if isinstance(made, Unfit):
                raise InvalidInputs(f"metric_data: the model does not run on batch {place}: {made.reason}")
            found.append([_array(leaf) for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor)])
        return found

    @property
    def _numbers(self) -> np.ndarray:
        """The numbers of all samples, or of all batches."""
        return np.arange(len(self._batches) if self._whole is None else self._whole.rows)

    def _scored(self, outputs: Sequence[Sequence[np.ndarray]]) -> Callable[[np.ndarray], float]:
        """The metric of a model with these outputs by the numbers of the samples, or of the batches."""
        whole = self._whole
        if whole is not None:
            joined = [np.concatenate(column) for column in zip(*outputs, strict=True)]
            return lambda rows: self._called(whole.part(rows), [array[rows] for array in joined])
        pairs = zip(self._batches, outputs, strict=True)
        each = np.array([self._called(batch.feeds, [*made]) for batch, made in pairs])
        weights = np.array([batch.rows for batch in self._batches], float)
        return lambda rows: float(np.average(each[rows], weights=weights[rows]))

    def _finite(self, scored: Callable[[np.ndarray], float]) -> float:
        found = scored(self._numbers)
        if not math.isfinite(found):
            raise InvalidArgument(f"metric: {self.name} gives {found}; let it give a finite number")
        return found

    def _called(self, feeds: Any, outputs: list[np.ndarray]) -> float:
        found = call("metric", self._function, feeds, outputs)
        if isinstance(found, np.ndarray | Tensor) and math.prod(found.shape) == 1:
            found = found.item()
        if not is_number(found) and not isinstance(found, bool | np.bool_):
            raise InvalidArgument(f"metric: {self.name} gives {shown(found)}; let it give a number")
        return float(found)


def _read(data: Any, graph: Graph, model: nn.Module) -> Iterator[Batch]:
    """The batches of data, of not more than a few samples, or of as many as the model takes."""
    reader = Reader(graph, model)
    if isinstance(data, Pictures):
        data = data.of(model, reader.lone_shape)
    with closing(batches("metric_data", data)) as given:
        for index, batch in enumerate(given):
            place = f"batch {index} of metric_data"
            leaves = reader.leaves(batch, place, LARGEST)
            rows, size = reader.rows, reader.fixed or CHUNK
            whole = Batch(_feeds(batch, rows), ((), {}), rows)
            if reader.fixed and rows < size:
                raise InvalidInputs(f"{place} holds {rows} samples, and the model takes {size} at once; give as many")
            for start in range(0, rows - (size - 1 if reader.fixed else 0), size):
                part = np.arange(start, min(start + size, rows))
                inputs = reader.inputs([leaf[start : start + size] for leaf in leaves])
                yield Batch(whole.part(part), inputs, len(part))


def _beyond(found: Sequence[Batch], skipped: int) -> Iterator[Batch]:
    """The batches behind so many samples."""
    for batch in found:
        if skipped <= 0:
            yield batch
        skipped -= batch.rows


def _whole(found: Sequence[Batch], outputs: Sequence[Sequence[np.ndarray]]) -> Batch | None:
    """All batches as one, if the samples of feeds and outputs can be told apart: by their first axis."""
    leaves = [pytree.tree_flatten(batch.feeds) for batch in found]
    if any(spec != leaves[0][1] for _, spec in leaves):
        return None
    joined = []
    for column in zip(*(each for each, _ in leaves), strict=True):
        sampled = _sampled(column, found)
        if not (len({array.shape[1:] for array in column}) == 1 if sampled else _alike(column)):
            return None
        joined.append(np.concatenate(column) if sampled else column[0])
    for column in zip(*outputs, strict=True):
        if not _sampled(column, found) or len({array.shape[1:] for array in column}) > 1:
            return None
    return Batch(pytree.tree_unflatten(joined, leaves[0][1]), found[0].inputs, sum(batch.rows for batch in found))


def _sampled(column: Sequence[Any], found: Sequence[Batch]) -> bool:
    return all(
        isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == batch.rows
        for value, batch in zip(column, found, strict=True)
    )


def _alike(column: Sequence[Any]) -> bool:
    """Whether all batches hold the same beside their samples."""
    first = column[0]
    if isinstance(first, np.ndarray):
        return all(isinstance(value, np.ndarray) and np.array_equal(first, value) for value in column)
    plain = isinstance(first, str | int | float)
    return all(value is first or (plain and type(value) is type(first) and value == first) for value in column)


def _feeds(value: Any, rows: int, outermost: bool = True) -> Any:
    """A batch in arrays, and so lists of what each of so many samples has."""
    match value:
        case Tensor():
            return _array(value)
        case Mapping():
            return {str(name): _feeds(each, rows, False) for name, each in value.items()}
        case list() | tuple() if outermost or len(value) != rows:
            return type(value)(_feeds(each, rows, False) for each in value) if type(value) in (list, tuple) else value
        case list() | tuple():
            if all(isinstance(each, str | int | float) for each in value):
                return np.asarray(value)
            made = np.empty(rows, object)
            for place, each in enumerate(value):
                made[place] = each
            return made
        case _:
            return value


def _estimate(value: float, drawn: np.ndarray) -> Estimate:
    if len(drawn) < LEAST_DRAWN / 2:
        return Estimate(value)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Estimate(value, float(low), float(high))


def _array(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    return (value.float() if value.dtype is torch.bfloat16 else value).numpy()
