"""Which widths have to go together, so that a model's class can hold a plan: the weakest ties that its code allows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from surgeon.cost.alignment import Alignment
from surgeon.cost.cost import Cost
from surgeon.errors import SurgeryError
from surgeon.frontend.isolation import untouched
from surgeon.groups.ties import Ties
from surgeon.surgery.code import At, Code, Demand
from surgeon.surgery.meanings import Reading
from surgeon.surgery.operate import operate
from surgeon.surgery.sampling import SAMPLES, drawn

#: With fewer widths than this to choose from, a class is hard to bring to a budget.
FINE = 8
#: Of more groups than this at one place, only those choices are tried that treat most of them alike.
MOST = 5
#: The price of holding an inner factor, against 1 for others, and what the share of the operations adds that depend on
#: a group.
INNER, DEPENDENT = 0.8, 10.0
#: At how many widths, drawn at random, demands must be met, so that no choice passes by chance.
SURE = 12
#: How often the code is looked at again, at widths with the ties so far.
ROUNDS = 3

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


def ties_of(code: Code) -> Ties:
    """Ties under which the code does what the axes say, whatever the widths."""
    found: dict[int, Demand] = {}
    ties = Ties((), frozenset(), dict(code.sizes))
    for _ in range(ROUNDS):
        more = broken(code, ties)
        if not more:
            break
        found |= {id(each): each for each in more}
        ties = tie(code, found.values())
    return ties


def tie(code: Code, among: Iterable[Demand]) -> Ties:
    """Ties under which these demands are met, whatever the widths."""
    state = _State(code)
    weights = _weights(code)
    for leaves, demands in _places(among):
        variables = state.variables(leaves)
        if not variables or _met(state, demands, variables, [], []):
            continue
        for tied, held in _choices(state, variables, weights):
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
    state: _State, variables: list[frozenset[int]], weights: Mapping[int, float]
) -> Iterator[tuple[list[frozenset[int]], list[frozenset[int]]]]:
    """What may be tied and what held, the weakest first."""
    count = len(variables)
    if count <= MOST:
        kinds: Iterable[tuple[int, ...]] = itertools.product((_FREE, _TIED, _HELD), repeat=count)
    else:
        kinds = _few_kinds(state, variables)
    found: list[tuple[float, int, list[frozenset[int]], list[frozenset[int]]]] = []
    for each in kinds:
        tied = [v for v, kind in zip(variables, each, strict=True) if kind == _TIED]
        held = [v for v, kind in zip(variables, each, strict=True) if kind == _HELD]
        if len(tied) == 1 or not (tied or held):
            continue
        found.append((_price(state, tied, held, weights), len(found), tied, held))
    for _, _, tied, held in sorted(found, key=lambda each: each[:2]):
        yield tied, held


def _few_kinds(state: _State, variables: list[frozenset[int]]) -> Iterator[tuple[int, ...]]:
    """Few choices for many variables: those of equal size tied, or held and the rest tied; all tied; all but one or two
    tied; one or two held."""
    count = len(variables)
    sizes = [state.steps(each) for each in variables]
    for size in set(sizes):
        yield tuple(_TIED if each == size else _FREE for each in sizes)
        yield tuple(_HELD if each == size else _TIED for each in sizes)
    yield (_TIED,) * count
    for out in itertools.chain(itertools.combinations(range(count), 1), itertools.combinations(range(count), 2)):
        for rest, kind in ((_TIED, _HELD), (_TIED, _FREE), (_FREE, _HELD)):
            yield tuple(kind if place in out else rest for place in range(count))


def _weights(code: Code) -> dict[int, float]:
    """What it takes from a plan to hold each leaf: more for one that many operations depend on.

    Inner factors, such as the size of a head, are held rather than outer ones, whose cut saves more time.
    """
    cost = Cost(code.groups)
    inner, macs, whole = Alignment(code.groups, cost).inner, cost.polynomial("macs"), cost.vector({})
    total = max(macs(whole), 1.0)
    return {
        leaf: (INNER if leaf in inner else 1.0) - DEPENDENT * macs.change(whole, place, 0) / total
        for leaf, place in cost.order.items()
    }


def _price(
    state: _State, tied: list[frozenset[int]], held: list[frozenset[int]], weights: Mapping[int, float]
) -> float:
    """How much a choice takes from the plan: what stays whole, what goes together, and in how few steps."""
    steps = state.steps(leaf for each in tied for leaf in each) if tied else 0
    whole = [*held, *tied] if steps == 1 else held  # what goes together in a single step stays whole
    price = sum(max(weights[leaf] for leaf in each) for each in whole) + 0.5 * max(len(tied) - 1, 0)
    return price + 2 * max(0.0, math.log2(FINE / steps)) if tied else price


def _met(
    state: _State, demands: list[Demand], variables: list[frozenset[int]], tied: list[frozenset[int]],
    held: list[frozenset[int]],
) -> bool:
    """Whether the demands are met at some widths that are drawn at random."""
    classes = [each for each in variables if each not in tied and each not in held]
    if tied:
        classes.append(frozenset(leaf for each in tied for leaf in each))
    sizes = {leaf: state.code.sizes[leaf] for each in classes for leaf in each}
    tried = Ties(tuple(tuple(sorted(each)) for each in classes), frozenset(), sizes)
    return all(state.code.met(demands, At(state.code, drawn(tried, seed))) for seed in range(SURE))


def broken(code: Code, ties: Ties) -> list[Demand]:
    """The demands of the code that are not met at arbitrary widths with these ties, but by the model as it is."""
    found: dict[int, Demand] = {}
    for seed in range(SAMPLES):
        found |= {id(each): each for each in code.unmet(code.demands, At(code, drawn(ties, seed)))}
    return code.telling(found.values())


@dataclass(frozen=True)
class Needed:
    """Ties that a class needs in order to hold a plan; `places` are the first of its operators that ask for them."""

    ties: Ties
    places: tuple[str, ...]
    reason: str


def needed(reading: Reading, keep: Mapping[int, Iterable[int]], reason: str = "") -> Needed | None:
    """The ties that a model's class needs to hold such plans as this; None where it holds it, or none would help.

    `reason` says why it can't hold it, where that is known; else it is tried out, if the code seems not to hold it.
    The model is left as it is.
    """
    kept = {leaf: tuple(units) for leaf, units in keep.items()}
    code = reading.code
    if code is None:
        return None
    widths = {leaf: len(units) for leaf, units in kept.items()}
    unmet = _unmet(reading.model, code, widths)
    if not unmet:
        return None
    if not reason:
        try:
            operate(reading.model, reading.groups, kept, "module", reading=reading)
        except SurgeryError as error:
            reason = str(error)
        else:
            return None
    with code.understood_as(reading.meanings):
        unmet = _unmet(reading.model, code, widths) or unmet
        with code.apart():
            ties = ties_of(code)
    places = tuple(dict.fromkeys(demand.words for demand in unmet))
    return Needed(ties, places, reason) if ties else None


def _unmet(model: nn.Module, code: Code, widths: Mapping[int, int]) -> list[Demand]:
    """What the code, but not the model as it is, fails to do at these widths; empty where that can't be told."""
    try:
        with untouched(model):
            return code.telling(code.unmet(code.demands, At(code, widths)))
    except Exception:  # noqa: BLE001  (the user's code may raise anything when its numbers are of another type)
        return []
