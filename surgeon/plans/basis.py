"""Which basis a model's units are in: those that its author gave it, or directions that `surgeon.project` found."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from surgeon.errors import PlanError

#: Where a model in another basis says so.
_ATTRIBUTE = "surgeon_basis"


@dataclass(frozen=True)
class Basis:
    """A basis that a model was brought into, without a change of what it computes.

    `groups` are the names of those whose units are other directions now, `ranked` those of them whose units may be
    removed from the last to the first only. `deviation` is how far the outputs are from the original's, relative to
    their size. `name` tells the basis from others.

    >>> print(Basis("1f", ("patch",), ("patch",), 3e-7))
    1 group rotated before the cut (patch); the rotated model's outputs are the original's to 3e-07
    """

    name: str
    groups: tuple[str, ...]
    ranked: tuple[str, ...]
    deviation: float

    def __str__(self) -> str:
        count = len(self.groups)
        names = ", ".join(self.groups[:3]) + (f" and {count - 3} more" if count > 3 else "")
        return (
            f"{count} group{'s' * (count != 1)} rotated before the cut ({names}); the rotated model's outputs are the "
            f"original's to {self.deviation:.0e}"
        )


def basis_of(model: nn.Module) -> Basis | None:
    """The basis that a model was brought into; None for one that is as its author made it."""
    return getattr(model, _ATTRIBUTE, None)


def mark(model: nn.Module, basis: Basis | None) -> None:
    """Let a model say which basis it is in; copies of it say so too."""
    vars(model).pop(_ATTRIBUTE, None)
    if basis is not None:
        vars(model)[_ATTRIBUTE] = basis


def basis_entry(model: nn.Module | None) -> dict[str, str]:
    """What a plan's settings say of the basis that its model is in."""
    basis = basis_of(model) if model is not None else None
    return {} if basis is None else {"basis": basis.name}


def require(model: nn.Module, name: str | None) -> None:
    """Make sure that a model is in the basis that a plan was made in: what the plan keeps means nothing in another.

    Raises:
        PlanError: it is in another one.
    """
    if basis_entry(model).get("basis") == name:
        return
    if name is None:
        raise PlanError("the plan keeps units of the model as it was before surgeon.project rotated it: pass that one")
    raise PlanError(
        "the plan keeps directions of the model that surgeon.project rotated, not units of this one: pass the rotated "
        "model, or make a plan of this one, with project=False (--no-project) where shrink makes it"
    )
