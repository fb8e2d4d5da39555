"""Single connections pruned while a model trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from surgeon.groups.coupling import Groups
from surgeon.sparsity.connection_weights import connection_weights
from surgeon.sparsity.connections import least
from surgeon.study.training import Penalty
from surgeon.training.schedules import Schedule, share_at
from surgeon.training.weight_masks import Masks


class Connections:
    """Masks the least connections of a model, in place, as a schedule says; a pruner as the training loop sees one.

    With a `seed` those that go are drawn at random instead.
    """

    def __init__(
        self, model: nn.Module, groups: Groups, target: float, schedule: Schedule, *, scope: str, seed: int | None,
        penalty: Penalty | None,
    ) -> None:
        self.model, self.names, self.target, self.schedule = model, connection_weights(groups), target, schedule
        self.scope, self.seed, self.penalty = scope, seed, penalty
        self.masks = Masks(model)
        self.count, self.share = 0, 0.0
        self._prune()

    def regularize(self) -> None:
        """Add the penalty's gradients."""
        if self.penalty is not None:
            self.penalty.regularize()

    def step(self) -> None:
        """Mask what is due, and hold what is masked at zero."""
        self.count += 1
        self.masks.enforce()
        self._prune()

    def state_dict(self) -> dict[str, Any]:
        """The masks, and where it is."""
        return {"count": self.count, "share": self.share, "masks": self.masks.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.count, self.share = state["count"], state["share"]
        self.masks.load_state_dict(state["masks"])

    def _prune(self) -> None:
        share = share_at(self.schedule, self.count)
        if share > self.share:
            self.share = share
            self.masks.set(self._keep(self.target * share))

    def _keep(self, share: float) -> dict[str, Tensor]:
        """Which connections stay; those that are masked are the least."""
        weights = {name: self.model.get_parameter(name).detach() for name in self.names}
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = {name: 1 - torch.rand(value.shape, generator=generator) for name, value in weights.items()}
            weights = {name: drawn[name].to(value) * (value != 0) for name, value in weights.items()}
        values = list(weights.values())
        gone = [least([value], share)[0] for value in values] if self.scope == "local" else least(values, share)
        return {name: ~mask for name, mask in zip(weights, gone, strict=True)}
