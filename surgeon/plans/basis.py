"""The basis of a model's units: the original one, or directions that `surgeon.project` found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from surgeon.errors import PlanError

#: The entry in the settings of a plan that lists the tensors of the model that were changed by the rotation.
ROTATED = "rotated"
#: The attribute of a rotated model that holds its basis.
_ATTRIBUTE = "surgeon_basis"


@dataclass(frozen=True)
class Basis:
    """A basis into which a model was rotated, without changing what it computes.

    `groups` are the names of the groups whose units are now other directions, `ranked` those among them whose units
    may only be removed from the last to the first. `deviation` is the relative deviation of the outputs from the
    original's. `name` identifies the basis, `tensors` are those that were changed.

    >>> print(Basis("1f", ("patch",), ("patch",), 3e-7))
    1 group rotated before the cut (patch); the rotated model's outputs are the original's to 3e-07
    """

    name: str
    groups: tuple[str, ...]
    ranked: tuple[str, ...]
    deviation: float
    tensors: tuple[str, ...] = ()

    def __str__(self) -> str:
        count = len(self.groups)
        names = ", ".join(self.groups[:3]) + (f" and {count - 3} more" if count > 3 else "")
        return (
            f"{count} group{'s' * (count != 1)} rotated before the cut ({names}); the rotated model's outputs are the "
            f"original's to {self.deviation:.0e}"
        )


def basis_of(model: nn.Module) -> Basis | None:
    """The basis into which a model was rotated; None if it was not."""
    return getattr(model, _ATTRIBUTE, None)


def mark(model: nn.Module, basis: Basis | None) -> None:
    """Set or remove a model's basis, which copies of the model carry too."""
    vars(model).pop(_ATTRIBUTE, None)
    if basis is not None:
        vars(model)[_ATTRIBUTE] = basis


def basis_entry(model: nn.Module | None) -> dict[str, Any]:
    """The entries for a model's basis in the settings of its plan."""
    basis = basis_of(model) if model is not None else None
    return {} if basis is None else {"basis": basis.name, ROTATED: list(basis.tensors)}


def require(model: nn.Module, name: str | None) -> None:
    """Make sure that a model is in the basis in which a plan was made, outside of which its units mean nothing.

    Raises:
        PlanError: the model is in another basis.
    """
    if basis_entry(model).get("basis") == name:
        return
    if name is None:
        raise PlanError("the plan keeps units of the model as it was before surgeon.project rotated it: pass that one")
    raise PlanError(
        "the plan keeps directions of the model that surgeon.project rotated, not units of this one: pass the rotated "
        "model, or make a plan of this one, with project=False where shrink makes it"
    )
