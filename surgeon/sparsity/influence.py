"""Which elements of an operator's result depend on which elements of its operands.

Each operator has a linear function of non-negative masks: an element of its result is positive if it depends on a
positive element of an operand. Run forward from the model's inputs, it tells what is constant; its transpose, run
backward from the model's outputs, tells what is read. For an unknown operator, everything depends on everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from surgeon.ir.operators import is_a, operator_name
from surgeon.rules import RuleDoesNotApply, arguments, failed, find
from surgeon.rules.base import dims
from surgeon.rules.pointwise import elementwise, prelu, unary

Masks = Mapping[fx.Node, Tensor]

#: Equal constants that are computed at several positions may differ by rounding.
ROUNDING = 1e-12

_MOVES = set("""
roll flip pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle reflection_pad1d reflection_pad2d
reflection_pad3d replication_pad1d replication_pad2d replication_pad3d unfold index_select index gather take_along_dim
diagonal pad constant_pad_nd slice_copy
""".split())
_INDICES = {"index", "indices", "repeats", "tensor_indices_or_sections"}
_FACTORS = {
    "linear": ("input", "weight"), "matmul": ("self", "other"), "mm": ("self", "mat2"), "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"),
    **{f"conv{kind}{rank}d": ("input", "weight") for kind in ("", "_transpose") for rank in (1, 2, 3)},
    "convolution": ("input", "weight"),
}
_REDUCTIONS = set("sum mean amax amin logsumexp prod all any var std norm linalg_vector_norm count_nonzero".split())
_WINDOWS = ("max_pool", "avg_pool", "upsample")
_RANDOM = set("rand randn rand_like randn_like randint randperm bernoulli multinomial normal empty empty_like".split())


@dataclass(frozen=True)
class Influence:
    """`apply` maps the masks of operands to the mask of the result, or to a list of them.

    `loose` marks elements that are not constants even if no input reaches them, because they depend on sizes that may
    vary from run to run, such as the sum over an image.
    """

    apply: Callable[[Masks], Any]
    loose: Any = None


@dataclass
class Operands:
    """The values of a node's operands, and whether their elements depend on the model's inputs.

    `live` are the operands that are computed tensors; the model's own tensors, and those of `weights`, which are
    computed of them alone, are constant and need no mask.
    """

    node: fx.Node
    values: dict[fx.Node, Any]
    unknown: dict[fx.Node, Any]
    result: Any
    weights: AbstractSet[fx.Node] = frozenset()

    def __post_init__(self) -> None:
        inputs = [n for n in self.node.all_input_nodes if n.op != "get_attr" and n not in self.weights]
        computed = [n for n in inputs if isinstance(self.values[n], Tensor)]
        self.live = {n: self.values[n].shape for n in computed}
        self.shape = _shapes(self.result)

    def is_live(self, operand: object) -> bool:
        return isinstance(operand, fx.Node) and operand in self.live

    def forget(self) -> None:
        """Drop all computed values, which the influence does not need."""
        for n in self.live:
            self.values.pop(n)
        self.unknown.clear()
        self.result = None

    def matters(self, operand: fx.Node) -> Tensor:
        """The elements of an operand that are not known to be zero."""
        value, unknown = self.values[operand], self.unknown.get(operand)
        return ((value != 0) | unknown if unknown is not None else value != 0).float()

    def varies(self, operand: fx.Node, over: Sequence[int]) -> Tensor:
        """Where an operand's elements are not one known constant along these dims."""
        value, unknown = self.values[operand].double(), self.unknown.get(operand)
        spread = value.amax(tuple(over), keepdim=True) - value.amin(tuple(over), keepdim=True)
        varies = ~(spread <= ROUNDING * value.abs().amax(tuple(over), keepdim=True))
        return varies | unknown.any(dim=tuple(over), keepdim=True) if unknown is not None else varies


def _shapes(result: Any) -> Any:
    if isinstance(result, tuple | list):
        return [_shapes(each) for each in result]
    return result.shape if isinstance(result, Tensor) else None


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32)


def influence(o: Operands) -> tuple[Influence, Any]:
    """The influence of a node's operands on its result, and which elements of that depend on the model's inputs."""
    masks = {n: o.unknown[n].float() for n in o.live}
    try:
        found = _by_operator(o)
        return found, _either(found.apply(masks), found.loose)
    except RuleDoesNotApply:
        pass
    except Exception as error:  # noqa: BLE001  (a faulty rule for one operator must not stop the run)
        failed(o.node, error)
    found = _everything(o)
    return found, _either(found.apply(masks), found.loose)


def _either(masks: Any, loose: Any) -> Any:
    if isinstance(masks, tuple | list):
        return [_either(m, loose[i] if loose is not None else None) for i, m in enumerate(masks)]
    if not isinstance(masks, Tensor):
        return None
    return masks > 0 if loose is None else (masks > 0) | loose


def _by_operator(o: Operands) -> Influence:
    node, name = o.node, operator_name(o.node)
    trains = name.endswith("dropout") and any(arguments(node).get(flag) for flag in ("train", "training"))
    if trains or name in _RANDOM:
        return _everything(o)
    if not o.live:
        return Influence(lambda masks: _spread(o.shape, _zeros()))
    a = arguments(node)
    moves = name in _MOVES or is_a(name, "view", "reorder", "split", "part", "repeat", "join")
    if moves and not any(o.is_live(i) and o.unknown[i].any() for i in _index_nodes(a)):
        indices = {n: o.values[n] for n in _index_nodes(a)}
        return Influence(lambda masks: _moved(o, a, indices, masks))
    if name == "mul" or name == "multiply":
        return _product(o, a)
    if find(node.target) is elementwise:
        return Influence(lambda masks: sum((masks[n] for n in o.live), _zeros(*o.shape)))
    x: Any = a.get("self", a.get("input"))
    if find(node.target) in (unary, prelu) and o.is_live(x):
        return Influence(lambda masks: masks[x].expand(o.shape))
    if name in _FACTORS:
        return _bilinear(o, a, *(a[key] for key in _FACTORS[name]))
    if name == "einsum" and len(a["tensors"]) == 2:
        return _bilinear(o, a, *a["tensors"])
    rule = _RULES.get(name)
    if rule is not None:
        return rule(o, a)
    if name in _REDUCTIONS and o.is_live(x):
        return _reduction(o, a, name)
    rank = _window_rank(name)
    if rank and isinstance(o.result, Tensor):
        return _windows(o, rank)
    return _everything(o)



def _loose(shape: Any) -> Any:
    if isinstance(shape, list):
        return [_loose(each) for each in shape]
    return torch.ones(shape, dtype=torch.bool) if shape is not None else None


def _spread(shape: Any, value: Tensor) -> Any:
    if isinstance(shape, list):
        return [_spread(each, value) for each in shape]
    return value.expand(shape) if shape is not None else None


def _everything(o: Operands) -> Influence:
    def apply(masks: Masks) -> Any:
        return _spread(o.shape, sum((masks[n].sum() for n in o.live), _zeros()))

    return Influence(apply, _loose(o.shape))


def _index_nodes(a: Mapping[str, Any]) -> list[fx.Node]:
    given = [a[name] for name in _INDICES if name in a]
    return [n for each in given for n in (each if isinstance(each, list | tuple) else [each]) if isinstance(n, fx.Node)]


def _moved(o: Operands, a: Mapping[str, Any], indices: Mapping[fx.Node, Tensor], masks: Masks) -> Any:
    """Move the masks as the operator moves the values; the elements that it adds are constant."""
    kept = set(_index_nodes(a))

    def replace(n: fx.Node) -> Any:
        if n in kept:
            return indices.get(n, o.values.get(n))
        if n in masks:
            return masks[n]
        value = o.values[n]
        return _zeros(*value.shape) if isinstance(value, Tensor) else value

    args: Any
    args, kwargs = fx.node.map_arg((o.node.args, o.node.kwargs), replace)
    if operator_name(o.node) in ("pad", "constant_pad_nd"):
        mode = {"mode": a["mode"]} if a.get("mode") else {}
        return torch.nn.functional.pad(args[0], fx.node.map_arg(a["pad"], lambda n: o.values[n]), **mode)
    if operator_name(o.node) in ("view", "_unsafe_view") and "dtype" not in a:
        return args[0].reshape(*args[1:])  # the mask's memory layout may differ from the value's
    return o.node.target(*args, **kwargs)  # type: ignore[operator]


def _product(o: Operands, a: Mapping[str, Any]) -> Influence:
    """A zero factor hides the other factor."""
    x, y = a["self"], a["other"]
    if x is y or not (isinstance(x, fx.Node) and isinstance(y, fx.Node)):
        zero = not isinstance(y, fx.Node) and y == 0
        return Influence(lambda masks: masks[x].expand(o.shape) * (0.0 if zero else 1.0))
    beside = {x: _scaled(o, y), y: _scaled(o, x)}
    return Influence(lambda masks: sum((masks[n] * beside[n] for n in o.live), _zeros(*o.shape)))


def _scaled(o: Operands, n: fx.Node) -> Tensor:
    return o.matters(n) if isinstance(o.values[n], Tensor) else torch.ones((), dtype=torch.float32)


def _bilinear(o: Operands, a: Mapping[str, Any], x: Any, y: Any) -> Influence:
    """Sums of products, in which a zero factor hides the other factor, plus addends."""
    matters = {n: o.matters(n) for n in (x, y)}
    addends = [n for n in o.live if n is not x and n is not y]

    def run(first: Tensor, second: Tensor) -> Tensor:
        values = {x: first, y: second}
        if operator_name(o.node) in ("addmm", "baddbmm"):
            return first @ second
        given = {name: None if name == "bias" else value for name, value in a.items()}
        schema = o.node.target._schema  # type: ignore[union-attr]

        def replace(n: fx.Node) -> Any:
            return values[n] if n in values else o.values[n]

        args = fx.node.map_arg([given[s.name] for s in schema.arguments if not s.kwarg_only], replace)
        return o.node.target(*args)  # type: ignore[operator]

    def apply(masks: Masks) -> Tensor:
        total = _zeros(*o.shape)
        if x is y:
            return total + masks[x].sum()
        if o.is_live(x):
            total = total + run(masks[x], matters[y])
        if o.is_live(y):
            total = total + run(matters[x], masks[y])
        return sum((masks[n] for n in addends), total)

    return Influence(apply, o.result != 0 if o.is_live(x) and o.is_live(y) else None)


def _reduction(o: Operands, a: Mapping[str, Any], name: str) -> Influence:
    x = a["self"]
    over = dims(a.get("dim"), len(o.live[x]))
    keepdim = bool(a.get("keepdim"))

    def apply(masks: Masks) -> Tensor:
        return masks[x].sum(over, keepdim=keepdim) if over else masks[x]

    loose = o.varies(x, over)
    loose = (loose if keepdim else loose.squeeze(over)).reshape(o.shape)
    return Influence(apply, loose if name in ("mean", "amax", "amin") else loose | (o.result != 0))


def _window_rank(name: str) -> int:
    windows = any(tag in name for tag in _WINDOWS)
    return next((rank for rank in (1, 2, 3) if f"{rank}d" in name), 0) if windows else 0


def _windows(o: Operands, rank: int) -> Influence:
    """Each channel depends on all positions of the same channel."""
    if len(o.live) != 1:
        raise RuleDoesNotApply("several computed operands")
    (x,) = o.live
    over = list(range(-rank, 0))
    shape = o.shape
    loose = o.varies(x, over).expand(shape)
    return Influence(lambda masks: masks[x].sum(over, keepdim=True).expand(shape), loose)


def _live(o: Operands, x: Any) -> torch.Size:
    """The shape of an operand, which must be computed."""
    if not o.is_live(x):
        raise RuleDoesNotApply("the normalized tensor is not computed")
    return o.live[x]


def _normalized(o: Operands, a: Mapping[str, Any], x: Any, shape: Sequence[int], over: Sequence[int]) -> Influence:
    """All elements that a statistic is taken over count, unless the scale is zero."""
    shape_of_x = _live(o, x)
    weight = a.get("weight")
    scale = o.matters(weight).reshape(shape) if isinstance(weight, fx.Node) else torch.ones((), dtype=torch.float32)

    def apply(masks: Masks) -> Tensor:
        mask = masks[x].sum(tuple(over), keepdim=True).expand(shape_of_x) if over else masks[x]
        return mask * scale

    return Influence(apply)


def _batch_norm(o: Operands, a: Mapping[str, Any]) -> Influence:
    x = a["input"]
    rank = len(_live(o, x))
    uses_input = a.get("training", a.get("use_input_stats")) or a["running_mean"] is None
    over = [*(() if operator_name(o.node) == "instance_norm" else (0,)), *range(2, rank)] if uses_input else []
    return _normalized(o, a, x, [1, -1, *[1] * (rank - 2)], over)


def _layer_norm(o: Operands, a: Mapping[str, Any]) -> Influence:
    count = len(a["normalized_shape"])
    return _normalized(o, a, a["input"], a["normalized_shape"], list(range(-count, 0)))


def _group_norm(o: Operands, a: Mapping[str, Any]) -> Influence:
    x, groups = a["input"], a["num_groups"]
    shape = _live(o, x)
    whole = _normalized(o, a, x, [1, -1, *[1] * (len(shape) - 2)], [])

    def apply(masks: Masks) -> Tensor:
        grouped = masks[x].reshape(shape[0], groups, -1)
        return whole.apply({x: grouped.sum(-1, keepdim=True).expand(grouped.shape).reshape(shape)})

    return Influence(apply)


def _softmax(o: Operands, a: Mapping[str, Any]) -> Influence:
    x, dim = a["self"], a["dim"]
    return Influence(lambda m: m[x].sum(dim, keepdim=True).expand(m[x].shape), _loose(o.shape))


def _embedding(o: Operands, a: Mapping[str, Any]) -> Influence:
    index, weight = a["indices"], a["weight"]
    varies = o.varies(weight, [0])[0].float()
    moved = o.unknown.get(weight) is not None

    def apply(masks: Masks) -> Tensor:
        mask = masks[index][..., None] * varies if o.is_live(index) else _zeros(*o.shape)
        return mask + masks[weight].sum(0) if moved else mask

    return Influence(apply)


def _glu(o: Operands, a: Mapping[str, Any]) -> Influence:
    x, dim = a["self"], a["dim"]
    return Influence(lambda masks: sum(masks[x].chunk(2, dim), _zeros(*o.shape)))


def _attention(o: Operands, a: Mapping[str, Any]) -> Influence:
    """Attention weights sum to one, so values that are the same constant everywhere come out unchanged."""
    q, k, v, given = a["query"], a["key"], a["value"], a.get("attn_mask")
    if a.get("enable_gqa") or not all(o.is_live(n) for n in (q, k, v)):
        return _everything(o)
    of_q, of_k = o.matters(q).amax(-2, keepdim=True), o.matters(k).amax(-2, keepdim=True)
    varies = o.varies(v, [-2])
    if o.is_live(given):  # the weights of a fully masked row don't sum to one
        varies = varies | (o.values[v] != 0).any(-2, keepdim=True)

    def apply(masks: Masks) -> Tensor:
        weights = (masks[q] * of_k).sum(-1, keepdim=True) + (masks[k] * of_q).sum((-1, -2), keepdim=True)
        if o.is_live(given):
            weights = weights + masks[given].sum()  # type: ignore[index]
        return weights * varies.float() + masks[v].sum(-2, keepdim=True)

    return Influence(apply, varies.expand(o.shape))


_RULES: dict[str, Callable[[Operands, Mapping[str, Any]], Influence]] = {
    "batch_norm": _batch_norm, "instance_norm": _batch_norm, "layer_norm": _layer_norm, "rms_norm": _layer_norm,
    "group_norm": _group_norm, "softmax": _softmax, "_softmax": _softmax, "log_softmax": _softmax,
    "_log_softmax": _softmax, "embedding": _embedding, "glu": _glu, "scaled_dot_product_attention": _attention,
}
