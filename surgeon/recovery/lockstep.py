"""The original and the smaller model run in lockstep on as many batches as there is memory for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, fx

from surgeon.calibration.data import Calibration
from surgeon.calibration.footprint import bytes_ahead
from surgeon.frontend.trace import Inputs, batch_size, count_numbers
from surgeon.groups.coupling import Groups
from surgeon.recovery.pair import Pair
from surgeon.rules import Kept
from surgeon.support.memory import working_memory
from surgeon.support.progress import counter

#: The part of the working memory that the values of all batches may take.
PART = 0.75
#: Samples to fit on that are there from the start, whatever memory they take.
FEWEST = 16
#: The batches to fit on that join for each one that is held back.
FITTED = 7


class Lockstep:
    """`steps` are the operators whose values differ in the smaller model, each with its copy.

    At each, the original's value is computed for all batches that have `joined`, and the smaller model's is what is
    computed once the next one is asked for: with the tensors of `own`, which may be written to until then. Early values
    are often the largest, and the first layers have the most positions in each sample: so batches wait until there is
    memory for all that is still ahead of them, and then run through what the others went through before.

    `fit` and `held` are the numbers of the batches that have joined, of `data.batches`.
    """

    def __init__(self, groups: Groups, kept: Kept, tensors: Mapping[str, Tensor], data: Calibration) -> None:
        self.pair = Pair(groups, kept, tensors)
        self.full = self.pair.original(*data.batches)
        self.small = self.pair.smaller(*data.batches, tensors=self.pair.own)
        self.fit: list[int] = []
        self.held: list[int] = []
        self._data = data
        self._sizes = [_samples(batch, groups.graph.inputs) for batch in data.batches]
        self._waiting = _in_turn(len(data.fit), len(data.batches))
        self._memory, self._ahead = working_memory(PART), bytes_ahead(groups.graph)
        self._order = list(_paired(self.pair))
        self.started_with = 0

    @property
    def joined(self) -> list[int]:
        """The batches that have joined, those to fit on first."""
        return [*self.fit, *self.held]

    @property
    def samples(self) -> int:
        """How many samples have joined."""
        return sum(batch_size(self._data.batches[batch]) for batch in self.joined)

    def steps(self, work: Callable[[fx.Node], float]) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Go through the graph; `work` says about how many operations the step of a node takes, for the progress."""
        costs = [work(node) for node, _ in self._order]
        total, done = sum(costs), 0.0
        with counter("recover") as progress:
            for place, (node, copies) in enumerate(self._order):
                progress(done, total)
                done += costs[place]
                self._join(place)
                self.started_with = self.started_with or self.samples
                for batch in self.joined:
                    self._before(node, copies, batch)
                if node in self.pair.changed:
                    yield node, copies[-1]
                    for batch in self.joined:
                        self.small.compute(copies[-1], batch)
                self._drop(node, copies)
            progress(done, total)

    def _join(self, place: int) -> None:
        """Let batches join as far as there is memory from this place of the order on."""
        room = self._memory / max(self._ahead[self._order[place][0]], 1)
        while self._waiting:
            batch = self._waiting[0]
            taken = sum(self._sizes[each] for each in (*self.joined, batch))
            few = not self.held or sum(self._sizes[each] for each in self.fit) < FEWEST
            if taken > room and not (place == 0 and few):
                break
            self._waiting.pop(0)
            for node, copies in self._order[:place]:
                self._before(node, copies, batch)
                if node in self.pair.changed:
                    self.small.compute(copies[-1], batch)
                self._drop(node, copies)
            (self.fit if batch < len(self._data.fit) else self.held).append(batch)

    def _before(self, node: fx.Node, copies: list[fx.Node], batch: int) -> None:
        """Compute the original's value, and where it does not differ, the smaller model's from it."""
        *numbers, copy = copies
        for each in numbers:
            self.small.compute(each, batch)
        value = self.full.compute(node, batch)
        if node not in self.pair.changed:
            self.small.set(copy, self.pair.at_kept(node, value), batch)

    def _drop(self, node: fx.Node, copies: list[fx.Node]) -> None:
        self.full.drop(node)
        for copy in copies:
            self.small.drop(copy)


def _paired(pair: Pair) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """Each node that computes a value, with its copy, after nodes that the smaller graph alone has; not the output."""
    smaller = iter(node for node in pair.slim.nodes if node.op != "get_attr")
    for node in pair.groups.graph.nodes:
        if node.op in ("get_attr", "output"):
            continue
        copies = [next(smaller)]
        while copies[-1] is not pair.copies[node]:
            copies.append(next(smaller))
        yield node, copies


def _in_turn(fit: int, count: int) -> list[int]:
    """The order in which batches join: the first that is held back, and then some to fit on before each other one."""
    order, held = list(range(fit)), list(range(fit, count))
    for place, batch in enumerate(held):
        order.insert(place * (FITTED + 1), batch)
    return order


def _samples(batch: Inputs, examples: Inputs) -> float:
    """The samples of a batch, each counted by its size relative to the example inputs'."""
    return count_numbers(batch) * batch_size(examples) / max(count_numbers(examples), 1)
