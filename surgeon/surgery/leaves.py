"""Puts the original leaf modules back into a graph of operators, so that modes and hooks work as they did."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.frontend.copies import duplicate
from surgeon.ir.operators import operator_name
from surgeon.surgery.attributes import describe_tensors, module_call, module_path
from surgeon.surgery.rewrite import is_getitem

# What a torch.nn leaf module's forward calls when it is in eval mode: one of these operators and nothing else.
_MODULE_OPERATORS = (torch._ops.OpOverload,)
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}


def restore_leaves(
    module: fx.GraphModule, model: nn.Module, printed: dict[str, dict[str, Any]], unlike: set[str]
) -> list[str]:
    """Replace operators by calls of the torch.nn modules they were traced from; the names of the modules restored.

    Only calls that consist of a single operator on one activation, with the module's own tensors, are replaced: there
    the operator is all that the module does; and those of recurrent layers, whose first state may be made for them.
    `printed` gives new numbers by module name, see `describe_tensors`; the
    modules named in `unlike` need other numbers from call to call, and stay operators.
    """
    calls: dict[tuple[str, str], list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and (call := module_call(node)) is not None:
            calls.setdefault(call, []).append(node)
    restored: dict[str, nn.Module] = {}
    for (path, _), nodes in calls.items():
        leaf = _leaf(model, path)
        if isinstance(leaf, nn.RNNBase) and (layers := _recurrence(nodes, path)) is not None:
            if path not in restored:
                restored[path] = _rebuild(module, leaf, path, printed.get(path, {}))
            _call_recurrence(layers, nodes, path)
            continue
        operator_node = nodes[0]
        if leaf is None or path in unlike or not _is_whole_call(operator_node, nodes[1:], path):
            continue
        activations = [n for n in operator_node.all_input_nodes if n.op != "get_attr"]
        if path not in restored:
            restored[path] = _rebuild(module, leaf, path, printed.get(path, {}))
        with module.graph.inserting_before(operator_node):
            call_node = module.graph.call_module(path, (activations[0],))
        call_node.meta = dict(nodes[-1].meta)
        nodes[-1].replace_all_uses_with(call_node)
        for node in reversed(nodes):
            module.graph.erase_node(node)
    _restore_dropout(module)
    module.graph.eliminate_dead_code()
    module.recompile()
    return list(restored)


def _recurrence(nodes: list[fx.Node], path: str) -> fx.Node | None:
    """The operator that a recurrent layer calls, of inputs with a batch, if its results are taken one by one."""
    found = [node for node in nodes if operator_name(node) in _RECURRENT and isinstance(node.args[0], fx.Node)]
    if len(found) != 1 or found[0].args[0].meta["val"].dim() != 3:  # type: ignore[union-attr]
        return None
    own = all(str(n.target).rpartition(".")[0] == path for n in found[0].all_input_nodes if n.op == "get_attr")
    return found[0] if own and all(is_getitem(user) for user in found[0].users) else None


def _call_recurrence(node: fx.Node, nodes: list[fx.Node], path: str) -> None:
    """Call the module in place of its operator, which has its dropout between layers switched off."""
    several = isinstance(node.args[1], list | tuple)
    states: Any = node.args[1] if several else [node.args[1]]
    none_given = all(operator_name(state) == "zeros" and state in nodes for state in states)
    given = () if none_given else ((tuple(states) if several else states[0]),)
    with node.graph.inserting_before(node):
        call_node = node.graph.call_module(path, (node.args[0], *given))
        call_node.meta = dict(node.meta)
        last = node.graph.call_function(operator.getitem, (call_node, 1)) if several else call_node
    for user in list(node.users):
        index: Any = user.args[1]
        user.args = (last, index - 1) if several and index else (call_node, index)
    node.graph.erase_node(node)


def _restore_dropout(module: fx.GraphModule) -> None:
    """What forward wrote as `F.dropout(x, p, self.training)` becomes a module, so that it follows `train()`."""
    found = module.graph.find_nodes(op="call_function", target=torch.ops.aten.dropout.default)
    for number, node in enumerate(found):
        x, p, active = node.args
        if active:  # forward drops in eval mode too
            continue
        path = ".".join(part for part in (module_path(node), f"functional_dropout_{number}") if part)
        module.add_submodule(path, nn.Dropout(p))
        with module.graph.inserting_before(node):
            call_node = module.graph.call_module(path, (x,))
        call_node.meta = dict(node.meta)
        node.replace_all_uses_with(call_node)
        module.graph.erase_node(node)


def _leaf(model: nn.Module, path: str) -> nn.Module | None:
    try:
        leaf = model.get_submodule(path) if path else None
    except AttributeError:
        return None
    if leaf is None or next(leaf.children(), None) is not None:
        return None
    hooked = leaf._forward_hooks or leaf._forward_pre_hooks
    return leaf if type(leaf).__module__.startswith("torch.nn.modules") and not hooked else None


def _is_whole_call(first: fx.Node, rest: list[fx.Node], path: str) -> bool:
    if not isinstance(first.target, _MODULE_OPERATORS) or not all(is_getitem(n) and n.args[0] is first for n in rest):
        return False
    if any(user not in rest for user in first.users) if rest else False:
        return False
    tensors = first.all_input_nodes
    activations = [n for n in tensors if n.op != "get_attr"]
    own = [n for n in tensors if n.op == "get_attr"]
    return (
        len(rest) <= 1
        and len(activations) == 1
        and (first.args[0] is activations[0] or (_is_embedding(first) and first.args[1] is activations[0]))
        and isinstance(activations[0].meta.get("val"), Tensor)
        and all(str(n.target).rpartition(".")[0] == path for n in own)
    )


def _is_embedding(node: fx.Node) -> bool:
    """Whether a node looks up rows of a table: its input comes after it."""
    return operator_name(node) == "embedding"


def _rebuild(module: fx.GraphModule, leaf: nn.Module, path: str, printed: dict[str, Any]) -> nn.Module:
    """A copy of `leaf` that holds the smaller tensors already standing under its name."""
    memo = {id(t): t for t in (*leaf.parameters(), *leaf.buffers())}
    fresh = duplicate(leaf, memo)
    holder: nn.Module | None
    try:
        holder = module.get_submodule(path)
    except AttributeError:
        holder = None
    for name in list(fresh._parameters):
        if fresh._parameters[name] is not None:
            fresh._parameters[name] = getattr(holder, name)
    for name, buffer in list(fresh._buffers.items()):
        if buffer is not None:
            fresh._buffers[name] = getattr(holder, name, buffer.clone())
    describe_tensors(fresh, printed)
    module.add_submodule(path, fresh)
    return fresh
