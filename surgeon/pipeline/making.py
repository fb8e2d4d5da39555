"""How the model was made from which a saved one comes: written down where it is known, and made again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from surgeon.errors import InvalidArgument, WeightsError
from surgeon.frontend import model_loading
from surgeon.frontend.recipes import Recipe, make, recall
from surgeon.frontend.structure import structure
from surgeon.plans.carried import maker
from surgeon.plans.plan import Plan
from surgeon.support.arguments import refusal

#: A model that is made as a folder says takes no more bytes than this, or than so many times those of the weights.
LARGEST, TIMES = 1 << 30, 64
_NAME = re.compile(r"[A-Za-z_][\w.]{0,199}:[A-Za-z_][\w.-]{0,199}")


def factory(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise refusal(name, value, "how the original is made: package.module:factory, timm:NAME or torchvision:NAME")
    return value


def described(slim: nn.Module, plan: Plan, given: str | None) -> dict[str, Any]:
    """What is written about the making of a smaller model."""
    known = Recipe(given) if given is not None else maker(slim)
    recipe = known if known is None or isinstance(known, Recipe) else recall(known, plan.fingerprint)
    told = {} if recipe is None else {"made": {"by": recipe.by, "arguments": dict(recipe.arguments)}}
    return {**told, "structure": structure(slim), "training": slim.training}


def recipe_of(meta: Mapping[str, Any], place: object) -> Recipe | None:
    """The recipe that is written in a saved model's description.

    Raises:
        WeightsError: what is written is none.
    """
    made = meta.get("made")
    if made is None:
        return None
    by, arguments = (made.get("by"), made.get("arguments")) if isinstance(made, dict) else (None, None)
    if not isinstance(by, str) or not _NAME.fullmatch(by) or not isinstance(arguments, dict):
        raise WeightsError(f"{place}: made is {str(made)[:80]}, not a name and its arguments")
    return Recipe(by, arguments)


def fresh(recipe: Recipe | None, given: str | None, plan: Plan, stored: Iterable[torch.dtype], size: int) -> nn.Module:
    """A fresh model of the original architecture.

    Args:
        recipe: what the folder says.
        given: what the user says, by which anything is imported and called.
        stored: the types of the floating tensors.
        size: the number of bytes of the weights.

    Raises:
        InvalidArgument: it is not known how it is made, or only by what a stranger may have written.
        WeightsError: it is made otherwise here.
    """
    if given is not None:
        model, _ = model_loading.load(given)
    elif recipe is None:
        raise InvalidArgument(
            "the folder does not tell how the original was made: pass fresh_model, a model of its architecture, or "
            "factory='package.module:function', which makes one"
        )
    elif not recipe.known:
        raise InvalidArgument(
            f"the original was made by {recipe.by}, which is not called only because a folder says so: pass "
            f"factory={recipe.by!r} if you trust it, or fresh_model"
        )
    else:
        model = make(recipe, plan.fingerprint, max(LARGEST, TIMES * size))
    kinds = set(stored)
    return model.to(kinds.pop()) if len(kinds) == 1 else model


def require_same(meta: Mapping[str, Any], slim: nn.Module, recipe: Recipe) -> None:
    """Make sure that a model that was made by a library computes what the saved one does.

    Raises:
        WeightsError: a class, an attribute or the code of a graph is another.
    """
    if meta.get("structure") != structure(slim):
        raise WeightsError(
            f"what {recipe.by} makes here differs from the saved model in more than its tensors: in a class, a value "
            "on a module, a hook or the code of a graph; pass fresh_model, made as the original was"
        )
