"""Where masked parameters alone do not do: operators that must be told which positions stay.

Those are statistics over masked units, and sums over masked units that are not zero, as an operator such as the sigmoid
made constants of their zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from surgeon.groups.coupling import Groups
from surgeon.groups.interpreter import Runner, precisely
from surgeon.rules import Axes, Kept, arguments, where
from surgeon.surgery.attributes import module_call
from surgeon.training.masked_calls import Learned, MaskedCalls, alike, learn
from surgeon.training.masked_statistics import MaskedLayer, Site
from surgeon.verification.check import checked_inputs, is_zero, with_zeros


def kept_mask(axes: Axes, kept: Kept) -> Tensor:
    """True at the positions of a tensor whose units are all kept."""
    mask = torch.ones([axis.size for axis in axes], dtype=torch.bool)
    for dim, axis in enumerate(axes):
        if kept.changed(axis):
            stays = torch.zeros(axis.size, dtype=torch.bool)
            stays[torch.from_numpy(kept.positions(axis))] = True
            mask &= stays.reshape([-1 if d == dim else 1 for d in range(len(axes))])
    return mask


class Finder:
    """Finds where the modules of a model must be told which units stay; their code is run once, when it is needed."""

    def __init__(self, groups: Groups, model: nn.Module) -> None:
        self._groups = groups
        self._model = model
        self._learned: Mapping[str, Learned] = {}

    def find(self, kept: Kept) -> tuple[list[tuple[nn.Module, MaskedLayer | MaskedCalls]], list[str]]:
        """The modules, each with what it must be told, and notes about operators that can't be taken care of."""
        sites, notes = _sites(self._groups, kept)
        if not sites:
            return [], notes
        modules = dict(self._model.named_modules(remove_duplicate=False))
        first = {module: path for path, module in reversed(modules.items())}
        calls: dict[str, dict[tuple[str, str], list[fx.Node]]] = {}
        for node in self._groups.graph.nodes:
            call = module_call(node) if isinstance(node.target, torch._ops.OpOverload) else None
            if call is not None and call[0] in modules:
                calls.setdefault(first[modules[call[0]]], {}).setdefault(call, []).append(node)
        found: list[tuple[nn.Module, MaskedLayer | MaskedCalls]] = []
        inside: set[fx.Node] = set()
        layers = {path for path, each in calls.items() if _is_layer(self._groups, modules[path], each)}
        for path, each in calls.items():
            own = {node: sites[node] for nodes in each.values() for node in nodes if node in sites}
            inside |= own.keys()
            if not own:
                continue
            mask: MaskedLayer | MaskedCalls | str
            if path in layers:
                of = [sites.get(node) for nodes in each.values() for node in nodes]
                mask = MaskedLayer(next(iter(own.values()))) if alike(of) else _DIFFERENT
            else:
                if not self._learned:
                    code = {path: list(each.values()) for path, each in calls.items() if path not in layers}
                    self._learned = learn(self._groups, self._model, code)
                mask = self._learned[path].masked(path, own)
            if isinstance(mask, str):
                notes += [f"{site.place}: {mask}" for site in own.values()]
            else:
                found.append((modules[path], mask))
        notes += [f"{site.place}: it is in the code of no module" for node, site in sites.items() if node not in inside]
        return found, notes


_DIFFERENT = "the module is called several times, on different units"


def _is_layer(groups: Groups, module: nn.Module, calls: Mapping[tuple[str, str], list[fx.Node]]) -> bool:
    """Whether a module is a layer of torch that is one operator, on an operand and the module's own tensors."""
    if not MaskedLayer.possible(module):
        return False
    for (path, _), nodes in calls.items():
        first, *others = arguments(nodes[0]).items()
        own = all(
            groups.graph.tensors.get(value.name) == f"{path}.{name}".lstrip(".")
            for name, value in others
            if isinstance(value, fx.Node)
        )
        if len(nodes) > 1 or not own or not isinstance(first[1], fx.Node) or first[1].name in groups.graph.tensors:
            return False
    return True


def _sites(groups: Groups, kept: Kept) -> tuple[dict[fx.Node, Site], list[str]]:
    """The operators that masked parameters alone do not take care of, and notes about those that nothing does."""
    found: dict[fx.Node, Site] = {}
    notes: list[str] = []

    def zeroing(name: str, value: Tensor) -> Tensor:
        parameter = isinstance(groups.graph.tensor(name), nn.Parameter)
        return with_zeros(value, groups.tensors[name], kept) if parameter else value

    runner = Runner(groups.graph, checked_inputs(groups.graph), zeroing)
    with precisely():
        for node in groups.graph.nodes:
            if node.op == "get_attr":
                continue
            typed = groups.typed[node]
            lost = [axis for axis in typed.contracted if kept.changed(axis)]
            over = [axis for axis in typed.reduced if kept.changed(axis)]
            if lost and not any(is_zero(groups, kept, operand, lost, runner) for operand in node.all_input_nodes):
                over += lost
            if over:
                site = Site.of(groups, kept, node, over)
                if site is not None:
                    found[node] = site
                else:
                    notes.append(f"{where(node)}: it can't be computed over kept units alone")
            value = runner.compute(node)
            runner.keep(node, value)
    return found, notes
