"""Graphs of a model with as many free sizes as it has, those with most of them first."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from surgeon.frontend.free_sizes import FreeSizes, Unfit, narrower, resized
from surgeon.frontend.symbolic import SizedGraph, assumed, beside_train_only, trace_sizes
from surgeon.frontend.trace import Inputs
from surgeon.groups.coupling import Groups, couple
from surgeon.ir.size_conditions import Condition, Needed, Place, agreeing, needed
from surgeon.rules import Kept
from surgeon.support.progress import stage
from surgeon.surgery.tensors import kept_positions
from surgeon.verification.check import varied
from surgeon.verification.second_size import Computes, compare, of_graph, of_module

#: Seconds that a trace with free sizes may take.
LIMIT = 30.0
#: Conditions of which it is asked whether the model obeys them, and how many times the example's elements this may run.
MOST_PROBES, MOST_GROWN = 8, 2.0
#: Sizes that meet the conditions of which it is asked whether the model runs at them.
MOST_AGREEING = 4
#: Why torch makes a number of a size.
COMPUTED = "its code computes with this size while it is traced, as a loop over it does"


@dataclass(frozen=True)
class Rung:
    """A graph to print the smaller model from.

    `groups` are those of a graph whose free axes are symbols, `kept` what is kept in them. `sizes` says which axes are
    free in it, `conditions` what else must hold of them. `proved` says whether the graph, before anything is removed,
    was seen to compute what the model does at the second size.
    """

    groups: Groups
    kept: Kept
    sizes: FreeSizes | None = None
    conditions: tuple[Condition, ...] = ()
    proved: bool = False

    def inputs(self) -> tuple[str, ...]:
        """Each input with what is free, what is fixed, and by what; and what else must hold."""
        if self.sizes is None:
            return ()
        names = {each.place: f"{each.input} axis {each.axis}" for each in self.sizes}
        return (*str(self.sizes).splitlines(), *(each.text(names) for each in self.conditions))


def ladder(
    model: nn.Module, groups: Groups, keep: Mapping[int, Iterable[int]], sizes: FreeSizes, why: list[str]
) -> Iterator[Rung]:
    """The rungs: all free axes, those of each input, the batch, none. The last is always there.

    `why` gets the reasons for which rungs are left out, also by whoever could not use one; the first goes into the
    next rungs.

    Each rung's graph was held against the model itself at other sizes. What torch assumed of the sizes is dropped where
    the graph computes what the model does although it does not hold, else it becomes a condition.
    """
    keep = {leaf: tuple(units) for leaf, units in keep.items()}
    inputs = varied(groups.graph.inputs)
    original = of_module(model)
    for free in _choices(sizes):
        batch = all(axis == 0 for _, axis in free) and groups.graph.dynamic
        with stage("trace"):
            sized = assumed(groups.graph) if batch else trace_sizes(model, groups.graph.inputs, free, LIMIT)
        if isinstance(sized, str):
            why.append(sized)
            continue
        with stage("couple"):
            same = (groups, groups.kept(keep)) if batch else _same_groups(groups, keep, sized)
        if same is None:
            why.append("with free sizes, other units belong together")
            continue
        wanted = _fixing(sizes, dict.fromkeys((e.place for e in sizes.free if e.place not in free), _not_free(why)))
        with stage("verify"):
            rung = _settled(original, same, sized, wanted, inputs)
        if isinstance(rung, Rung):
            yield rung
        else:
            why.append(rung)
    fixed = _fixing(sizes, dict.fromkeys((each.place for each in sizes.free), _not_free(why)))
    yield Rung(groups, groups.kept(keep), fixed, (), True)


def _not_free(why: list[str]) -> str:
    return f"the graph could not be made with this size free: {why[0] if why else 'it is one'}"


def _choices(sizes: FreeSizes) -> list[frozenset[Place]]:
    """Sets of free axes, the largest first. An axis of one position but the batch is none that torch makes a symbol."""
    free = {each.place: each.with_ for each in sizes.free if each.size > 1 or each.axis == 0}
    return [each for each in dict.fromkeys([frozenset(free), *narrower(free)]) if each]


def _same_groups(groups: Groups, keep: Mapping[int, Any], sized: SizedGraph) -> tuple[Groups, Kept] | None:
    """The groups of the graph with free sizes, and what is kept in them; None where they are other ones."""
    found = couple(beside_train_only(sized.graph, groups.graph))
    leaves, known = _leaves(found), _leaves(groups)
    here = {leaf: key for key, leaf in known.items()}
    if any(here.get(leaf) not in leaves for leaf in keep):
        return None
    kept = groups.kept(keep)
    other = found.kept({leaves[here[leaf]]: units for leaf, units in keep.items()})
    ours, theirs = kept_positions(groups, kept), kept_positions(found, other)
    alike = ours.keys() == theirs.keys() and all(
        cut.keys() == theirs[name].keys() and all(np.array_equal(cut[axis], theirs[name][axis]) for axis in cut)
        for name, cut in ours.items()
    )
    return (found, other) if alike else None


def _leaves(groups: Groups) -> dict[Any, int]:
    """The leaves of groups by what tells them apart: their members, and which of several with the same they are."""
    found: dict[Any, int] = {}
    times: dict[Any, int] = {}
    for group in groups:
        times[group.members] = times.get(group.members, 0) + 1
        found[group.members, times[group.members]] = group.leaf.id
    return found


def _settled(
    original: Computes, same: tuple[Groups, Kept], sized: SizedGraph, sizes: FreeSizes, inputs: Inputs
) -> Rung | str:
    """The rung with what must hold of the sizes; or why the graph is not right at any other sizes."""
    graph = of_graph(sized.graph)
    conditions = list(sized.conditions)
    at = _others(sizes)
    lost = [each.place for each in sizes.free if each.place not in sized.free]
    broken = [each for each in conditions if not each.holds(at)]
    found = compare(original, graph, resized(inputs, _only(at, sizes)))
    if found.same:
        conditions = [each for each in conditions if each not in broken]
    else:
        if not lost and not broken:
            return f"the graph computes something else at another size ({_words(found)})"
        sizes = _fixing(sizes, dict.fromkeys(lost, COMPUTED))
        sizes = _meeting(original, sizes, conditions, inputs)
        found = compare(original, graph, resized(inputs, _only(_others(sizes), sizes)))
        if not found.same:
            return f"the graph computes something else at another size ({_words(found)})"
    for third in _thirds(sizes):
        found = compare(original, graph, resized(inputs, third))
        broken = [each for each in conditions if not each.holds({**_others(sizes), **third})]
        if found.same:
            conditions = [each for each in conditions if each not in broken]
        elif lost and not found.first and any(each.place in lost for each in sizes.free):
            return _settled(original, same, sized, _fixing(sizes, dict.fromkeys(lost, COMPUTED)), inputs)
        elif not broken and not found.first:
            return f"the graph computes something else at a third size ({_words(found)})"
    return Rung(*same, sizes, tuple(_obeyed(original, graph, conditions, sizes, inputs)), True)


def _obeyed(
    original: Computes, graph: Computes, conditions: list[Condition], sizes: FreeSizes, inputs: Inputs
) -> list[Condition]:
    """The conditions that are needed: where each of them does not hold, the model and the graph are not the same."""
    asked: set[Condition] = set()
    while True:
        found = _needed(conditions, sizes)
        todo = [each for each in found if each.condition not in asked]
        if not todo or len(asked) >= MOST_PROBES:
            return [each.condition for each in found]
        first = todo[0]
        asked.add(first.condition)
        if _grown(first, sizes) < MOST_GROWN and compare(original, graph, resized(inputs, first.broken_at)).same:
            # What the condition implies may be needed all the same.
            conditions = [each for each in conditions if each is not first.condition and each != first.condition]


def beyond(rung: Rung) -> list[Mapping[Place, int] | None]:
    """For each condition of a rung, sizes at which it does not hold; None where they are too large to try."""
    if rung.sizes is None:
        return []
    found = _needed(rung.conditions, rung.sizes)
    return [each.broken_at if _grown(each, rung.sizes) < MOST_GROWN else None for each in found]


def _needed(conditions: Iterable[Condition], sizes: FreeSizes) -> list[Needed]:
    near = _near(sizes)
    return needed(conditions, _others(sizes), {each.place: (near[each.place], each.with_) for each in sizes.free})


def _grown(broken: Needed, sizes: FreeSizes) -> float:
    """How many times the example's elements the sizes make at which a condition is broken."""
    return math.prod(broken.broken_at[each.place] / each.size for each in sizes.free)


def _near(sizes: FreeSizes) -> dict[Place, int]:
    """Sizes at which a model runs, as small as they are known."""
    return {each.place: min(each.size, each.other or each.size) for each in sizes.free}


def _thirds(sizes: FreeSizes) -> Iterator[dict[Place, int]]:
    """Odd sizes next to known ones, all at once: there code branches that pads or crops."""
    near = _near(sizes)
    for step in (1, -1):
        third = {place: size + step - (size % 2) if place[1] else size for place, size in near.items()}
        if any(third[each.place] != each.size for each in sizes.free) and min(third.values()) > 1:
            yield third


def _meeting(original: Computes, sizes: FreeSizes, conditions: list[Condition], inputs: Inputs) -> FreeSizes:
    """Other sizes at which all conditions hold; what takes part in one that does not is fixed if there are none."""
    broken = [each for each in conditions if not each.holds(_others(sizes))]
    involved = {place for each in broken for place in each.places()}
    if not broken:
        return sizes
    for tried in (_tied(sizes, broken), _doubled(sizes, involved), *_agreeing(sizes, conditions)):
        at = _others(tried)
        if not all(each.holds(at) for each in conditions):
            continue
        if not isinstance(original(resized(inputs, _only(at, tried)), False), Unfit):
            return tried
    names = {each.place: f"{each.input} axis {each.axis}" for each in sizes}
    reasons = {
        place: f"its code branches on this size, so that the graph is right where {each.text(names)}"
        for each in broken for place in each.places()
    }
    return _fixing(sizes, reasons)


def _tied(sizes: FreeSizes, broken: list[Condition]) -> FreeSizes:
    """With equal sizes where that is what is asked for."""
    others = _others(sizes)
    for each in broken:
        match each.term:
            case ("==", ("size", *a), ("size", *b)):
                others[tuple(a)] = others[tuple(b)]
    return sizes.at(others)


def _doubled(sizes: FreeSizes, involved: Collection[Place]) -> FreeSizes:
    """With twice the example's sizes."""
    return sizes.at({**_others(sizes), **{each.place: 2 * each.size for each in sizes if each.place in involved}})


def _agreeing(sizes: FreeSizes, conditions: Iterable[Condition]) -> Iterator[FreeSizes]:
    """With sizes near the example's at which all conditions hold."""
    varying = {each.place: (each.size, each.with_) for each in sizes.free}
    for found in agreeing(conditions, _others(sizes), varying)[:MOST_AGREEING]:
        yield sizes.at({**_others(sizes), **found})


def _others(sizes: FreeSizes) -> dict[Place, int]:
    return {each.place: each.other if each.other is not None else each.size for each in sizes}


def _only(at: Mapping[Place, int], sizes: FreeSizes) -> dict[Place, int]:
    return {each.place: at[each.place] for each in sizes.free}


def _fixing(sizes: FreeSizes, reasons: Mapping[Place, str]) -> FreeSizes:
    for place, reason in reasons.items():
        sizes = sizes.fixing([place], reason)
    return sizes


def _words(found: Any) -> str:
    if found.deviation is not None:
        return f"it deviates by {found.deviation:.0e}"
    return str(found.second or found.first)
