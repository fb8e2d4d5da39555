"""A torch.export program brought into a form that torch.onnx can translate."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten

_ATTENTION = _aten.scaled_dot_product_attention.default

# Products of rows with the matrix of their group: rows, matrices, and where each group ends.
_GROUPED = {"aten::_grouped_mm", "transformers::grouped_mm_fallback"}

# Adaptive average pools, and over how many axes each goes.
_POOLS: dict[Any, int] = {getattr(_aten, f"adaptive_avg_pool{rank}d").default: rank for rank in (1, 2, 3)}

_END = 2**63 - 1

_VIEWS = (_aten.view.default, _aten.reshape.default)


def write_out_attention(program: torch.export.ExportedProgram) -> int:
    """Replace every scaled dot-product attention by the matrix products that it stands for, in place; how many.

    ONNX has no attention before opset 23. What torch.onnx writes in its place needs exactly four axes and a positive
    scale, and is not PyTorch's where a query is masked off from all keys. Here query `(…, L, E)`, key `(…, S, E)`
    and value `(…, S, F)` have any number of leading axes, broadcast as PyTorch does. Left alone are calls with
    dropout, and those whose scale depends on the size of the batch.
    """
    return _write_out(program, _can_be_written_out, _attention)


def write_out_grouped_products(program: torch.export.ExportedProgram) -> int:
    """Replace every product of rows with the matrix of their group by ordinary products, in place; how many.

    A mixture of experts sorts its tokens by expert and multiplies rows `(T, K)` with matrices `(E, K, N)`, those from
    `offs[e - 1]` up to `offs[e]` with the matrix `e`. Here each matrix is multiplied with all rows, the other experts'
    being zeroed, which takes E times as many operations. Other forms of the operator are left alone.
    """
    return _write_out(program, _is_grouped_product, _grouped_product)


def write_out_global_pools(program: torch.export.ExportedProgram) -> int:
    """Replace every adaptive average pool to one position by a mean, in place; how many.

    What torch.onnx makes of one whose channels are last in memory reads them one by one, by their places.
    """
    return _write_out(program, _is_global_pool, _mean)


def out_of_place(program: torch.export.ExportedProgram) -> int:
    """Let operators that overwrite a tensor that nobody else reads, and that is no view, make a new one; how many.

    torch.onnx has translations of these alone, and would take the others apart, which takes it most of its time.
    """
    count = 0
    for node in _nodes(program):
        twin = _out_of_place(node.target)
        source = node.args[0] if node.args else None
        if twin is None or not isinstance(source, fx.Node) or list(source.users) != [node] or not _is_fresh(source):
            continue
        node.target = twin
        count += 1
    _recompile(program)
    return count


def copy_before_views(program: torch.export.ExportedProgram) -> int:
    """Put a contiguous copy before every view, in place; how many.

    A view insists on strides, and those of a tensor while tracing are not always those it has once torch.onnx
    has decomposed what computes it. The optimizer removes the copies, for ONNX has no strides.
    """
    nodes = [node for node in _nodes(program) if node.target in _VIEWS]
    for node in nodes:
        source = node.all_input_nodes[0]
        with node.graph.inserting_before(node):
            copied = _call(source, _aten.clone.default, source, memory_format=torch.contiguous_format)
        node.replace_input_with(source, copied)
    _recompile(program)
    return len(nodes)


def _modules(program: torch.export.ExportedProgram) -> Iterator[fx.GraphModule]:
    """The program's graph, and those that it calls: of code under another autocast or gradient mode."""
    return (module for module in program.graph_module.modules() if isinstance(module, fx.GraphModule))


def _nodes(program: torch.export.ExportedProgram) -> list[fx.Node]:
    return [node for module in _modules(program) for node in module.graph.nodes]


def _recompile(program: torch.export.ExportedProgram) -> None:
    for module in _modules(program):
        module.recompile()


def _out_of_place(target: Any) -> Any:
    """The operator that computes the same, and overwrites nothing; None where there is none, or nothing is."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    name = target._opname
    if not name.endswith("_") or name.startswith("_") or name.endswith("__"):
        return None
    twin = getattr(getattr(_aten, name[:-1], None), target._overloadname, None)
    if twin is None:
        return None
    alike = [[(each.name, str(each.type)) for each in op._schema.arguments] for op in (target, twin)]
    return twin if alike[0] == alike[1] and not twin._schema.is_mutable else None


def _is_fresh(node: fx.Node) -> bool:
    """Whether a node makes a tensor of its own, no view of another."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and all(each.alias_info is None for each in target._schema.returns)


def _write_out(
    program: torch.export.ExportedProgram, applies: Callable[[fx.Node], bool], written: Callable[[fx.Node], fx.Node]
) -> int:
    """Put what `written` makes of them in the place of the nodes that it applies to; how many."""
    nodes = [node for node in _nodes(program) if applies(node)]
    for node in nodes:
        with node.graph.inserting_before(node):
            result = written(node)
        node.replace_all_uses_with(result)
        if node.graph is program.graph:
            program.graph_signature.replace_all_uses(node.name, result.name)
        node.graph.erase_node(node)
    _recompile(program)
    return len(nodes)


def _is_grouped_product(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.name not in _GROUPED:
        return False
    given = _arguments(node)
    rows, matrices = (each.meta["val"] for each in node.args[:2])  # type: ignore[union-attr]
    return rows.dim() == 2 and matrices.dim() == 3 and given["offs"] is not None and given.get("bias") is None


def _grouped_product(node: fx.Node) -> fx.Node:
    rows, matrices = node.args[:2]
    ends = _arguments(node)["offs"]

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return _call(node, target, *args, **kwargs)

    ones = call(_aten.ones_like.default, call(_aten.select.int, rows, 1, 0), dtype=torch.int64)
    number = call(_aten.sub.Tensor, call(_aten.cumsum.default, ones, 0), 1)
    ends = call(_aten.unsqueeze.default, call(_aten.to.dtype, ends, torch.int64), 1)
    before = call(_aten.lt.Tensor, number, ends)  # of the groups up to each, so that a group's are those of no earlier
    first = call(_aten.slice.Tensor, before, 0, 0, 1)
    earlier = call(_aten.slice.Tensor, before, 0, 0, -1)
    later = call(_aten.slice.Tensor, before, 0, 1, _END)
    later = call(_aten.logical_and.default, later, call(_aten.logical_not.default, earlier))
    own = call(_aten.unsqueeze.default, call(_aten.cat.default, [first, later]), -1)
    parts = call(_aten.where.ScalarOther, own, call(_aten.unsqueeze.default, rows, 0), 0.0)
    result = call(_aten.sum.dim_IntList, call(_aten.matmul.default, parts, matrices), [0])
    dtype = node.meta["val"].dtype
    return result if result.meta["val"].dtype is dtype else call(_aten.to.dtype, result, dtype)


def _is_global_pool(node: fx.Node) -> bool:
    if node.target not in _POOLS:
        return False
    return all(isinstance(size, int) and size == 1 for size in _arguments(node)["output_size"])


def _mean(node: fx.Node) -> fx.Node:
    over = list(range(-_POOLS[node.target], 0))
    return _call(node, _aten.mean.dim, node.args[0], over, True)


def _can_be_written_out(node: fx.Node) -> bool:
    if node.target is not _ATTENTION:
        return False
    arguments = _arguments(node)
    known = arguments["scale"] is not None or isinstance(arguments["query"].meta["val"].shape[-1], int)
    return known and not arguments["dropout_p"]


def _attention(node: fx.Node) -> fx.Node:
    """softmax(query · keyᵀ · scale + mask) · value, its nodes inserted at the graph's current place."""
    arguments = _arguments(node)
    query, key, value, mask = (arguments[name] for name in ("query", "key", "value", "attn_mask"))
    size, dtype = query.meta["val"].shape, query.meta["val"].dtype

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return _call(node, target, *args, **kwargs)

    if arguments["enable_gqa"]:
        key, value = (_with_heads(node, tensor, size[-3]) for tensor in (key, value))
    scale = 1 / math.sqrt(size[-1]) if arguments["scale"] is None else arguments["scale"]
    scores = call(_aten.matmul.default, call(_aten.mul.Scalar, query, scale), call(_aten.transpose.int, key, -2, -1))
    open_rows = None
    if arguments["is_causal"]:
        sizes = [_size(node, query), _size(node, key)]
        closed = call(_aten.full.default, sizes, -math.inf, dtype=dtype, device=query.meta["val"].device)
        scores = call(_aten.add.Tensor, scores, call(_aten.triu.default, closed, 1))
    elif mask is not None:
        if mask.meta["val"].dtype is torch.bool:
            scores = call(_aten.where.ScalarOther, mask, scores, -math.inf)
            open_rows = call(_aten.any.dim, mask, -1, True)
        else:
            scores = call(_aten.add.Tensor, scores, mask)
            open_rows = call(_aten.gt.Scalar, call(_aten.amax.default, mask, [-1], True), -math.inf)
    result = call(_aten.matmul.default, call(_aten.softmax.int, scores, -1), value)
    if open_rows is None:
        return result
    # A query that may look at nothing gets zeros in PyTorch; a softmax of nothing but -inf is anything elsewhere.
    return call(_aten.where.ScalarOther, open_rows, result, 0.0)


def _with_heads(place: fx.Node, tensor: fx.Node, heads: int) -> fx.Node:
    """A key or value `(…, heads of its own, S, E)` with each head repeated, for grouped queries of `heads`."""
    shape = tensor.meta["val"].shape
    times = heads // shape[-3]
    if times == 1:
        return tensor
    tensor = _call(place, _aten.unsqueeze.default, tensor, -3)
    kept = len(shape) - 2
    tensor = _call(place, _aten.expand.default, tensor, [-1] * kept + [times, -1, -1])
    return _call(place, _aten.flatten.using_ints, tensor, -4, -3)


def _size(place: fx.Node, tensor: fx.Node) -> int | fx.Node:
    """The size of the last axis but one: a number, or the node that reads it where it depends on the batch."""
    size = tensor.meta["val"].shape[-2]
    return size if isinstance(size, int) else _call(place, _aten.sym_size.int, tensor, -2)


def _arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of a call by name, its defaults among them."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {argument.name: value for argument, value in zip(schema, node.args, strict=False)}
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    return defaults | given | node.kwargs


def _call(place: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A new node at the graph's current place that belongs to the module of `place`, its fake value computed."""
    node = place.graph.call_function(target, args, kwargs)
    values, named = fx.node.map_arg((args, kwargs), lambda argument: argument.meta["val"])
    node.meta.update(place.meta)
    with place.meta["val"].fake_mode:
        node.meta["val"] = target(*values, **named)
    return node
