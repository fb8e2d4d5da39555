"""Connections masked while a model trains, f(x; M ⊙ W), in a way that can be undone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from surgeon.errors import InvalidArgument, WeightsError
from surgeon.frontend.isolation import undisturbed
from surgeon.frontend.parameters import TENSORS, module_in_place, public
from surgeon.groups.analyze import analyze
from surgeon.sparsity.connection_weights import connection_weights
from surgeon.support.arguments import mapping, text

_KEEP, _BEFORE = ".keep", ".before"


@dataclass
class Held:
    """`keep` says which entries of a tensor stay; `before` has the values that the others had when they were masked."""

    keep: Tensor
    before: Tensor

    @torch.no_grad()
    def restore(self, tensor: Tensor) -> None:
        """Set the entries that are not kept back to their values from before."""
        tensor.copy_(torch.where(self.keep.to(tensor.device), tensor, self.before.to(tensor)))


@dataclass
class _Mask(Held):
    parameter: nn.Parameter | None = field(default=None, repr=False)
    hook: RemovableHandle | None = field(default=None, repr=False)

    def zero(self, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(~self.keep.to(gradient.device), 0)

    def unhook(self) -> None:
        if self.hook is not None:
            self.hook.remove()
        self.parameter = self.hook = None


@public(model=module_in_place, keep=mapping("boolean tensors by the names of parameters", text), state=TENSORS)
class Masks:
    """Masks that hold entries of a model's parameters at zero, and remember their values.

    The model is changed in place: masked entries of its parameters are zero, and so are their gradients, so that
    neither an optimizer's moments nor a gradient norm sees them. Call `enforce` after each `optimizer.step()`. The
    model keeps its class, its parameters and the keys of its `state_dict`; a copy of it has the zeros, but is not held
    to them. A tied parameter is masked once, under any of its names.

    Args:
        model: changed in place.

    Raises:
        InvalidArgument: `model` is not a module.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> before = model.weight.detach().clone()
    >>> masks = Masks(model)
    >>> masks.set({"weight": torch.tensor([[True, False]])})
    >>> model.weight[0, 1].item()
    0.0
    >>> model.weight.data.fill_(1.0).tolist()                  # as weight decay or momentum may do
    [[1.0, 1.0]]
    >>> masks.enforce()
    >>> model.weight.tolist()
    [[1.0, 0.0]]
    >>> _ = model.weight.data[0, 0].copy_(before[0, 0])
    >>> others = Masks(model)
    >>> others.load_state_dict(masks.state_dict())
    >>> others.keep["weight"].tolist()
    [[True, False]]
    >>> masks.release()
    >>> torch.equal(model.weight, before)
    True
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._masks: dict[str, _Mask] = {}

    @classmethod
    @undisturbed()
    def of_zeros(cls, model: nn.Module, example_inputs: Any = None) -> Masks:
        """Masks of all zero connections of `model`, so that what `surgeon.prune_connections` zeroed stays zero.

        Connections are the entries of weights that inputs are multiplied with and summed over; other parameters, such
        as biases initialized to zero, keep training. `example_inputs` are inferred where that is safe.

        Raises:
            InvalidArgument, InvalidInputs, InvalidModel: bad input.
            TraceError: `torch.export` can't trace the model.

        >>> import surgeon
        >>> model = surgeon.prune_connections(nn.Linear(4, 2), 0.5)
        >>> masks = Masks.of_zeros(model)
        >>> masks.keep["weight"].sum().item()
        4
        """
        masks = cls(model)
        weights = connection_weights(analyze(model, example_inputs))
        masks.set({name: weight.detach() != 0 for name, weight in weights.items()})
        return masks

    @property
    def keep(self) -> Mapping[str, Tensor]:
        """The masks, by the first name of each parameter and of its shape: True where an entry stays."""
        return MappingProxyType({name: mask.keep for name, mask in self._masks.items()})

    def set(self, keep: Mapping[str, Tensor]) -> None:
        """Mask the entries that are False; masks of parameters not named here stay as they are.

        Entries that are unmasked get the values that they had when they were masked; a mask that is True everywhere
        removes the mask.

        Args:
            keep: boolean tensors of the parameters' shapes, by parameter name.

        Raises:
            InvalidArgument: a name is not a parameter's, a mask is not boolean or of another shape, or the names of
                one tied parameter have different masks. Nothing was changed.
        """
        parameters, wanted = self._parameters(), self._checked(keep)
        for name, mask in wanted.items():
            value = parameters[name].detach()
            known = self._masks.pop(name, None)
            if known is not None:
                known.unhook()
                known.restore(value)
            if not mask.all():
                mask = mask.to(value.device, copy=True)
                self._masks[name] = _Mask(mask, value.masked_fill(mask, 0))
        self.enforce()

    def enforce(self) -> None:
        """Set masked entries to zero again, undoing what momentum or weight decay did to them."""
        if not self._masks:
            return
        parameters = self._parameters()
        for name, mask in self._masks.items():
            parameter = parameters[name]
            if mask.keep.device != parameter.device:
                mask.keep = mask.keep.to(parameter.device)
            if mask.parameter is not parameter:  # new, or replaced as by load_state_dict(assign=True)
                mask.unhook()
                mask.parameter = parameter
                mask.hook = parameter.register_hook(mask.zero) if parameter.requires_grad else None
            elif mask.hook is None and parameter.requires_grad:  # it was frozen when it was masked
                mask.hook = parameter.register_hook(mask.zero)
            with torch.no_grad():
                parameter.masked_fill_(~mask.keep, 0)
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(~mask.keep, 0)

    def release(self) -> None:
        """Restore every masked entry to its value from before it was masked, and remove all masks."""
        parameters = self._parameters()
        for name, mask in self._masks.items():
            mask.unhook()
            mask.restore(parameters[name])
        self._masks.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """The masks and the remembered values of masked entries, as tensors of the parameters' shapes by name."""
        masks = self._masks.items()
        return {
            **{f"{name}{_KEEP}": mask.keep for name, mask in masks},
            **{f"{name}{_BEFORE}": mask.before for name, mask in masks},
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace the masks by those of `state`, what `state_dict` gave: tensors of the parameters' shapes.

        Entries that were masked only until now keep their present values. The model's own `load_state_dict` may be
        called before or after.

        Raises:
            InvalidArgument: it is not a mapping from names to tensors.
            WeightsError: the state is not of such a model. Nothing was changed.
        """
        keep = {name.removesuffix(_KEEP): value for name, value in state.items() if name.endswith(_KEEP)}
        before = {name.removesuffix(_BEFORE): value for name, value in state.items() if name.endswith(_BEFORE)}
        others = [name for name in state if not name.endswith((_KEEP, _BEFORE))]
        if others or keep.keys() != before.keys():
            odd = next(iter([*others, *sorted(keep.keys() ^ before.keys())]))
            raise WeightsError(f"{odd} does not belong to the state of masks; pass what Masks.state_dict gave")
        try:
            wanted = self._checked(keep)
        except InvalidArgument as error:
            raise WeightsError(f"the state is of another model: {error}") from error
        for name in wanted:
            if before[name].shape != wanted[name].shape:
                raise WeightsError(f"{name}{_BEFORE} has shape {tuple(before[name].shape)}, its mask another one")
        for mask in self._masks.values():
            mask.unhook()
        self._masks = {name: _Mask(mask.clone(), before[name].detach().clone()) for name, mask in wanted.items()}
        self.enforce()

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._model.named_parameters())

    def _checked(self, keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The masks by the first names of their parameters."""
        first = {id(parameter): name for name, parameter in self._model.named_parameters()}
        named = dict(self._model.named_parameters(remove_duplicate=False))
        found: dict[str, Tensor] = {}
        for name, mask in keep.items():
            if name not in named:
                raise InvalidArgument(f"keep: {name!r} is not a parameter of the model; see named_parameters()")
            shape = tuple(named[name].shape)
            boolean = getattr(mask, "dtype", None) == torch.bool
            if not boolean or tuple(mask.shape) != shape:
                given = f"{mask.dtype} of {tuple(mask.shape)}" if hasattr(mask, "dtype") else type(mask).__name__
                raise InvalidArgument(f"keep: {name} needs a boolean tensor of shape {shape}, not {given}")
            known = found.setdefault(first[id(named[name])], mask)
            if not torch.equal(known.cpu(), mask.cpu()):
                raise InvalidArgument(f"keep: {name} is tied to {first[id(named[name])]}, but has another mask")
        return found
