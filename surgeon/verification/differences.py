"""Why a model is not what a plan makes of another, told by which tensors are the other's at the kept positions."""

from __future__ import annotations

from torch import Tensor, nn

from surgeon.groups.coupling import Groups
from surgeon.ir.fingerprint import named_tensors
from surgeon.rules import Kept
from surgeon.verification.masks import gathered

_LISTED = 3


def told_by_tensors(groups: Groups, kept: Kept, slim: nn.Module) -> str:
    """What the tensors of `slim` tell, in a sentence or two.

    A tensor of equal numbers, as norms start with, is the same in any two models and tells nothing.
    """
    own = dict(named_tensors(slim))
    same, changed, missing = [], [], []
    for name, axes in groups.tensors.items():
        expected = gathered(groups.graph.tensor(name).detach(), axes, kept)
        found = own.get(name)
        if found is None or found.shape != expected.shape:
            if groups.graph.canonical.get(name, name) == name and isinstance(groups.graph.tensor(name), nn.Parameter):
                missing.append(name)
        elif not _equal(found.detach(), expected):
            changed.append(name)
        elif expected.numel() and expected.min() != expected.max():
            same.append(name)
    if missing:
        return f"It lacks tensors that the plan leaves, or has them in other shapes: {_names(missing)}"
    if not changed:
        return "Its tensors are the model's at the positions that the plan keeps: its code or its settings differ"
    if not same:
        return (
            f"None of its tensors is the model's at the positions that the plan keeps ({_names(changed)}): it was made "
            "of other weights, from another seed or checkpoint, or all of it was fitted or trained since. Verify it "
            "against the model that it was made of"
        )
    return (
        f"{len(changed)} of its {len(changed) + len(same)} tensors are not the model's at the positions that the plan "
        f"keeps ({_names(changed)}), the others are: these were changed since the cut, by compensation for it, which "
        "shrink does unless compensate=False, by recovery or training, or changed in the model. Nothing can be proved "
        "of them; the certificate in shrink's report is of the cut, and what can be verified is plan.apply(model)"
    )


def _equal(found: Tensor, expected: Tensor) -> bool:
    found = found.to(expected)
    return bool(((found == expected) | ((found != found) & (expected != expected))).all())


def _names(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
