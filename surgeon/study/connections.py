"""Unstructured pruning while a model trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from surgeon.groups.coupling import Groups
from surgeon.sparsity.connection_weights import connection_weights
from surgeon.sparsity.connections import least
from surgeon.training.regularizers import Regularizer
from surgeon.training.schedules import Schedule, share_at
from surgeon.training.weight_masks import Masks


class Connections:
    """Masks a model's connections of least magnitude, in place and on a schedule; a hook of the training loop.

    With a `seed`, the connections are drawn at random instead.
    """

    def __init__(
        self, model: nn.Module, groups: Groups, target: float, schedule: Schedule, *, scope: str, seed: int | None,
        regularizer: Regularizer | None,
    ) -> None:
        self.model, self.groups, self.target, self.schedule = model, groups, target, schedule
        self.scope, self.seed, self.regularizer = scope, seed, regularizer
        self.masks = Masks(model)
        self.count, self.share = 0, 0.0
        self._prune()

    def regularize(self) -> None:
        if self.regularizer is not None:
            self.regularizer(self.groups)

    def step(self) -> None:
        self.count += 1
        self.masks.enforce()
        self._prune()

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "share": self.share, "masks": self.masks.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.share = state["count"], state["share"]
        self.masks.load_state_dict(state["masks"])

    def _prune(self) -> None:
        share = share_at(self.schedule, self.count)
        if share > self.share:
            self.share = share
            self.masks.set(self._keep(self.target * share))

    def _keep(self, share: float) -> dict[str, Tensor]:
        """The masks of the connections that stay; those masked earlier are zero, and so the least."""
        weights = {name: self.model.get_parameter(name).detach() for name in connection_weights(self.groups)}
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = {name: 1 - torch.rand(value.shape, generator=generator) for name, value in weights.items()}
            weights = {name: drawn[name].to(value) * (value != 0) for name, value in weights.items()}
        values = list(weights.values())
        gone = [least([value], share)[0] for value in values] if self.scope == "local" else least(values, share)
        return {name: ~mask for name, mask in zip(weights, gone, strict=True)}
