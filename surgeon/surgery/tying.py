"""Which widths have to go together, so that a model's class can hold a plan: the weakest ties that its code allows."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from surgeon.cost.alignment import Alignment
from surgeon.cost.cost import Cost
from surgeon.errors import SurgeryError
from surgeon.frontend.isolation import untouched
from surgeon.groups.coupling import Groups
from surgeon.groups.ties import Ties
from surgeon.surgery.code import SAMPLES, Code, Demand, drawn
from surgeon.surgery.meanings import understood
from surgeon.surgery.operate import operate

#: With fewer widths than this to choose from, a class is hard to bring to a budget.
FINE = 8
#: Of more groups than this at one place, only those choices are tried that treat most of them alike.
MOST = 5

_FREE, _TIED, _HELD = range(3)


@dataclass
class _State:
    """The ties so far."""

    code: Code
    classes: list[set[int]] = field(default_factory=list)
    held: set[int] = field(default_factory=set)

    def variables(self, leaves: Iterable[int]) -> list[frozenset[int]]:
        """The classes that some leaves are in, less what is held."""
        found = {frozenset(self._of(leaf)) for leaf in leaves if leaf not in self.held}
        return sorted(found, key=min)

    def _of(self, leaf: int) -> set[int]:
        return next((each for each in self.classes if leaf in each), {leaf})

    def steps(self, leaves: Iterable[int]) -> int:
        return math.gcd(*(self.code.sizes[leaf] for leaf in leaves))

    def merge(self, tied: list[frozenset[int]], held: list[frozenset[int]]) -> None:
        """Tie some variables to each other, and hold others."""
        gone = {leaf for each in (*tied, *held) for leaf in each}
        self.classes = [each for each in self.classes if not each & gone]
        if len(tied) > 1:
            self.classes.append({leaf for each in tied for leaf in each})
        self.held |= {leaf for each in held for leaf in each}


def tie(code: Code, among: Iterable[Demand], known: Ties | None = None) -> Ties:
    """Ties under which all demands are met, whatever the widths; `known` ones stay."""
    state = _State(code)
    if known is not None:
        state.classes, state.held = [set(each) for each in known.classes], set(known.held)
    cost = Cost(code.groups)
    inner = Alignment(code.groups, cost).inner
    for leaves, demands in _places(among):
        variables = state.variables(leaves)
        if not variables or _met(state, demands, variables, [], []):
            continue
        for tied, held in _choices(state, variables, inner):
            if _met(state, demands, variables, tied, held):
                break
        else:
            tied, held = [], variables
        state.merge(tied, held)
    classes = tuple(tuple(sorted(each)) for each in sorted(state.classes, key=min))
    return Ties(classes, frozenset(state.held), dict(code.sizes))


def _places(among: Iterable[Demand]) -> list[tuple[frozenset[int], list[Demand]]]:
    """Demands on the same groups together, and with them those on some of these groups; those with most come first."""
    by_leaves: dict[frozenset[int], list[Demand]] = {}
    for demand in among:
        by_leaves.setdefault(demand.leaves, []).append(demand)
    largest = [one for one in by_leaves if not any(one < other for other in by_leaves)]
    found = []
    for leaves in largest:
        inside = [demand for other, demands in by_leaves.items() if other <= leaves for demand in demands]
        found.append((leaves, inside))
    return sorted(found, key=lambda place: (-len(place[1]) / max(len(place[0]), 1), min(place[0])))


def _choices(
    state: _State, variables: list[frozenset[int]], inner: set[int]
) -> Iterator[tuple[list[frozenset[int]], list[frozenset[int]]]]:
    """What may be tied and what held, the weakest first."""
    count = len(variables)
    if count <= MOST:
        kinds: Iterable[tuple[int, ...]] = itertools.product((_FREE, _TIED, _HELD), repeat=count)
    else:
        kinds = _few_kinds(state, variables)
    found = []
    for each in kinds:
        tied = [v for v, kind in zip(variables, each, strict=True) if kind == _TIED]
        held = [v for v, kind in zip(variables, each, strict=True) if kind == _HELD]
        if len(tied) == 1 or not (tied or held):
            continue
        found.append((_price(state, tied, held, inner), len(found), tied, held))
    for _, _, tied, held in sorted(found, key=lambda each: each[:2]):
        yield tied, held


def _few_kinds(state: _State, variables: list[frozenset[int]]) -> Iterator[tuple[int, ...]]:
    """Few choices for many variables: those of equal size tied; all tied; all but one or two tied; one or two held."""
    count = len(variables)
    sizes = [state.steps(each) for each in variables]
    for size in set(sizes):
        yield tuple(_TIED if each == size else _FREE for each in sizes)
    yield (_TIED,) * count
    for out in itertools.chain(itertools.combinations(range(count), 1), itertools.combinations(range(count), 2)):
        for rest, kind in ((_TIED, _HELD), (_TIED, _FREE), (_FREE, _HELD)):
            yield tuple(kind if place in out else rest for place in range(count))


def _price(state: _State, tied: list[frozenset[int]], held: list[frozenset[int]], inner: set[int]) -> float:
    """How much a choice takes from the plan: what stays whole, what goes together, and in how few steps."""
    price = sum(0.8 if each <= inner else 1.0 for each in held) + 0.5 * max(len(tied) - 1, 0)
    if tied:
        steps = state.steps(leaf for each in tied for leaf in each)
        price += 2 * max(0.0, math.log2(FINE / steps))
    return price


def _met(
    state: _State, demands: list[Demand], variables: list[frozenset[int]], tied: list[frozenset[int]],
    held: list[frozenset[int]],
) -> bool:
    """Whether the demands are met at some widths that are drawn at random."""
    rng = random.Random(len(variables))
    classes = [each for each in variables if each not in tied and each not in held]
    if tied:
        classes.append(frozenset(leaf for each in tied for leaf in each))
    for sample in range(SAMPLES):
        widths: dict[int, int] = {}
        for leaves in classes:
            steps = state.steps(leaves)
            share = steps if sample and rng.random() < 0.5 else drawn(rng, steps)
            widths |= {leaf: state.code.sizes[leaf] // steps * share for leaf in leaves}
        if not all(state.code.holds(demand, widths) for demand in demands):
            return False
    return True


def broken(code: Code) -> list[Demand]:
    """The demands of the code that are not met at arbitrary widths, but by the model as it is."""
    found = {}
    demands = list(code.demands())
    for seed in range(SAMPLES):
        widths = code.drawn(seed)
        found |= {id(demand): demand for demand in demands if not code.holds(demand, widths)}
    return [demand for demand in found.values() if code.holds(demand, {})]


@dataclass(frozen=True)
class Needed:
    """Ties that a class needs in order to hold a plan; `places` are the first of its operators that ask for them."""

    ties: Ties
    places: tuple[str, ...]
    reason: str


def needed(model: nn.Module, groups: Groups, keep: Mapping[int, Iterable[int]]) -> Needed | None:
    """The ties that the model's class needs to hold such plans as this; None where it holds it, or none would help.

    `model` is left as it is. Nothing of it is built, unless its code seems not to hold the plan.
    """
    kept = {leaf: tuple(units) for leaf, units in keep.items()}
    if not kept:
        return None
    try:
        with untouched(model):
            code = understood(model, groups)
            widths = {leaf: len(units) for leaf, units in kept.items()}
            unmet = [demand for demand in code.demands() if not code.holds(demand, widths)]
            if not any(code.holds(demand, {}) for demand in unmet):
                return None
    except Exception:  # noqa: BLE001  (the user's code may raise anything when its numbers are of another type)
        return None
    try:
        operate(model, groups, kept, "module")
    except SurgeryError as error:
        reason = str(error)
    else:
        return None
    found = broken(code)
    ties = tie(code, found) if found else Ties()
    places = tuple(dict.fromkeys(demand.words for demand in unmet))
    return Needed(ties, places, reason) if ties else None
