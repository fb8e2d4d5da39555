"""Whole units masked while a model trains, so that it computes what surgery will make of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from surgeon.errors import InvalidArgument, NotEquivalent, SurgeonError, SurgeryError, WeightsError
from surgeon.frontend.copies import duplicate
from surgeon.frontend.isolation import untouched
from surgeon.frontend.parameters import TENSORS, module_in_place, public, units
from surgeon.frontend.trace import skeleton, trace_inputs
from surgeon.groups.coupling import GROUPS, Groups
from surgeon.groups.gains import erasable
from surgeon.groups.interpreter import Interpreter, double, precisely
from surgeon.ir.fingerprint import named_tensors
from surgeon.rules import Axes, Kept
from surgeon.training.masked_sites import interceptors, kept_mask
from surgeon.training.masked_statistics import Interceptor
from surgeon.training.weight_masks import Held, Masks
from surgeon.verification.check import checked_inputs, relative

_UNITS, _BUFFERS = "units.", "buffers."


@public(model=module_in_place, groups=GROUPS, keep=units, state=TENSORS)
class UnitMasks:
    """Masks of whole units, with all that belongs to them in every coupled tensor.

    The model is changed in place, see `Masks`; call `enforce` after each `optimizer.step()`. It then computes what it
    will compute once the units are removed: parameters of masked units are zero, both those that produce and those
    that consume them; operators that take a statistic over masked units (LayerNorm, RMSNorm, GroupNorm, softmax, …)
    take it over the kept ones, through hooks on the innermost module whose code calls them; a buffer, such as a running
    variance, keeps its entries for masked units.

    `notes` lists the operators for which this was not possible; if it is empty, the masked model computes what surgery
    makes of it. `groups` are what `surgeon.inspect` returns of `model`.

    Raises:
        InvalidArgument: `model` is not a module, or `groups` are not its groups.

    >>> import surgeon
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    >>> groups = surgeon.inspect(model, torch.randn(1, 4))
    >>> masks = UnitMasks(model, groups)
    >>> masks.set({groups.groups[0].leaf.id: range(3)})
    >>> model[2].weight[:, 3:].any().item(), masks.notes
    (False, ())
    >>> masks.enforce()                                        # after each step of an optimizer
    >>> slim = surgeon.Plan.of(groups, masks.keep).apply(masks.bare())
    >>> masks.deviation(slim) < 1e-9
    True
    >>> state = masks.state_dict()
    >>> masks.release()                                        # the model is whole again
    >>> masks.load_state_dict(state)
    """

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        self._model = model
        self._groups = groups
        self._masks = Masks(model)
        self._buffers: dict[str, Held] = {}
        self._hooks: list[RemovableHandle] = []
        self.keep: dict[int, tuple[int, ...]] = {}
        self.notes: tuple[str, ...] = ()

    def set(self, keep: Mapping[int, Iterable[int]]) -> None:
        """Mask all units but those in `keep`, by leaf; leaves that are not named are kept whole.

        This replaces earlier masks: units that are unmasked get the values that they had when they were masked.

        Raises:
            InvalidArgument: a leaf is not a group's, or its units are empty, repeated or out of range. Nothing was
                changed.
        """
        units = self._checked(keep)
        kept = self._groups.kept(units)
        tensors = {name: kept_mask(axes, kept) for name, axes in self._tensors().items()}
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        self._masks.set({name: mask for name, mask in tensors.items() if name in parameters})
        self._hold_buffers({name: mask for name, mask in tensors.items() if name not in parameters})
        self.keep = units
        self._intercept(kept)

    def enforce(self) -> None:
        """Set masked entries of parameters to zero again, and those of buffers to their earlier values."""
        self._masks.enforce()
        self._restore(dict(self._model.named_buffers()))

    def release(self) -> None:
        """Restore every unit to its values from before it was masked, and remove all masks and hooks."""
        self.enforce()  # for the buffers
        self._masks.release()
        self._unhook()
        self._buffers.clear()
        self.keep, self.notes = {}, ()

    def bare(self) -> nn.Module:
        """A copy of the masked model's modules, for surgery: it shares its tensors, but has no hooks of these masks."""
        bare = skeleton(self._model)
        for module in bare.modules():
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for number, hook in list(hooks.items()):
                    if isinstance(getattr(hook, "__self__", None), Interceptor):
                        del hooks[number]
                        module._forward_hooks_always_called.pop(number, None)
        return bare

    def deviation(self, slim: nn.Module) -> float:
        """The largest deviation of an output of `slim` from the masked model's, relative to its largest magnitude.

        Both are traced as they are and run in float64, in eval mode, on the inputs that the groups were traced with.

        Raises:
            InvalidArgument: `slim` is not a module.
            InvalidInputs: one of them does not run on those inputs.
            NotEquivalent: `slim` has another number of outputs.
        """
        runs = [_outputs(model, self._groups) for model in (self._model, slim)]
        if len(runs[0]) != len(runs[1]):
            raise NotEquivalent(f"the masked model has {len(runs[0])} outputs, {type(slim).__name__} {len(runs[1])}")
        return max((relative(a, b) for a, b in zip(*runs, strict=True)), default=0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """The kept units, of shape (units,), and what masked entries were, of the parameters' shapes, by name."""
        names = self._groups.names
        return {
            **self._masks.state_dict(),
            **{f"{_UNITS}{names[leaf]}": torch.tensor(kept) for leaf, kept in self.keep.items()},
            **{f"{_BUFFERS}{name}": held.before for name, held in self._buffers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace the masks by those of `state`. The model's own state may be loaded before or after.

        `state` is what `state_dict` gave: tensors of the parameters' shapes.

        Raises:
            InvalidArgument: it is not a mapping from names to tensors.
            WeightsError: the state is not of such a model.
        """
        leaves = {name: leaf for leaf, name in self._groups.names.items()}
        named = {name.removeprefix(_UNITS): value for name, value in state.items() if name.startswith(_UNITS)}
        if not named.keys() <= leaves.keys():
            raise WeightsError(f"the model has no group {sorted(named.keys() - leaves.keys())[0]}")
        try:
            units = self._checked({leaves[name]: value.tolist() for name, value in named.items()})
        except InvalidArgument as error:
            raise WeightsError(f"the state is of another model: {error}") from error
        rest = {name: value for name, value in state.items() if not name.startswith((_UNITS, _BUFFERS))}
        self._masks.load_state_dict(rest)
        kept = self._groups.kept(units)
        self._buffers = {
            name: Held(kept_mask(axes, kept), state[f"{_BUFFERS}{name}"].clone())
            for name, axes in self._tensors().items()
            if f"{_BUFFERS}{name}" in state
        }
        self.keep = units
        self.enforce()
        self._intercept(kept)

    def _checked(self, keep: Mapping[int, Iterable[int]]) -> dict[int, tuple[int, ...]]:
        groups = {group.leaf.id: group for group in self._groups}
        found: dict[int, tuple[int, ...]] = {}
        for leaf, kept in keep.items():
            if leaf not in groups:
                raise InvalidArgument(f"keep: {leaf} is not the leaf of a group; see surgeon.inspect")
            units, size = tuple(sorted(int(unit) for unit in kept)), groups[leaf].size
            if not units or len(set(units)) != len(units) or units[0] < 0 or units[-1] >= size:
                name = groups[leaf].name
                raise InvalidArgument(f"keep: group {name} needs at least one of its {size} units, each once, from 0")
            if len(units) < size:
                found[leaf] = units
        return found

    def _tensors(self) -> dict[str, Axes]:
        """The axes of the model's own tensors that are masked, without constants of the graph."""
        own = {name for name, _ in named_tensors(self._model)}
        return {name: axes for name, axes in erasable(self._groups).items() if name in own}

    def _hold_buffers(self, keep: Mapping[str, Tensor]) -> None:
        """Remember the buffers of which entries are masked now, after those of earlier masks were restored."""
        buffers = dict(self._model.named_buffers(remove_duplicate=False))
        self._restore({name: buffers[name] for name in keep})
        self._buffers = {
            name: Held(mask, buffers[name].detach().clone()) for name, mask in keep.items() if not mask.all()
        }

    def _restore(self, buffers: Mapping[str, Tensor]) -> None:
        for name, held in self._buffers.items():
            if name in buffers and buffers[name].shape == held.before.shape:
                held.restore(buffers[name])

    def _unhook(self) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks.clear()

    def _intercept(self, kept: Kept) -> None:
        """Hook the modules whose code takes statistics over masked units, and try them out."""
        self._unhook()
        found, notes = interceptors(self._groups, kept, self._model)
        modules = dict(self._model.named_modules(remove_duplicate=False))
        for each in found:
            self._hooks += each.attach(modules[each.path])
        if found:
            args, kwargs = self._groups.graph.inputs
            try:
                with torch.no_grad(), untouched(self._model), torch.random.fork_rng(devices=[]):
                    duplicate(self._model).eval()(*args, **kwargs)
            except SurgeryError as error:
                notes.append(str(error))
                self._unhook()
        self.notes = tuple(dict.fromkeys(notes))


def _outputs(model: nn.Module, groups: Groups) -> list[Tensor]:
    inputs = pytree.tree_map(double, checked_inputs(groups.graph))
    try:
        graph = trace_inputs(duplicate(model).double(), inputs)  # constants such as eps are then those of float64
    except SurgeonError:  # the code names a type; the graph is run in float64 all the same
        graph = trace_inputs(model, groups.graph.inputs)
    with precisely():
        return Interpreter(graph, inputs, precision=double).run()
