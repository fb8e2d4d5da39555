"""Rewrites the numbers that the user's own modules hold, so that their Python code fits the smaller tensors.

torch's own modules describe their tensors by documented attributes. In other modules, an integer is a size when it is
one that an operator of that module was called with; it becomes the size that the operator is called with now.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from surgeon.groups.coupling import Groups
from surgeon.ir.axes import Axis, Prod, prod
from surgeon.rules import Kept, Typed, arguments
from surgeon.surgery.rewrite import printed

_Conv = nn.modules.conv._ConvNd
_Transposed = nn.modules.conv._ConvTransposeNd
_Norm = nn.modules.batchnorm._NormBase


#: Arguments of operators that are attributes of the torch.nn module by the same name, which its tensors do not tell.
NAMED_ALIKE = ("groups", "num_groups", "normalized_shape")


def describe_tensors(module: nn.Module, printed: Mapping[str, Any] | None = None) -> None:
    """Make the documented size attributes of a torch.nn module agree with its tensors.

    `printed` may give the new `groups` of a convolution, `num_groups` of a GroupNorm, or `normalized_shape` of a norm
    without weights.
    """
    new = dict(printed or {})
    match module:
        case _Conv():
            module.groups = new.get("groups", module.groups)
            first, second = module.weight.shape[:2]
            transposed = isinstance(module, _Transposed)
            module.in_channels = first if transposed else second * module.groups
            module.out_channels = second * module.groups if transposed else first
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case _Norm():
            tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            module.num_features = next((t.shape[0] for t in tensors if t.dim()), module.num_features)
        case nn.LayerNorm() | nn.RMSNorm():
            shape = module.weight.shape if module.elementwise_affine else new.get("normalized_shape")
            module.normalized_shape = tuple(shape or module.normalized_shape)
        case nn.GroupNorm():
            module.num_groups = new.get("num_groups", module.num_groups)
            module.num_channels = module.weight.shape[0] if module.affine else module.num_channels
        case nn.Embedding() | nn.EmbeddingBag():
            module.num_embeddings, module.embedding_dim = module.weight.shape
        case nn.PReLU():
            module.num_parameters = module.weight.shape[0]
        case nn.Bilinear():
            module.out_features, module.in1_features, module.in2_features = module.weight.shape
        case nn.RNNBase():
            weights: Any = module  # under a norm they are no parameters
            module.input_size, module.hidden_size = weights.weight_ih_l0.shape[1], weights.weight_hh_l0.shape[1]
            if module.proj_size:
                module.proj_size, module.hidden_size = weights.weight_hr_l0.shape
        case nn.Transformer():
            layers = (each for each in module.modules() if isinstance(each, nn.MultiheadAttention))
            module.d_model = next((each.out_proj.weight.shape[0] for each in layers), module.d_model)
        case nn.RNNCellBase():
            module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]


#: A printed argument: an operator, the argument's name and, of several numbers, the place; -1 where it is one.
Meaning = tuple[str, str, int]
#: What an attribute of a module means, by the module's name and its own.
Meanings = Mapping[tuple[str, str], Meaning]


@dataclass(frozen=True, eq=False)
class Attribute:
    """An integer that a module holds, and the names of the modules whose operators may tell what size it is.

    Of several integers in one attribute, it is the one at `place`.
    """

    module: str
    name: str
    paths: tuple[str, ...]
    value: Any
    place: int | None = None


@dataclass(frozen=True)
class Renumbered:
    """The integers that were rewritten: module, attribute, old, new. And the attributes that were in doubt.

    An attribute is in doubt where several sizes of a module were equal before and are not any more.
    """

    changes: tuple[tuple[str, str, Any, Any], ...]
    doubts: frozenset[tuple[str, str]]


def renumber(model: nn.Module, groups: Groups, kept: Kept, meanings: Meanings | None = None) -> Renumbered:
    """Rewrite integers on the modules of `model`, in place.

    `model` is a copy whose tensors are already cut. `meanings` settles attributes that are in doubt.
    """
    changes: list[tuple[str, str, Any, Any]] = []
    doubts: set[tuple[str, str]] = set()
    printed = _printed(groups, kept)
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for module, known_as in names.items():
        name = known_as[0]
        sizes = {key: pair for path in callers(module, known_as) for key, pair in printed.get(path, {}).items()}
        before = {k: v for k, v in vars(module).items() if isinstance(v, int | tuple) and not isinstance(v, bool)}
        describe_tensors(module, {k: v[1] for k, v in sizes.items() if k in NAMED_ALIKE})
        if takes_sizes(module):
            doubts |= {(name, key) for key in _replace_sizes(module, name, sizes, meanings or {})}
        changes += [(name, k, v, vars(module)[k]) for k, v in before.items() if vars(module)[k] != v]
    for module in names:
        if isinstance(module, nn.TransformerEncoder) and any(_has_odd_heads(each) for each in module.layers):
            module.use_nested_tensor = False  # as its constructor does: its kernels take pairs of heads
    return Renumbered(tuple(changes), frozenset(doubts))


def _has_odd_heads(layer: nn.Module) -> bool:
    attention = getattr(layer, "self_attn", None)
    return isinstance(attention, nn.MultiheadAttention) and attention.num_heads % 2 == 1


def _printed(groups: Groups, kept: Kept) -> dict[str, dict[Any, tuple[Any, Any]]]:
    """For each module: the arguments of its operators that are printed from axes, old and new.

    Keys are argument names, or (node name, argument name) where the same name occurs several times.
    """
    return {path: printed_sizes(operators, kept) for path, operators in with_sizes(groups).items()}


def with_sizes(groups: Groups) -> dict[str, list[tuple[fx.Node, Typed]]]:
    """For each module: its operators with arguments that are printed from axes."""
    found: dict[str, list[tuple[fx.Node, Typed]]] = {}
    for node, typed in groups.typed.items():
        if typed.args and node.op == "call_function" and (path := module_path(node)) is not None:
            found.setdefault(_owner(groups, arguments(node).get("weight"), path), []).append((node, typed))
    return found


#: What stands in place of an argument's name for the factors of an operator's sizes.
FACTORS = "factors"


def printed_sizes(operators: Iterable[tuple[fx.Node, Typed]], kept: Kept) -> dict[Any, tuple[Any, Any]]:
    """The arguments of operators that are printed from axes, old and new.

    And the factors of their sizes that are no arguments themselves, as the heads in `view(batch * heads, …)`.

    Raises:
        SurgeryError: an operator's rule can't print them.
    """
    found: dict[Any, tuple[Any, Any]] = {}
    operators = list(operators)
    for node, typed in operators:
        old = arguments(node)
        for name, new in printed(node, typed, kept).items():
            before = old[name] if name in old else _split_sizes(typed, old["dim"])
            found[(node.name, name)] = found[name] = (before, new)
    known = size_pairs(found)
    for node, typed in operators:
        axes = [axis for each in (typed.out if isinstance(typed.out, list) else [typed.out]) for axis in each]
        pairs = [pair for axis in axes for pair in _factors(axis, kept) if pair[0] not in known]
        if pairs:
            found[(node.name, FACTORS)] = [old for old, _ in pairs], [new for _, new in pairs]
    return found


def _factors(axis: Axis, kept: Kept) -> Iterator[tuple[int, int]]:
    """The sizes of what an axis is a product of, old and new: of each factor, and of factors next to one another."""
    axis = kept.space.resolve(axis)
    factors = axis.factors if isinstance(axis, Prod) else ()
    for first, last in itertools.combinations(range(len(factors) + 1), 2):
        if last - first < len(factors):
            part = prod(factors[first:last])
            yield part.size, kept.width(part)


def callers(module: nn.Module, known_as: Sequence[str]) -> list[str]:
    """The modules that call torch with a module's numbers: itself, by its names, and those beside it in `read_by`."""
    beside = getattr(module, "read_by", None)
    if not isinstance(beside, list):
        return [*known_as]
    return [*known_as, *(f"{name.rpartition('.')[0]}.{other}".lstrip(".") for name in known_as for other in beside)]


def takes_sizes(module: nn.Module) -> bool:
    """Whether integers of a module that are sizes are rewritten, beside what torch documents of its own modules."""
    return not type(module).__module__.startswith("torch.nn.modules") or isinstance(module, nn.MultiheadAttention)


def _owner(groups: Groups, weight: Any, path: str) -> str:
    """The module inside of the one at `path` that a weight belongs to; torch.export may name the outer one alone."""
    name = groups.graph.tensors.get(weight.name) if isinstance(weight, fx.Node) else None
    owner = name.rpartition(".")[0] if name is not None else path
    return owner if owner.startswith(f"{path}.") else path


def _split_sizes(typed: Typed, dim: int) -> list[int]:
    """The sizes of the pieces that an axis is cut into, where the operator was given their number or one size."""
    return [axes[dim].size for axes in typed.out if isinstance(axes, tuple)]


def size_pairs(sizes: Mapping[Any, tuple[Any, Any]]) -> dict[Any, set[Any]]:
    """Old size -> the new sizes it was printed as; also for whole lists of sizes."""
    pairs: dict[Any, set[Any]] = {}

    def add(old: Any, new: Any) -> None:
        if isinstance(old, int) and isinstance(new, int) and old > 1:
            pairs.setdefault(old, set()).add(new)

    for key, (old, new) in sizes.items():
        add(old, new)
        if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
            if key[-1] != FACTORS and all(isinstance(v, int) for v in (*old, *new)):
                pairs.setdefault(tuple(old), set()).add(tuple(new))
            for a, b in zip(old, new, strict=True):
                add(a, b)
    return pairs


def _replace_sizes(module: nn.Module, name: str, sizes: Mapping[Any, Any], meanings: Meanings) -> list[str]:
    """Rewrite a module's own integers; those that are in doubt."""
    pairs = size_pairs(sizes)
    doubts = []
    for key, value in list(vars(module).items()):
        if key.startswith("_") or isinstance(value, bool) or not isinstance(value, int | list | tuple):
            continue
        if isinstance(value, int):
            meaning = meanings.get((name, key))
            vars(module)[key] = _only(pairs, value) if meaning is None else meant(sizes, meaning)
            if len(pairs.get(value, ())) > 1:
                doubts.append(key)
        elif value and all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            vars(module)[key] = type(value)(renumbered_size(pairs, tuple(value)))
    return doubts


def meant(sizes: Mapping[Any, tuple[Any, Any]], meaning: Meaning) -> int:
    """What a printed argument is now."""
    operator, argument, place = meaning
    new = sizes[operator, argument][1]
    return int(new if place < 0 else new[place])


def possible_meanings(sizes: Mapping[Any, tuple[Any, Any]], value: int) -> list[Meaning]:
    """The printed arguments that were `value`."""
    found = []
    for key, (old, new) in sizes.items():
        if not isinstance(key, tuple):
            continue
        if isinstance(old, int) and old == value and isinstance(new, int):
            found.append((*key, -1))
        elif isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
            found += [(*key, at) for at, (a, b) in enumerate(zip(old, new, strict=True))
                      if a == value and isinstance(a, int) and isinstance(b, int)]
    return found


def renumbered_size(pairs: Mapping[Any, set[Any]], value: Any) -> Any:
    """What a size, or several as a tuple, became."""
    if isinstance(value, int):
        return _only(pairs, value)
    whole = pairs.get(value, set())
    if whole == {value}:
        return value  # an operator was called with just these, and still is
    whole = whole - {value}
    return next(iter(whole)) if len(whole) == 1 else tuple(_only(pairs, each) for each in value)


def _only(pairs: Mapping[Any, set[Any]], value: int) -> int:
    """The one size that `value` became; `value` itself where it became several, or none."""
    changed = pairs.get(value, set()) - {value}
    return int(next(iter(changed))) if len(changed) == 1 else value


def module_path(node: fx.Node) -> str | None:
    """The name of the innermost module that `node` was traced in."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return None
    path = str(next(reversed(list(stack.values())))[0])
    path = path.removeprefix("L['self']").lstrip(".")
    return path.split("@")[0]


def module_call(node: fx.Node) -> tuple[str, str] | None:
    """The innermost module and the call of it that `node` belongs to: a shared module is called several times."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return None
    path = module_path(node)
    return (path, str(next(reversed(stack)))) if path is not None else None
