"""Makes a traced graph functional: no operator writes into its inputs, and no region hides operators."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from surgeon.errors import TraceError

_WRITE, _WRITTEN = torch.ops.aten.copy_.default, torch.ops.aten.copy.default
# Composite operators that may return their own input without saying so in their schema.
_MAY_ALIAS = {"aten::dropout", "aten::feature_dropout", "aten::alpha_dropout", "aten::to", "aten::type_as"}

# Their operands: input, weight, bias, running mean, running variance, whether to take the batch's.
_MOVES_STATISTICS = {
    "aten::batch_norm", "aten::instance_norm", "aten::native_batch_norm", "aten::cudnn_batch_norm",
    "aten::miopen_batch_norm",
}


def functionalize(program: ExportedProgram) -> fx.GraphModule:
    """The program as a module whose operators have no side effects and stand in no regions.

    In-place operators on tensors that nothing else looks at become their functional variants. Where views are written
    to, torch's own functionalization does the work. What the model writes into its own tensors in the end, such as a
    count of its calls, stays as an operator that nothing reads, see `own_writes`.
    """
    module = _unlifted(program)
    if not _replace_in_place(module.graph):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = _unlifted(program.run_decompositions({}))
        if not _replace_in_place(module.graph):
            raise TraceError("torch's functionalization left an operator that writes into a view; please report this")
        _restore_batch_norm(module.graph)
    _inline_wrapped_regions(module)
    for node in own_writes(module.graph, _WRITE):
        node.target = _WRITTEN
        if "val" not in node.meta and isinstance(node.args[1], fx.Node):
            node.meta["val"] = node.args[1].meta.get("val")
    return module


def own_writes(graph: fx.Graph, target: Any = _WRITTEN) -> list[fx.Node]:
    """The operators at the end of a graph by which a model writes into its own tensors."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    return [
        node for node in graph.find_nodes(op="call_function", target=target)
        if not node.users and node.args[0].op == "get_attr" and all(order[u] <= order[node] for u in node.args[0].users)
    ]


def write_again(graph: fx.Graph) -> None:
    """Undo what `functionalize` makes of writes into the model's own tensors."""
    for node in own_writes(graph):
        node.target = _WRITE


def _restore_batch_norm(graph: fx.Graph) -> None:
    """Functionalization splits batch_norm in eval mode into an operator of three results, of which one is used."""
    split = torch.ops.aten._native_batch_norm_legit_no_training.default
    for node in graph.find_nodes(op="call_function", target=split):
        x, weight, bias, mean, variance, momentum, eps = node.args
        with graph.inserting_before(node):
            whole = graph.call_function(
                torch.ops.aten.batch_norm.default, (x, weight, bias, mean, variance, False, momentum, eps, False)
            )
        for user in list(node.users):
            if user.args[1] == 0:
                whole.meta = dict(user.meta)
                user.replace_all_uses_with(whole)
            graph.erase_node(user)
        graph.erase_node(node)


def _unlifted(program: ExportedProgram) -> fx.GraphModule:
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    for node in list(module.graph.nodes):
        # Assertions about types and sizes hold by construction, and would forbid another dtype later.
        if node.op == "call_function" and _operator_name(node).startswith("aten::_assert") and not node.users:
            module.graph.erase_node(node)
    return module


def _operator_name(node: fx.Node) -> str:
    return node.target._schema.name if isinstance(node.target, torch._ops.OpOverload) else ""


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _returns_view(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return node.op == "call_function"
    schema = target._schema
    aliases = [result.alias_info for result in schema.returns if result.alias_info is not None]
    return schema.name in _MAY_ALIAS or any(not alias.is_write for alias in aliases)


def _replace_in_place(graph: fx.Graph) -> bool:
    """Replace in-place operators by functional ones; False, with the graph unchanged, where that is not safe."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    todo: list[tuple[fx.Node, Any]] = []
    own = set(own_writes(graph, _WRITE))
    for node in graph.nodes:
        if node.op != "call_function" or not _mutates(node) or node in own:
            continue
        functional = functional_variant(node.target)
        target = node.args[0] if node.args else None
        if functional is None or not isinstance(target, fx.Node) or not _unseen(target, node, order):
            return False
        todo.append((node, functional))
    for node, functional in todo:
        node.target = functional
        written = node.args[0]
        assert isinstance(written, fx.Node)
        later = {user for user in written.users if order[user] > order[node]}
        written.replace_all_uses_with(node, delete_user_cb=later.__contains__)
    return True


def _unseen(target: fx.Node, writer: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether what `writer` writes into `target` is seen through `target` alone, so that a new tensor does as well."""
    child, at = writer, target
    while True:
        if at.op == "get_attr":
            return False
        others = [user for user in at.users if user is not child]
        if any(_returns_view(user) and order[user] < order[writer] for user in others):
            return False
        if at is not target and any(order[user] > order[writer] for user in others):
            return False
        if not _returns_view(at) or not isinstance(base := at.args[0], fx.Node):
            return not _returns_view(at)
        child, at = at, base


def apart(target: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of an operator, with copies of those that it writes into without its schema saying so.

    Norms move their running statistics where they take those of the batch.
    """
    name = target._schema.name if isinstance(target, torch._ops.OpOverload) else ""
    if name not in _MOVES_STATISTICS or len(args) < 6 or not args[5]:
        return args
    return (*args[:3], *(None if each is None else each.clone() for each in args[3:5]), *args[5:])


def functional_variant(target: Any) -> Any:
    """The operator that computes what an in-place one writes into its first operand; None where there is none."""
    namespace, _, name = target._schema.name.partition("::")
    if not name.endswith("_") or namespace != "aten":
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    return getattr(packet, target._overloadname, None) if packet is not None else None


def _inline_wrapped_regions(module: fx.GraphModule) -> None:
    """Replace calls of `no_grad` and `autocast(enabled=False)` regions by the operators inside them.

    Gradients and autocasting apart, such a region computes what its operators compute.
    """
    graph = module.graph
    wrappers = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
    found = True
    while found:
        found = False
        for node in list(graph.nodes):
            skip = wrappers.get(getattr(node.target, "_name", getattr(node.target, "__name__", "")))
            if node.op != "call_function" or skip is None:
                continue
            found = True
            region, *operands = node.args[skip:]
            _inline(module, node, region, operands)
    graph.eliminate_dead_code()
    module.recompile()


def _inline(module: fx.GraphModule, node: fx.Node, region: Any, operands: list[Any]) -> None:
    body = module.get_submodule(str(region.target))
    assert isinstance(body, fx.GraphModule)
    values: dict[fx.Node, Any] = {}
    inputs = iter(operands)
    result: Any = None
    with module.graph.inserting_before(node):
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                values[inner] = next(inputs)
            elif inner.op == "output":
                result = fx.node.map_arg(inner.args[0], lambda n: values[n])
            elif inner.op == "get_attr":
                values[inner] = module.graph.get_attr(f"{region.target}.{inner.target}")
                values[inner].meta = dict(inner.meta)
            else:
                values[inner] = module.graph.node_copy(inner, lambda n: values[n])
    if isinstance(result, tuple | list):
        for user in list(node.users):
            position: Any = user.args[1]
            user.replace_all_uses_with(result[position])
            module.graph.erase_node(user)
    else:
        node.replace_all_uses_with(result)
    module.graph.erase_node(node)
