"""What a model computes, as calls of operators in one form, however it was written.

A traced graph gives a stream of calls, and so does a recording, one level lower; two of a kind are held against each
other by `difference`. What the shapes of operands and results tell is no part of a call: the sizes of a view, or of the
parts that an axis is split into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from surgeon.ir.operators import is_a, operator_name
from surgeon.rules.segments import bounds

# Arguments that the shapes of operands and results tell.
_TOLD = {
    "expand.default": {"size"}, "repeat.default": {"repeats"}, "tile.default": {"dims"},
    "repeat_interleave.self_int": {"repeats", "output_size"},
}
# Arguments that say where to read, or in how many groups: a difference in them alone is told by their names.
_PLACES = {"start", "end", "shifts", "groups", "num_groups", "pad", "padding"}


Shape = tuple[Any, ...]


class Value(NamedTuple):
    """A tensor by where it is from: a call and the place among its results; or -1 and a name, if no call makes it."""

    call: int
    place: Any = 0


@dataclass(frozen=True)
class Call:
    """One call: the operator, its arguments by name, tensors as their Values; and shapes and types of its results.

    `written` is the operator as it was called, for messages.
    """

    operator: str
    arguments: Mapping[str, Any]
    shapes: list[Shape]
    types: list[torch.dtype | None]
    written: str


class Made(NamedTuple):
    """A call as it was made, of an operator that writes into nothing, with tensors as Values of such calls.

    `several` says whether its result is a tuple.
    """

    operator: Any
    args: list[Any]
    kwargs: Mapping[str, Any]
    several: bool


class Program(NamedTuple):
    """What was called, those calls too that only give their input: enough to compute the outputs again.

    `places` says for each call of the stream which of the calls made it is; `order` which call of the stream it is that
    was recorded at a place, for those that the outputs need.
    """

    made: list[Made]
    outputs: list[Value]
    places: list[int]
    order: Mapping[int, int]


class Stream(NamedTuple):
    """Calls in order, and the tensors that come out in the end; of a recording, what was called word by word."""

    calls: list[Call]
    outputs: list[Value]
    program: Program | None = None


def call_of(target: Any, given: Mapping[str, Any], shape: Shape, shapes: list[Shape], result: Any) -> Call:
    """A call of `target` with the arguments `given` by name, with tensors as their Values.

    `shape` is that of the argument `self`, () where there is none; `shapes` are those of the results.
    """
    types = [each.dtype if isinstance(each, Tensor) else None for each in results_of(result)]
    return Call(_one_name(target), _untold(target, given, shape), shapes, types, str(target))


def _one_name(target: Any) -> str:
    name = operator_name(target)
    if is_a(name, "view", "split"):
        return "view" if is_a(name, "view") else "split"
    return "slice" if name in ("slice", "narrow") else str(target)


def _untold(target: Any, given: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    """The arguments that shapes do not tell; places are counted from the front."""
    name = operator_name(target)
    if is_a(name, "view"):
        return {"self": given["self"]}
    if is_a(name, "split"):
        return {"self": given["self"], "dim": given["dim"] % len(shape)}
    told = _TOLD.get(str(target).removeprefix("aten."), ())
    found = {key: value for key, value in given.items() if key not in told}
    if "normalized_shape" in found:
        found["normalized_shape"] = len(given["normalized_shape"])  # how many axes, whatever their sizes
    elif name in ("slice", "narrow", "slice_scatter"):
        dim = (given["dim"] or 0) % len(shape)
        found |= {"dim": dim, "step": given.get("step") or 1}
        found.pop("length", None)
        if all(isinstance(given.get(key), int | None) for key in ("start", "end", "length")):
            found["start"], found["end"] = bounds(given, shape[dim])
    elif name == "select":
        found["dim"] = given["dim"] % len(shape)
        if isinstance(given["index"], int):
            found["index"] = given["index"] % shape[found["dim"]]
    return found


class Difference(NamedTuple):
    """Where two streams differ: the call, or -1; in words; and if one operator's first result has another shape."""

    call: int
    words: str
    by_shape: bool = False


def difference(predicted: Stream, found: Stream) -> Difference | None:
    """The first call in which two streams differ; None where they compute the same."""
    for index, (want, have) in enumerate(zip(predicted.calls, found.calls, strict=False)):
        words = _words(want, have)
        if words is not None:
            return Difference(index, words, want.operator == have.operator and want.shapes[:1] != have.shapes[:1])
    if len(predicted.calls) != len(found.calls):
        return Difference(-1, f"it has {len(found.calls)} operators, not {len(predicted.calls)}")
    return None if predicted.outputs == found.outputs else Difference(-1, "it gives other tensors")


def alike_but_for_sizes(one: Stream, other: Stream) -> bool:
    """Whether the same operators are called in the same order, and compute tensors of as many axes."""

    def told(stream: Stream) -> list[tuple[str, list[int]]]:
        return [(call.operator, [len(shape) for shape in call.shapes]) for call in stream.calls]

    return told(one) == told(other)


def _words(want: Call, have: Call) -> str | None:
    if want.operator != have.operator:
        return f": {want.written} became {have.written}"
    if want.shapes != have.shapes:
        return f" computes {have.shapes}, not {want.shapes}"
    if want.types != have.types:
        return f" computes {have.types}, not {want.types}"
    # Values of several types may be equal, as 1 and 1.0 are; their texts are not.
    unlike = [key for key in want.arguments if repr(want.arguments[key]) != repr(have.arguments.get(key))]
    if not unlike:
        return None
    if any(list(values(want.arguments[key])) != list(values(have.arguments.get(key))) for key in unlike):
        return " reads other operands"
    if set(unlike) <= _PLACES:
        ours, theirs = ({key: call.arguments[key] for key in unlike} for call in (have, want))
        return f" is called with {ours}, not {theirs}"
    return f" is called with other numbers: {_numbers(have)}, not {_numbers(want)}"


def _numbers(call: Call) -> list[Any]:
    return [leaf for leaf in leaves(call.arguments) if isinstance(leaf, bool | int | float | str)]


def results_of(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple | list) else [result]


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of each leaf of nested lists, tuples and mappings."""
    if isinstance(value, Value):
        return function(value)
    if isinstance(value, list | tuple):
        return [map_leaves(each, function) for each in value]
    if isinstance(value, Mapping):
        return {key: map_leaves(each, function) for key, each in value.items()}
    return function(value)


def leaves(arguments: Any) -> list[Any]:
    """Values, numbers and whatever else stands in nested arguments."""
    return pytree.tree_leaves(arguments, is_leaf=lambda each: isinstance(each, Value))


def values(arguments: Any) -> Iterator[Value]:
    """The tensors among nested arguments."""
    return (leaf for leaf in leaves(arguments) if isinstance(leaf, Value))
