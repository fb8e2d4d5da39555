"""Which axes of a file's inputs are free, what they are called, and which of them to give up where not all can be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from torch import Tensor, nn

from surgeon.deploy.inputs import Call, Place
from surgeon.deploy.names import new_name
from surgeon.errors import InvalidArgument
from surgeon.frontend.free_sizes import free_sizes, narrower
from surgeon.support.arguments import is_integer, refusal, shown

#: What of `dynamic` stands for the first axis of each input alone.
BATCH: Final = "batch"
Dynamic = bool | str | Mapping[str, Any] | None

_TAKES = (
    'None or True for every axis that the model leaves free, False for none, "batch" for the first axis, or names and '
    'False by input and axis, such as {"x": {2: "height", 3: "width", 0: False}}'
)


def dynamic(name: str, value: Any) -> Dynamic:
    """The argument `dynamic` of `export`."""
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    if isinstance(value, str) and value == BATCH:
        return value
    if not isinstance(value, Mapping):
        raise refusal(name, value, _TAKES)
    for given, axes in value.items():
        if not isinstance(given, str):
            raise InvalidArgument(f"{name}: {shown(given)} names no input; give {_TAKES}")
        if axes is False:
            continue
        if not isinstance(axes, Mapping):
            raise InvalidArgument(f"{name}[{given!r}] is {shown(axes)}; give axes and their names, or False")
        for axis, called in axes.items():
            fits = isinstance(called, bool) or (isinstance(called, str) and called.isidentifier())
            if not is_integer(axis) or not fits:
                raise InvalidArgument(
                    f"{name}[{given!r}][{shown(axis)}] is {shown(called)}; give an axis its name, a word such as "
                    '"height", True to have it free, or False to fix it'
                )
    return dict(value)


@dataclass(frozen=True)
class FreeAxes:
    """The axes that are to be free, by their names, and what is known of them.

    `others` are sizes that the model is known to take there, all of them at once, unlike those of the example;
    `insisted` are those that the user asked for by name; `tied` which axes can only vary together; `fixed` why the
    model fixes the others.
    """

    names: Mapping[Place, str] = field(default_factory=dict)
    others: Mapping[Place, int] = field(default_factory=dict)
    insisted: frozenset[Place] = frozenset()
    tied: Mapping[Place, tuple[Place, ...]] = field(default_factory=dict)
    fixed: Mapping[Place, str] = field(default_factory=dict)

    @property
    def batch(self) -> frozenset[Place]:
        return frozenset(place for place in self.names if place[1] == 0)

    def rows(self, count: int) -> dict[Place, int]:
        """The sizes of the first axes, and of those that vary with them, for so many rows."""
        return {each: count for place in self.batch for each in (place, *self.tied.get(place, ()))}

    def together(self, classes: Iterable[frozenset[Place]]) -> FreeAxes:
        """The same where the axes of each class are of one size; none of a class is free where not all are."""
        tied, others = dict(self.tied), dict(self.others)
        wanted = set(self.names)
        for each in classes:
            if not each <= self.names.keys():
                wanted -= each
                continue
            first = min(each)
            for place in each:
                tied[place] = tuple(sorted({*tied.get(place, ()), *each} - {place}))
                others[place] = others[first]
        return replace(self, tied=tied, others=others).only(wanted)

    def only(self, places: Iterable[Place]) -> FreeAxes:
        """The same with these axes alone, less those that can't vary without another that is left out."""
        wanted = set(places)
        while gone := {place for place in wanted if not wanted.issuperset(self.tied.get(place, ()))}:
            wanted -= gone
        return FreeAxes(
            {place: name for place, name in self.names.items() if place in wanted},
            {place: size for place, size in self.others.items() if place in wanted},
            self.insisted, self.tied, self.fixed,
        )

    def less(self) -> Iterator[FreeAxes]:
        """What to try where these can't be free together."""
        for places in narrower({place: self.tied.get(place, ()) for place in self.names}):
            yield self.only(places)

    def classes(self) -> list[frozenset[Place]]:
        """The axes that vary together."""
        found = {frozenset({place, *self.tied.get(place, ())} & self.names.keys()) for place in self.names}
        return sorted(found, key=sorted)


def find_free_axes(model: nn.Module, call: Call, wanted: Dynamic) -> FreeAxes:
    """The axes that are to be free in the file of a model.

    Raises:
        InvalidArgument: `wanted` names an input or an axis that isn't there, or an axis that the model fixes.
    """
    if wanted is False:
        return FreeAxes()
    if wanted == BATCH:
        places = [(index, 0) for index in call.batched]
        size = 3 if call.batch == 2 else 2
        tied = {place: tuple(other for other in places if other != place) for place in places}
        return FreeAxes(_named(call, places, {}), dict.fromkeys(places, size), tied=tied)
    found = free_sizes(model, call.bind(call.tensors))
    places_of = {leaf: index for index, leaf in enumerate(call.places)}
    given = _given(call, wanted) if isinstance(wanted, Mapping) else {}
    insisted = frozenset(place for place, name in given.items() if name is not False)
    asked = [(call.places[tensor], axis) for (tensor, axis), name in given.items() if name is False]
    found = found.fixing(asked, "it goes with an axis that is to be fixed")
    fixed = {(places_of[each.leaf], each.axis): each.reason for each in found if not each.free}
    for place in insisted & fixed.keys():
        raise InvalidArgument(
            f"dynamic: axis {place[1]} of {call.names[place[0]]!r} can't be free, the model fixes it: {fixed[place]}"
        )
    free = {(places_of[each.leaf], each.axis): each for each in found.free}
    tied = {place: tuple((places_of[leaf], axis) for leaf, axis in each.with_) for place, each in free.items()}
    names = {place: name for place, name in given.items() if isinstance(name, str)}
    others = {place: each.other for place, each in free.items() if each.other is not None}
    return FreeAxes(_named(call, list(free), names, tied), others, insisted, tied, fixed)


def _given(call: Call, wanted: Mapping[str, Any]) -> dict[Place, str | bool]:
    found: dict[Place, str | bool] = {}
    for name, axes in wanted.items():
        if name not in call.names:
            raise InvalidArgument(f"dynamic: the model has no input {name!r}; its inputs are {', '.join(call.names)}")
        tensor = call.names.index(name)
        rank = call.tensors[tensor].dim()
        for axis, called in dict.fromkeys(range(rank), False).items() if axes is False else axes.items():
            if not -rank <= axis < rank:
                raise InvalidArgument(f"dynamic: {name!r} has {rank} axes, so that there is no axis {axis}")
            found[tensor, axis % rank] = called
    return found


def _named(
    call: Call, places: list[Place], given: Mapping[Place, str], tied: Mapping[Place, tuple[Place, ...]] | None = None
) -> dict[Place, str]:
    """A name for each axis; those that vary together share theirs."""
    found: dict[Place, str] = dict(given)
    taken = set(given.values())
    for place in sorted(places, key=lambda place: (place[1], place[0])):
        together = (tied or {}).get(place, ()) if tied is not None else places
        shared = next((found[other] for other in together if other in found), None)
        if place in found:
            continue
        if shared is None:
            shared = new_name(_name(call.tensors[place[0]], place[1]), taken)
            taken.add(shared)
        found[place] = shared
    return {place: found[place] for place in places}


def _name(tensor: Tensor, axis: int) -> str:
    """What an axis is usually called."""
    if axis == 0:
        return BATCH
    if tensor.dim() >= 4 and tensor.is_floating_point():
        from_end = tensor.dim() - axis
        return {1: "width", 2: "height", 3: "frames"}.get(from_end if axis > 1 else 0, f"axis_{axis}")
    return "length" if axis == 1 or axis == tensor.dim() - 1 else f"axis_{axis}"
