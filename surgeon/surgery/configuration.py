"""Rewrites the configuration that a model was made from, such as Hugging Face's, so that it makes the smaller one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from surgeon.errors import first_line
from surgeon.frontend.configuration import Configured, Field, Path, held, objects, read, shapes_of, write
from surgeon.frontend.isolation import quietly, undisturbed, untouched, without_fast_attention
from surgeon.frontend.stand_ins import as_traced
from surgeon.frontend.trace import Inputs, skeleton
from surgeon.groups.coupling import Groups
from surgeon.groups.parts import becoming
from surgeon.rules import Kept

#: How many sets of values are compared by their outputs.
MOST_COMPARED = 8
#: The largest deviation of the outputs of a model that is built from the new configuration, relative to their norm.
TOLERANCE = 1e-4


def reconfigure(model: nn.Module, slim: nn.Module, groups: Groups, kept: Kept) -> tuple[str, ...]:
    """Rewrite the configurations that `slim`, the smaller model in its own class, holds; and what was done.

    A configuration is left as it is where its class does not build `model` from it, or no values of its fields give
    the smaller model.
    """
    said = []
    pairs = becoming(groups, kept)
    for path, name in held(model):
        before, after = model.get_submodule(path), slim.get_submodule(path)
        if shapes_of(before) == shapes_of(after):
            continue
        inputs = groups.graph.inputs if not path else None
        place = ".".join(part for part in (path, name) if part)
        with quietly(), undisturbed(), untouched(model):
            found = _Rewriting(before, after, name, inputs).values(pairs)
        if isinstance(found, str):
            said.append(f"{place} left as it was: {found}; what was saved is loaded by surgeon.load")
        elif found is not None:
            said.append(f"{place} rewritten: " + ", ".join(f"{_text(p)} {a} → {b}" for p, (a, b) in found.items()))
    return tuple(said)


class _Rewriting:
    """The smaller module's configuration, from which its class is to build it."""

    def __init__(self, before: nn.Module, after: nn.Module, name: str, inputs: Inputs | None) -> None:
        self._after, self._name, self._inputs = after, name, inputs
        self._own = Configured(before, vars(after)[name])
        self._why = ""

    def values(self, pairs: Mapping[int, set[int]]) -> dict[Path, tuple[Any, Any]] | str | None:
        """The fields that were rewritten, old and new; why there are none; or None where it is no configuration."""
        if not self._own.known:
            return None  # something else made the module
        target = shapes_of(self._after)
        unlike, compared = self._unlike(target), 0
        if unlike and not self._own.lists:
            return f"no values of its fields give these widths{unlike}"
        for values, silent in self._own.fitting(target, pairs):
            for more in _subsets(silent):
                compared += 1
                if compared > MOST_COMPARED:
                    return f"a model that is built from the new sizes computes something else{self._why}"
                if self._same({**values, **more}):
                    return self._write({**values, **more})
        if compared:
            return f"a model that is built from the new sizes computes something else{self._why}"
        return f"no values of its fields give these widths{unlike}"

    def _same(self, values: Mapping[Path, Any]) -> bool:
        """Whether a module that is built from these values, with the smaller one's tensors, computes the same."""
        device = next(iter(self._after.parameters())).device
        try:
            with torch.device(device), _Unfilled():
                built = self._own.build(values)
            built.load_state_dict(self._after.state_dict(keep_vars=False), assign=True)
            if self._inputs is None:
                return not _unlike_buffers(built, self._after)
            wanted, found = (_outputs(each, self._inputs) for each in (skeleton(self._after), built))
        except Exception as error:  # noqa: BLE001  (the user's class may raise anything)
            self._why = f" ({first_line(error)})"
            return False
        return len(wanted) == len(found) and all(
            a.shape == b.shape and float((a - b).norm()) <= TOLERANCE * float(a.norm())
            for a, b in zip(wanted, found, strict=True)
        )

    def _write(self, values: Mapping[Path, Any]) -> dict[Path, tuple[Any, Any]]:
        """Write the values into the smaller module's configuration, and into the copies of it that its parts hold."""
        own = vars(self._after)[self._name]
        written = {path: (read(own, path), value) for path, value in values.items()}
        first = {id(each) for each in objects(own)}
        held = {id(value): value for module in self._after.modules() for value in vars(module).values()}
        copies = [value for key, value in held.items() if type(value) is type(own) and key not in first]
        for config in (own, *copies):
            for path, (old, new) in written.items():
                if read(config, path) == old:
                    write(config, path, new)
        return written

    def _unlike(self, target: Mapping[str, tuple[int, ...]]) -> str:
        """Widths that one number would have to give, and which are not the same."""
        became: dict[tuple[str, int, int], dict[int, str]] = {}
        for name, shape in self._own.base.items():
            kind = ".".join("N" if part.isdigit() else part for part in name.split("."))
            for axis, (old, new) in enumerate(zip(shape, target.get(name, shape), strict=False)):
                became.setdefault((kind, axis, old), {}).setdefault(new, name)
        for found in became.values():
            if len(found) > 1:
                (a, first), (b, second) = list(found.items())[:2]
                return f" ({first} has {a}, {second} has {b})"
        return ""


def _subsets(fields: Sequence[Field]) -> Iterator[dict[Path, Any]]:
    """No field, then one, then two of them with their first candidates."""
    for count in range(3):
        for some in itertools.combinations(fields, count):
            yield {field.path: field.candidates[0] for field in some}


class _Unfilled(TorchDispatchMode):
    """Without drawing the first values of parameters, which are replaced anyway."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable and torch.Tag.nondeterministic_seeded in func.tags:
            return args[0]
        return func(*args, **(kwargs or {}))


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    args, kwargs = pytree.tree_map_only(Tensor, lambda value: value.detach().clone(), inputs)
    with as_traced(model), without_fast_attention(), torch.no_grad():
        found = model.eval()(*args, **kwargs)
    return [leaf.double() for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor) and not leaf.is_complex()]


def _unlike_buffers(a: nn.Module, b: nn.Module) -> bool:
    """Whether tables that are made anew each time, such as those of positions, are others."""
    other = dict(b.named_buffers())
    return any(name not in other or not torch.equal(value, other[name]) for name, value in a.named_buffers())


def _text(path: Path) -> str:
    return ".".join(map(str, path))
