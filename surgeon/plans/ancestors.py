"""The models that a smaller model comes from, as far as they still exist: whose parameter was which."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from surgeon.frontend.notes import note, noted
from surgeon.plans.plan import Plan

_ATTRIBUTE = "surgeon_ancestors"


@dataclass(frozen=True)
class Ancestor:
    """A model from which the next one was made by `plan`. Its parameters by name, which it alone keeps alive."""

    plan: Plan
    parameters: dict[str, weakref.ref[nn.Parameter]] = field(repr=False)

    def names(self) -> dict[int, list[str]]:
        """The names of the parameters that still exist, by their ids."""
        found: dict[int, list[str]] = {}
        for name, reference in self.parameters.items():
            if (parameter := reference()) is not None:
                found.setdefault(id(parameter), []).append(name)
        return found

    def __deepcopy__(self, memo: Any) -> Ancestor:
        return self

    def __reduce__(self) -> Any:
        return Ancestor, (self.plan, {})  # elsewhere there are no such parameters


def descend(slim: nn.Module, model: nn.Module, plan: Plan) -> None:
    """Note that a smaller model was made of `model`."""
    own = {name: weakref.ref(value) for name, value in model.named_parameters(remove_duplicate=False)}
    note(slim, _ATTRIBUTE, (*ancestors(model), Ancestor(plan, own)))


def ancestors(slim: nn.Module) -> Sequence[Ancestor]:
    """The models that a smaller model comes from, the first one first."""
    return noted(slim, _ATTRIBUTE) or ()
