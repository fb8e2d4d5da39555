"""Which of several equal sizes the attributes of a model's modules mean, told by the code that reads them."""

from __future__ import annotations

import itertools
import math
from functools import cached_property
from typing import Any

from torch import nn

from surgeon.frontend.isolation import untouched
from surgeon.groups.coupling import Groups
from surgeon.groups.ties import Ties
from surgeon.surgery.attributes import Attribute, Meaning, Meanings, meant, possible_meanings
from surgeon.surgery.code import At, Code, Demand
from surgeon.surgery.sampling import drawn

#: How many readings of a module's attributes are tried, each on a few calls.
MOST_READINGS = 64
#: Groups that are cut alone to tell readings apart.
MOST_APART = 8
#: Pairs of groups that are cut together for the same.
MOST_TOGETHER = 24


class Reading:
    """The code of a model's class, which is run when something is first asked of it, and no more than once."""

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        self.model, self.groups = model, groups

    @cached_property
    def code(self) -> Code | None:
        """The code, without meanings; None where it does not run so."""
        try:
            with untouched(self.model):
                return Code(self.model, self.groups)
        except Exception:  # noqa: BLE001  (the user's code may raise anything when its numbers are of another type)
            return None

    @property
    def was_asked(self) -> bool:
        """Whether the meanings are at hand."""
        return "meanings" in vars(self)

    @cached_property
    def meanings(self) -> Meanings:
        """What attributes mean that hold one of several equal sizes; empty where that can't be told."""
        if self.code is None:
            return {}
        try:
            with untouched(self.model), self.code.understood_as({}):
                return understood(self.code).meanings
        except Exception:  # noqa: BLE001  (as above)
            return {}


def understood(code: Code) -> Code:
    """The code of a class, its attributes with the meanings that fit most of the code that reads them."""
    modules: dict[str, list[Attribute]] = {}
    for each in code.attributes:
        if each.place is None and len(possible_meanings(code.whole.printed(each.paths), each.value)) > 1:
            modules.setdefault(each.module, []).append(each)
    demands = code.demands if modules else []
    with code.apart():
        _understand(code, modules, demands)
    return code


def _understand(code: Code, modules: dict[str, list[Attribute]], demands: list[Demand]) -> None:
    known: dict[Any, tuple[int, ...]] = {}
    for attributes in modules.values():
        arbitrary = drawn(Ties(sizes=code.sizes), 0)
        near = sorted(set().union(*(code.depends(each) for each in attributes)))[:MOST_APART]
        samples = [At(code, widths) for widths in (arbitrary, *({leaf: arbitrary[leaf]} for leaf in near))]
        readings = {each: found for each in attributes if len(found := _readings(each, samples)) > 1}
        if readings:
            reading = [each for each in demands if each.attributes & readings.keys()]
            samples += [At(code, widths) for widths in _together(code, near, reading)]
            alike = tuple((each.name, each.value, len(found)) for each, found in readings.items())
            known[alike] = _choose(code, readings, reading, samples, known.get(alike, ()))


def _together(code: Code, near: list[int], demands: list[Demand]) -> list[dict[int, int]]:
    """Widths at which two groups keep the same share: where code divides one by the other, it runs at no others."""
    others = sorted({leaf for each in demands for leaf in each.leaves} - set(near))
    pairs = (pair for pair in itertools.product(near, [*near, *others]) if pair[0] != pair[1])
    found = (
        {leaf: code.sizes[leaf] // steps * (steps - 1) for leaf in pair}
        for pair in pairs if (steps := math.gcd(*(code.sizes[leaf] for leaf in pair))) > 1
    )
    return list(itertools.islice(found, MOST_TOGETHER))


def _readings(attribute: Attribute, samples: list[At]) -> list[Meaning]:
    """What an attribute may mean: printed arguments that are not the same at all of the samples."""
    sizes = [at.printed(attribute.paths) for at in samples]
    apart: dict[tuple[int, ...], Meaning] = {}
    for meaning in possible_meanings(sizes[0], attribute.value):
        apart.setdefault(tuple(meant(found, meaning) for found in sizes), meaning)
    return list(apart.values())


def _choose(
    code: Code, readings: dict[Attribute, list[Meaning]], demands: list[Demand], samples: list[At],
    known: tuple[int, ...],
) -> tuple[int, ...]:
    """Give attributes the meanings with which the most demands are met; none where that is as good.

    Those at the widths where most are met count first: at others, the code may not run whatever they mean. Returns
    which of the meanings these are, by their places; empty for none. Those that are `known` of an equal layer are
    tried before others, and taken where all demands are met.
    """
    most, best, taken = (-1, -1), code.meanings, ()
    before, all_met = code.meanings, len(samples) * len(demands)
    keys = [(each.module, each.name) for each in readings]
    choices = itertools.islice(itertools.product(*(range(len(each)) for each in readings.values())), MOST_READINGS)
    for number, choice in enumerate((*([known] if known else ()), (), *choices)):
        found = (each[place] for each, place in zip(readings.values(), choice, strict=False))
        code.meanings = {**before, **dict(zip(keys, found, strict=False))}
        counts = [len(demands) - len(code.unmet(demands, at)) for at in samples]
        early = bool(known) and number == 0 and sum(counts) < all_met
        if not early and (max(counts), sum(counts)) > most:
            most, best, taken = (max(counts), sum(counts)), code.meanings, choice
        if most[1] == all_met:
            break
    code.meanings = best
    return taken
