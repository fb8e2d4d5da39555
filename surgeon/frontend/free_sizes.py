"""Which sizes of its inputs a model leaves free, found by running it at others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.errors import first_line
from surgeon.frontend.copies import duplicate
from surgeon.frontend.input_spec import by_argument
from surgeon.frontend.isolation import quietly, undisturbed, untouched, without_fast_attention
from surgeon.frontend.stand_ins import as_traced
from surgeon.frontend.trace import Inputs
from surgeon.ir.size_conditions import Place

#: Runs that are made in any case, and at most; and seconds of this thread after which no more is begun.
LEAST_RUNS, MOST_RUNS = 8, 40
MOST_SECONDS = 5.0
#: How many other sizes of an axis are tried before it counts as fixed.
ROUNDS = 4


@dataclass(frozen=True)
class Size:
    """One axis of one input.

    `input` is the argument of forward, with the way to a tensor in it; `leaf` counts the leaves of the inputs, tensors
    or not. `other` is another size that the model was seen to take, all free axes having theirs at once; None where
    the axis is fixed, for the `reason` given: the model's own error at another size. `with_` are the axes that had to
    change together with it.
    """

    input: str
    leaf: int
    axis: int
    size: int
    other: int | None = None
    reason: str = ""
    with_: tuple[Place, ...] = ()

    @property
    def free(self) -> bool:
        return self.other is not None

    @property
    def place(self) -> Place:
        return self.leaf, self.axis


@dataclass(frozen=True)
class FreeSizes:
    """Which axes of the inputs may have other sizes, axis by axis.

    >>> from surgeon.frontend.trace import normalize_inputs
    >>> print(free_sizes(nn.Linear(4, 2), normalize_inputs(torch.zeros(2, 4))))
    input (*, 4): axis 0 free, axis 1 fixed (mat1 and mat2 shapes cannot be multiplied (2x6 and 4x2))
    """

    axes: tuple[Size, ...]
    #: The shapes of what the model computes at the other sizes of all free axes, as far as they are tensors.
    outputs: tuple[tuple[int, ...], ...] | None = field(default=None, compare=False, repr=False)

    def __iter__(self) -> Iterator[Size]:
        return iter(self.axes)

    def __str__(self) -> str:
        return "\n".join(map(self._line, dict.fromkeys(each.leaf for each in self.axes)))

    def _line(self, leaf: int) -> str:
        own = [each for each in self.axes if each.leaf == leaf]
        free = [str(each.axis) for each in own if each.free]
        told = [f"{'axis' if len(free) == 1 else 'axes'} {', '.join(free)} free"] if free else []
        told += [f"axis {each.axis} fixed ({each.reason})" for each in own if not each.free]
        shape = ", ".join("*" if each.free else str(each.size) for each in own)
        return f"{own[0].input} ({shape}{',' if len(own) == 1 else ''}): {', '.join(told)}"

    @property
    def free(self) -> tuple[Size, ...]:
        return tuple(each for each in self.axes if each.free)

    def second(self, inputs: Inputs) -> Inputs | None:
        """The inputs at the other sizes of all free axes; None where none is free."""
        others = {each.place: each.other for each in self.axes if each.other is not None}
        return resized(inputs, others) if others else None

    def at(self, others: Mapping[Place, int]) -> FreeSizes:
        """The same with other second sizes of free axes."""
        return FreeSizes(tuple(replace(each, other=others[each.place]) if each.free else each for each in self.axes))

    def fixing(self, places: Iterable[Place], reason: str) -> FreeSizes:
        """The same with some axes, and those that go with them, fixed for a reason."""
        gone = set(places)
        gone |= {place for each in self.axes if each.place in gone for place in each.with_}
        return FreeSizes(tuple(
            replace(each, other=None, reason=reason, with_=()) if each.free and each.place in gone else each
            for each in self.axes
        ))


def narrower(free: Mapping[Place, Iterable[Place]]) -> Iterator[frozenset[Place]]:
    """Fewer axes to have free where not all can be: the batch and one input's in turn, the batch, none.

    `free` gives for each axis those that can only vary with it, which are taken along.

    >>> [sorted(each) for each in narrower({(0, 0): (), (0, 1): (), (1, 1): ()})]
    [[(0, 0), (0, 1)], [(0, 0), (1, 1)], [(0, 0)], []]
    """
    batch = frozenset(place for place in free if place[1] == 0)
    beside = dict.fromkeys(leaf for leaf, axis in free if axis)
    wanted = []
    for leaf in beside if len(beside) > 1 else ():
        own = {place for place in free if place[0] == leaf}
        wanted.append(batch | own | {place for each in own for place in free[each] if place in free})
    yield from dict.fromkeys([*wanted, batch, frozenset()])


def resized(inputs: Inputs, sizes: Mapping[Place, int]) -> Inputs:
    """The inputs with other sizes; what is added along an axis are positions that stand there already, as drawn.

    So each value is one that the example has: a token's number stays in its range, a mask's are 0 and 1.

    >>> resized(((torch.tensor([[5, 6]]),), {}), {(0, 1): 1, (0, 0): 2})
    ((tensor([[5],
            [5]]),), {})
    """
    leaves, spec = pytree.tree_flatten(inputs)
    generator = torch.Generator().manual_seed(0)
    for (leaf, axis), size in sorted(sizes.items()):
        value = leaves[leaf]
        have = value.shape[axis]
        drawn = torch.randint(0, have, (max(size - have, 0),), generator=generator)
        positions = torch.cat([torch.arange(min(have, size)), drawn])
        leaves[leaf] = value.index_select(axis, positions.to(value.device))
    found: Inputs = pytree.tree_unflatten(leaves, spec)
    return found


def free_sizes(model: nn.Module, inputs: Inputs) -> FreeSizes:
    """Which axes of the inputs `(args, kwargs)` may have other sizes, by running a copy of `model` in eval mode.

    Sizes that are equal in several inputs at the same axis vary together, and where that fails all equal sizes do.
    Where the model names the axes of its inputs, by argument in `axis_names`, those of one name do, and a number there
    is no size like others. An axis counts as fixed when the model fails at several other sizes; those of images are
    varied by multiples of 32 too. The model, and random numbers, are left as they are.

    >>> from surgeon.frontend.trace import normalize_inputs
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    >>> [(each.size, each.free) for each in free_sizes(net, normalize_inputs(torch.zeros(1, 3, 16, 16)))]
    [(1, True), (3, False), (16, True), (16, True)]
    """
    axes = [
        Size(name, leaf, axis, size, reason="" if size else "it is empty")
        for name, leaf, value in _named(model, inputs)
        for axis, size in enumerate(value.shape)
    ]
    declared = getattr(model, "axis_names", None)
    names: dict[Place, int | str] = {
        each.place: told for each in axes if isinstance(declared, Mapping)
        if isinstance(told := _declared(declared, each), int | str)
    }
    search = _Search(IsolatedCopy(model), inputs, [each for each in axes if each.size], names)
    found = {each.place: each for each in search.found()}
    others = {place: each.other for place, each in found.items() if each.other is not None}
    return FreeSizes(tuple(found.get(each.place, each) for each in axes), search.outputs.get(frozenset(others.items())))


def _declared(names: Mapping[str, Any], axis: Size) -> Any:
    """What the model calls an axis, or the size that it says it has; None where it tells nothing."""
    told = names.get(axis.input)
    return told[axis.axis] if isinstance(told, tuple) and axis.axis < len(told) else None


def _named(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, int, Tensor]]:
    """The tensors of the inputs, each with its name and its place among the leaves."""
    leaf = 0
    for name, values in by_argument(model, inputs):
        for index, value in enumerate(values):
            if isinstance(value, Tensor):
                yield (name if len(values) == 1 else f"{name}[{index}]"), leaf, value
            leaf += 1


class IsolatedCopy:
    """A copy of a model in eval mode, which `change` may change, run on inputs of any sizes.

    `instead` holds what the copy has instead of tensors, by their ids.
    """

    def __init__(
        self, model: nn.Module, change: Callable[[nn.Module], object] = lambda copy: None,
        instead: Mapping[int, Tensor] | None = None,
    ) -> None:
        self._model = model
        with quietly():  # torch copies its own tree specs in a deprecated way
            self._copy = duplicate(model, instead).eval()
        change(self._copy)
        self.runs, self.seconds = 0, 0.0

    def run(self, inputs: Inputs) -> Any:
        """What the model computes; or the first line of its error, as an `Unfit`."""
        args, kwargs = pytree.tree_map_only(Tensor, lambda value: value.detach().clone(), inputs)
        start = time.thread_time()
        try:
            with (
                undisturbed(), untouched(self._model), quietly(), as_traced(self._copy),
                without_fast_attention(), torch.no_grad(),
            ):
                return self._copy(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  (the user's forward may raise anything)
            return Unfit(first_line(error))
        finally:
            self.runs += 1
            self.seconds += time.thread_time() - start


@dataclass(frozen=True)
class Unfit:
    """Why a model does not run on inputs."""

    reason: str


class _Search:
    """Runs a model at other sizes, and remembers at which it ran."""

    def __init__(
        self, original: IsolatedCopy, inputs: Inputs, axes: Sequence[Size], names: Mapping[Place, int | str]
    ) -> None:
        self._names = names
        self._original, self._inputs, self._axes = original, inputs, axes
        self._leaves = pytree.tree_leaves(inputs)
        self._sizes = {each.place: each.size for each in axes}
        #: The shapes of what the model computed, by the sizes that it ran at.
        self.outputs: dict[frozenset[tuple[Place, int]], tuple[tuple[int, ...], ...]] = {}

    def found(self) -> list[Size]:
        classes = self._alike()
        others, reasons = self._together(classes)
        if others is None:
            others, reasons = self._one_by_one(classes)
        tied = {place: tuple(p for p in places if p != place) for places in self._tied(classes) for place in places}
        return [
            replace(each, other=others[each.place], with_=tied[each.place])
            if each.place in others
            else replace(each, reason=reasons[each.place])
            for each in self._axes
        ]

    def _alike(self) -> list[list[Place]]:
        """The axes that vary together: of one name, or else of the same size at the same place in their inputs."""
        classes: dict[tuple[Any, ...], list[Place]] = {}
        for each in self._axes:
            name = self._names.get(each.place)
            key = (each.axis, each.size) if name is None else (name,) if isinstance(name, str) else each.place
            classes.setdefault(key, []).append(each.place)
        self._merged: list[list[Place]] = []
        return list(classes.values())

    def _tied(self, classes: list[list[Place]]) -> list[list[Place]]:
        merged = {place for places in self._merged for place in places}
        return [*self._merged, *([p for p in places if p not in merged] for places in classes)]

    def _together(self, classes: list[list[Place]]) -> tuple[dict[Place, int] | None, dict[Place, str]]:
        """All axes at once; then all but those that are likely to count channels, which must fail by themselves."""
        if self._runs(_sizes_of(classes, self._other, 0)) is None:
            return _sizes_of(classes, self._other, 0), {}
        likely = [places for places in classes if any(self._may_count_channels(place) for place in places)]
        rest = [places for places in classes if places not in likely]
        reasons: dict[Place, str] = {}
        for places in likely if rest else ():
            sizes, reason = self._alone(places, {})
            if sizes is not None:
                return None, {}
            reasons |= dict.fromkeys(places, reason)
        chosen = _sizes_of(rest, self._other, 0)
        return (chosen, reasons) if reasons and self._runs(chosen) is None else (None, {})

    def _one_by_one(self, classes: list[list[Place]]) -> tuple[dict[Place, int], dict[Place, str]]:
        """The axes in turn, from the batch on, each beside those that were found to be free before."""
        others: dict[Place, int] = {}
        reasons: dict[Place, str] = {}
        for places in sorted(classes, key=lambda places: places[0][1]):
            sizes, reason = self._alone(places, others)
            if sizes is None:
                reasons |= dict.fromkeys(places, reason)
            else:
                others |= sizes
        for places in self._equal(reasons):
            rest = {place: size for place, size in others.items() if place not in places}
            sizes, _ = self._alone(places, rest, same=True)
            if sizes is not None:
                self._merged.append(places)
                others = rest | sizes
                for place in places:
                    reasons.pop(place, None)
        return others, reasons

    def _equal(self, fixed: Mapping[Place, str]) -> list[list[Place]]:
        """All axes of one size, where several are of that size and one of them is fixed so far."""
        found: dict[int, list[Place]] = {}
        for each in self._axes:
            if not isinstance(self._names.get(each.place), int):
                found.setdefault(each.size, []).append(each.place)
        return [places for places in found.values() if len(places) > 1 and any(place in fixed for place in places)]

    def _alone(
        self, places: list[Place], others: Mapping[Place, int], same: bool = False
    ) -> tuple[dict[Place, int] | None, str]:
        """Sizes of these axes at which the model runs, beside the others; or None, and why not."""
        reason = ""
        tried = {self._sizes[place] for place in places}  # as it is, it runs
        for number in range(ROUNDS):
            size = self._other(places[0], number)
            if size in tried:
                continue
            tried.add(size)
            sizes = dict.fromkeys(places, size)
            failed = self._runs({**others, **sizes})
            if failed is None:
                return sizes, ""
            reason = reason or failed
        return None, reason

    def _runs(self, sizes: Mapping[Place, int]) -> str | None:
        """None where the model runs at these sizes, else why not."""
        spent = self._original.runs >= LEAST_RUNS and self._original.seconds > MOST_SECONDS
        if spent or self._original.runs >= MOST_RUNS:
            return f"not tried: {self._original.runs} runs of the model took {self._original.seconds:.0f} s already"
        found = self._original.run(resized(self._inputs, sizes))
        if isinstance(found, Unfit):
            return found.reason
        tensors = (leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor))
        self.outputs[frozenset(sizes.items())] = tuple(tuple(each.shape) for each in tensors)
        return None

    def _may_count_channels(self, place: Place) -> bool:
        value = self._leaves[place[0]]
        if not value.is_floating_point() or place[1] == 0:
            return False
        return place[1] == (1 if value.dim() > 3 else value.dim() - 1)

    def _other(self, place: Place, number: int) -> int:
        """Another size to try, the `number`th."""
        size, (leaf, axis) = self._sizes[place], place
        if axis == 0:
            return [3 if size == 2 else 2, size + 3, 2 * size, max(size // 2, 1)][number]
        value = self._leaves[leaf]
        nth = axis - 2  # of the axes of an image or a clip
        if not value.is_floating_point() or value.dim() < 3 or nth < 0:
            return _of_a_length(size)[number]
        step = 64 if nth % 2 == 0 else 32
        if size >= 128:  # a smaller image is run sooner
            near = max(size // 64 * 32, 64) + (0 if nth % 2 == 0 else 32)
            return [near, size + step, 2 * size, size // 2][number]
        if size < 32:
            return [(3 if nth % 2 == 0 else 2) * size, size + step, size + 1, size + 8][number]
        return [size + step, 2 * size, size + 1, size // 2][number]


def _of_a_length(size: int) -> list[int]:
    """Other lengths of a sequence: a shorter one first, as tables of positions end somewhere."""
    if size >= 64:
        return [size * 3 // 4, size + size // 4, 2 * size, size // 2]
    return [size - 2 if size > 5 else size + 2, size + 3, 2 * size, max(size // 2, 1)]


def _sizes_of(classes: Iterable[list[Place]], other: Any, number: int) -> dict[Place, int]:
    return {place: other(places[0], number) for places in classes for place in places}
