"""The models that a smaller model comes from, as far as they still exist: whose parameter was which."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from surgeon.frontend.wrappers import bare
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
    """Note that a smaller model was made of `model`; for a graph also in `meta`, which copies of it keep."""
    own = {name: weakref.ref(value) for name, value in model.named_parameters(remove_duplicate=False)}
    known = (*ancestors(model), Ancestor(plan, own))
    vars(slim)[_ATTRIBUTE] = known
    if isinstance(slim, fx.GraphModule):
        slim.meta[_ATTRIBUTE] = known


def ancestors(slim: nn.Module) -> Sequence[Ancestor]:
    """The models that a smaller model comes from, the first one first."""
    slim = bare(slim)
    found: Sequence[Ancestor] = getattr(slim, _ATTRIBUTE, ()) or getattr(slim, "meta", {}).get(_ATTRIBUTE, ())
    return found
