"""Criteria based on gradients of the loss: one observation for each backward pass.

>>> import torch
>>> from torch import nn
>>> from surgeon.groups.coupling import couple
>>> from surgeon.frontend.trace import trace
>>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
>>> gradients = Gradients(couple(trace(net, torch.zeros(2, 2))))
>>> for _ in range(4):
...     net.zero_grad()
...     net(torch.randn(8, 2)).square().mean().backward()
...     _ = gradients.add()
>>> gradients.count, {name: only.shape for name in GRADIENT_CRITERIA for only in gradients.scores(name).values()}
(4, {'taylor': (3,), 'fisher': (3,), 'gradient': (3,)})
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from surgeon.errors import InvalidArgument
from surgeon.frontend.parameters import TENSORS, public
from surgeon.groups.coupling import GROUPS, Groups
from surgeon.scoring.norms import Reductions, averaged
from surgeon.support.arguments import optional, shown, text

#: The criteria that `Gradients.scores` knows.
GRADIENT_CRITERIA = ("taylor", "fisher", "gradient")

_JOINT, _SQUARE, _PLAIN = range(3)


@public(groups=GROUPS, gradients=optional(TENSORS), criterion=text, state=TENSORS)
class Gradients:
    """Statistics, over observations, of how the loss depends on each unit's weights w, with gradients g.

    - "taylor": the mean over observations of (Σ w · g)², the sum over all weights of the unit in all members: the
      change of the loss when the unit is removed, to first order, squared. Molchanov et al., "Importance Estimation
      for Neural Network Pruning", CVPR 2019, arXiv:1906.10771, equation 8.
    - "fisher": half of the sum over all weights of the unit of the mean of (w · g)²: the change of the loss to second
      order, with the diagonal of the empirical Fisher information as the curvature. Theis et al., "Faster gaze
      prediction with dense networks and Fisher pruning", 2018, arXiv:1801.05787, equation 4.
    - "gradient": the mean of Σ |g|, in each member relative to the member's mean, averaged over members.

    An observation is one call of `add`: the gradient of the mean loss of a batch. Smaller batches are better. `groups`
    are what `surgeon.inspect` returns of the model.

    Raises:
        InvalidArgument: `groups` are not such groups.

    >>> import surgeon
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> groups = surgeon.inspect(net, torch.randn(1, 4))
    >>> seen = Gradients(groups)
    >>> net(torch.randn(8, 4)).square().mean().backward()
    >>> seen.add()
    True
    >>> {leaf: worth.shape for leaf, worth in seen.scores("taylor").items()} == {groups.groups[0].leaf.id: (3,)}
    True
    >>> other = Gradients(groups)
    >>> other.load_state_dict(seen.state_dict())
    >>> other.count
    1
    >>> other.reset()
    >>> other.count
    0
    """

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self._reductions = Reductions(groups)
        self._members = {group.leaf.id: self._reductions.members(group) for group in groups}
        self.reset()

    def reset(self) -> None:
        """Forget all observations."""
        self.count = 0
        self._sums = {group.leaf.id: np.zeros((2, group.size)) for group in self.groups}
        self._plain = {
            group.leaf.id: np.zeros((len(self._members[group.leaf.id]), group.size)) for group in self.groups
        }

    @torch.no_grad()
    def add(self, gradients: Mapping[str, Tensor] | None = None) -> bool:
        """One observation: `gradients`, by default those that `backward` left in the parameters.

        `gradients` are by parameter name, each of its parameter's shape. A parameter without a gradient counts as one
        whose gradient is zero. If a gradient is not finite, as when a scaled loss overflows, nothing is added, and
        False is returned.

        Raises:
            InvalidArgument: no parameter of any group has a gradient, or one is of another shape than its parameter.
        """
        found = self._found(gradients)
        if not found:
            raise InvalidArgument(
                "no parameter that could be pruned has a gradient; observe after loss.backward() and before "
                "optimizer.zero_grad()"
            )
        if not all(bool(torch.isfinite(gradient.sum())) for _, gradient in found.values()):
            return False
        vectors: dict[tuple[str, int], np.ndarray] = {}
        for group in self.groups:
            leaf = group.leaf.id
            joint = np.zeros(group.size)
            for index, member in enumerate(self._members[leaf]):
                name = self.groups.graph.canonical[member.tensor]
                if name not in found:
                    continue
                key = name, member.axis
                if key not in vectors:
                    vectors[key] = _reduce(*found[name], member.axis)
                for units in self._reductions.positions(group, member):
                    inside = np.flatnonzero(units >= 0)
                    per_unit = [np.bincount(units[inside], row[inside], group.size) for row in vectors[key]]
                    joint += per_unit[_JOINT]
                    self._sums[leaf][1] += per_unit[_SQUARE]
                    self._plain[leaf][index] += per_unit[_PLAIN]
            self._sums[leaf][0] += joint**2
        self.count += 1
        return True

    def scores(self, criterion: str) -> dict[int, np.ndarray]:
        """The worth of every unit by the id of the group's leaf, `(units,)` in float64, none negative.

        `criterion` is "taylor", "fisher" or "gradient".

        Raises:
            InvalidArgument: there is no such criterion, or nothing was observed yet.
        """
        if criterion not in GRADIENT_CRITERIA:
            raise InvalidArgument(
                f"importance={shown(criterion)} is not based on gradients; choose one of {', '.join(GRADIENT_CRITERIA)}"
            )
        if not self.count:
            raise InvalidArgument(f"importance={criterion!r} is based on gradients: call add after loss.backward()")
        match criterion:
            case "taylor":
                return {leaf: sums[0] / self.count for leaf, sums in self._sums.items()}
            case "fisher":
                return {leaf: sums[1] / self.count / 2 for leaf, sums in self._sums.items()}
            case _:
                return {leaf: averaged(rows, rows.shape[1]) for leaf, rows in self._plain.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """All observations, as tensors for `load_state_dict`: sums of shape (2, units) and (tensors, units) a group."""
        state = {"count": torch.tensor(self.count)}
        for leaf, sums in self._sums.items():
            state[f"sums.{leaf}"] = torch.from_numpy(sums.copy())
            state[f"plain.{leaf}"] = torch.from_numpy(self._plain[leaf].copy())
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the observations of another one of the same groups.

        `state` is what its `state_dict` gave, tensors of the same shapes.

        Raises:
            InvalidArgument: it is of other groups.
        """
        own = self.state_dict()
        differing = [name for name in own.keys() | state if name not in state or name not in own
                     or state[name].shape != own[name].shape]
        if differing:
            raise InvalidArgument(f"the observations are of another model's groups: {min(differing)} differs")
        self.count = int(state["count"])
        self._sums = {leaf: state[f"sums.{leaf}"].double().cpu().numpy().copy() for leaf in self._sums}
        self._plain = {leaf: state[f"plain.{leaf}"].double().cpu().numpy().copy() for leaf in self._plain}

    def _found(self, gradients: Mapping[str, Tensor] | None) -> dict[str, tuple[Tensor, Tensor]]:
        """Each parameter of a group with its gradient, by its first name."""
        graph = self.groups.graph
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for members in self._members.values():
            for member in members:
                value, name = graph.tensor(member.tensor), graph.canonical[member.tensor]
                if gradients is None:
                    gradient = value.grad
                else:
                    gradient = gradients.get(member.tensor, gradients.get(name))
                if gradient is None:
                    continue
                if gradient.shape != value.shape:
                    raise InvalidArgument(
                        f"{name} has shape {tuple(value.shape)}, its gradient {tuple(gradient.shape)}"
                    )
                found[name] = value.detach(), gradient
        return found


def _reduce(value: Tensor, gradient: Tensor, axis: int) -> np.ndarray:
    """The sums of w · g, of its square and of |g| at each position of an axis, `(3, positions)`."""
    wide = torch.float32 if value.dtype.itemsize < 4 else value.dtype
    rows = (value.to(wide) * gradient.to(wide)).movedim(axis, 0).reshape(value.shape[axis], -1)
    plain = gradient.to(wide).movedim(axis, 0).reshape(value.shape[axis], -1)
    reduced = torch.stack([rows.sum(1), rows.square().sum(1), plain.abs().sum(1)])
    return reduced.double().cpu().numpy()
