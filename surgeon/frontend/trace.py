"""The front end: a model and example inputs become a functional `torch.fx` graph of ATen operators."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from surgeon.errors import InvalidInputs, TraceError
from surgeon.frontend.copies import duplicate
from surgeon.frontend.enclosed import name_enclosed
from surgeon.frontend.functionalize import apart, functionalize
from surgeon.frontend.isolation import quietly, untouched
from surgeon.frontend.model_checks import check_dense, check_variance
from surgeon.frontend.outputs import open_up
from surgeon.frontend.program import export
from surgeon.support.arguments import instance

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
MODULE = instance(nn.Module, "a torch.nn.Module")


@dataclass(frozen=True)
class Graph:
    """What a model computes.

    `module` is a functional FX graph of ATen operators; its parameters and buffers are the model's own, under their
    original names, and are shared with it. `tensors` maps the name of a `get_attr` node to the name of the tensor it
    reads, `canonical` a tensor's name to the first name of the same tensor (tied weights have several). `dynamic` says
    whether the first axis of the inputs may have any size. `train_only` is the graph with the parts that run in train
    mode alone, such as auxiliary heads, or whose results nothing reads, where the model has such parts; its last
    `inner` outputs are none of the model's.
    """

    module: fx.GraphModule
    inputs: Inputs
    tensors: Mapping[str, str]
    canonical: Mapping[str, str]
    dynamic: bool
    batch: int
    values: Mapping[str, Tensor] = field(repr=False, default_factory=dict)
    train_only: Graph | None = field(repr=False, default=None)
    inner: int = 0

    @property
    def nodes(self) -> Iterator[fx.Node]:
        return iter(self.module.graph.nodes)

    @property
    def output(self) -> fx.Node:
        return next(iter(reversed(self.module.graph.nodes)))

    @cached_property
    def read(self) -> frozenset[str]:
        """The canonical names of the tensors that operators of the graph read, those of `train_only` aside."""
        return frozenset(
            self.canonical[self.tensors[node.name]] for node in self.nodes if node.name in self.tensors and node.users
        )

    def tensor(self, name: str) -> Tensor:
        """The parameter, buffer or constant of this name."""
        return self.values[name]


GRAPH = instance(Graph, "a graph as groups.graph is one")


def hint(size: int | torch.SymInt) -> int:
    """A size as a plain integer; a symbolic one at the value it was traced with."""
    return size if isinstance(size, int) else int(size.node.hint)


class _Measured(fx.Interpreter):
    """Runs a graph and notes the sizes that depend on values, such as how many elements a mask selects."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if _depends_on_values(n):
            n.meta["val"] = pytree.tree_map_only(Tensor, lambda found: found.to("meta"), result)
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return super().call_function(target, apart(target, args), kwargs)


def _depends_on_values(node: fx.Node) -> bool:
    values = [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
    return any(not isinstance(size, int) and not size.node.has_hint() for v in values for size in v.shape)


def normalize_inputs(example_inputs: Any) -> Inputs:
    """A tensor, a tuple of positional inputs or a dict of keyword inputs as `(args, kwargs)`."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    match example_inputs:
        case Tensor():
            args = (example_inputs,)
        case tuple() | list():
            args = tuple(example_inputs)
        case Mapping():
            kwargs = dict(example_inputs)
        case _:
            raise InvalidInputs(
                f"example_inputs is a {type(example_inputs).__name__}; "
                "give a tensor, a tuple of positional inputs, or a dict of keyword inputs"
            )
    open_up((args, kwargs))
    leaves = pytree.tree_leaves((args, kwargs))
    for leaf in leaves:
        if isinstance(leaf, np.ndarray | np.generic):
            raise InvalidInputs(
                f"example_inputs holds an array of {leaf.dtype}; forward takes tensors: give torch.from_numpy(array)"
            )
        if isinstance(leaf, Tensor) and (leaf.is_nested or leaf.is_quantized or leaf.layout is not torch.strided):
            kind = "nested" if leaf.is_nested else "quantized" if leaf.is_quantized else leaf.layout
            raise InvalidInputs(f"example_inputs holds a {kind} tensor; give a dense one, padded where needed")
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        raise InvalidInputs("example_inputs holds no tensor; give the inputs that the model's forward takes")
    return args, kwargs


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of the module tree that shares every parameter and buffer with `model`.

    Tensors in other attributes are copied: to torch.export they are constants, which forward can write into.
    """
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        for value in vars(module).values():
            if type(value) in (dict, OrderedDict, set) and not value:
                memo[id(value)] = type(value)()  # a module has a dozen of these, and copy takes its time over them
    with quietly():
        return duplicate(model, memo)


def batched(inputs: Inputs, size: int) -> Inputs:
    """The inputs with their common batch axis repeated or cut to `size`; inputs without that axis stay as they are."""
    common = batch_size(inputs)

    def resize(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != common:
            return value
        return torch.cat([value] * -(-size // common))[:size]

    return pytree.tree_map(resize, inputs)


def batch_size(inputs: Inputs) -> int:
    """The size of the first axis of the first input that has axes."""
    sizes = [t.shape[0] for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor) and t.dim()]
    return sizes[0] if sizes else 1


def count_numbers(inputs: Inputs) -> int:
    """How many numbers the tensors among inputs hold."""
    return sum(leaf.numel() for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))


def trace(model: nn.Module, example_inputs: Any) -> Graph:
    """The graph that `model` computes in eval mode for inputs like `example_inputs`.

    The model is left as it is; the graph shares its tensors. The batch is dynamic where the model allows it.

    Raises:
        InvalidArgument: `model` is not a module.
        InvalidInputs: the model's `forward` does not take these inputs.
        InvalidModel: a tensor of the model is sparse, quantized or without values, or a variance is negative.
        TraceError: `torch.export` can't trace the model.
    """
    MODULE("model", model)
    return with_train_only(trace_inputs(model, normalize_inputs(example_inputs)), model)


def trace_inputs(model: nn.Module, inputs: Inputs, dynamic: bool = True) -> Graph:
    """As trace, for inputs that are `(args, kwargs)` already; without `dynamic`, of fixed sizes, which is quicker."""
    check_dense(model)
    shared = skeleton(model).eval()
    common = batch_size(inputs)
    if common == 0:
        raise InvalidInputs("the first of example_inputs has a batch of size 0; give a batch of at least 1")
    wide = batched(inputs, 2) if common == 1 else inputs
    with untouched(model):
        return _traced(shared, inputs, wide, dynamic)


def _traced(shared: nn.Module, inputs: Inputs, wide: Inputs, dynamic: bool) -> Graph:
    common = batch_size(inputs)
    program = None
    if dynamic and all(t.dim() and t.shape[0] == common for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)):
        try:
            program = _export(shared, wide, dynamic=True)
        except Exception as error:  # noqa: BLE001  (export raises all kinds; a fixed batch may do)
            refuse_unfit(shared, inputs, error)
    if program is None or not _batches(program):
        program, wide = _export_or_explain(shared, inputs), inputs
    # An operator that fixes the batch leaves it symbolic, of one value.
    batches = _batches(program)
    dynamic = bool(batches) and all(size.node.maybe_as_int() is None for size in batches)
    try:
        module = functionalize(program)
    except RuntimeError as error:  # forward writes into a constant, say
        raise TraceError(f"torch.export can't trace {type(shared).__name__}: {error}") from error
    graph = graph_of(module, shared, wide, dynamic)
    _check_variances(graph)
    return graph


def unread(graph: Graph, model: nn.Module) -> list[str]:
    """The model's parameters that no operator of the graph reads, under none of their names.

    Those of scripted modules are left out: what reads them is not seen.
    """
    scripted = tuple(f"{path}." for path, each in model.named_modules() if isinstance(each, torch.jit.ScriptModule))
    named = {
        name: value for name, value in model.named_parameters(remove_duplicate=False) if not name.startswith(scripted)
    }
    read = {id(named.get(graph.tensors[n.name])) for n in graph.nodes if n.name in graph.tensors and n.users}
    return [name for name, parameter in named.items() if id(parameter) not in read]


def with_train_only(graph: Graph, model: nn.Module) -> Graph:
    """The graph with `train_only`, if some of the model's parameters are read in train mode alone, or for nothing.

    For it, the modules around those parameters are told that they are in train mode, and what they compute is kept,
    whether it is read or not. Norms and dropout stay in eval mode, so that nothing else changes.
    """
    idle = unread(graph, model)
    if not idle:
        return graph
    around = {name.rsplit(".", depth)[0] for name in idle for depth in range(1, name.count(".") + 1)} | {""}
    for training in (True, False):
        found = _with_idle(graph, model, around, training)
        if found is not None and set(unread(found, model)) < set(idle):
            values, canonical = {**found.values, **graph.values}, {**found.canonical, **graph.canonical}
            return replace(graph, values=values, canonical=canonical, train_only=found)
    return graph


def _with_idle(graph: Graph, model: nn.Module, around: set[str], training: bool) -> Graph | None:
    """The graph with what the modules `around` compute as inner outputs; None where it can't be traced."""
    shared = skeleton(model).eval()
    kept: list[Any] = []
    for path, module in shared.named_modules(remove_duplicate=False):
        if path in around and not type(module).__module__.startswith("torch.nn.modules"):
            module.training = training
        if path and path in around:
            module.register_forward_hook(lambda module, args, result: kept.append(result))
    try:
        program = _export(_giving(shared, kept), graph.inputs, graph.dynamic)
    except Exception:  # noqa: BLE001  (then the smaller model is tried in train mode before it is handed out)
        return None
    return replace(graph_of(functionalize(program), shared, graph.inputs, graph.dynamic), inner=len(kept))


def _giving(model: nn.Module, kept: list[Any]) -> nn.Module:
    """The module, which gives what is in `kept` after its own outputs."""
    forward = model.forward

    @functools.wraps(forward)
    def with_kept(*args: Any, **kwargs: Any) -> Any:
        kept.clear()
        result = forward(*args, **kwargs)
        kept[:] = [leaf for leaf in pytree.tree_leaves(kept) if isinstance(leaf, Tensor)]
        return result, list(kept)

    vars(model)["forward"] = with_kept
    return model


def _check_variances(graph: Graph) -> None:
    """Refuse batch norms that would take the root of a negative number."""
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.name != "aten::batch_norm":
            continue
        place = [argument.name for argument in node.target._schema.arguments].index("running_var")
        name = graph.tensors.get(getattr(node.args[place], "name", ""))
        if name is not None:
            check_variance(name, graph.tensor(name))


def graph_of(module: fx.GraphModule, model: nn.Module, inputs: Inputs, dynamic: bool) -> Graph:
    """The graph that a functional module, traced from `model` on `inputs`, is."""
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    named.update(model.named_buffers(remove_duplicate=False))
    first: dict[int, str] = {}
    for name, tensor in named.items():
        first.setdefault(id(tensor), name)
    if any(_depends_on_values(node) for node in module.graph.nodes):
        with torch.no_grad():
            _Measured(module).run(*pytree.tree_leaves(inputs), enable_io_processing=False)
    tensors: dict[str, str] = {}
    values: dict[str, Tensor] = {}
    name_enclosed(module, model)
    for node in module.graph.nodes:
        if node.op != "get_attr":
            continue
        value: Any = attrgetter(str(node.target))(module)
        if isinstance(value, FakeTensor):
            raise TraceError(
                f"forward makes {node.target} when it is first called, which a trace can't keep; run the model once on "
                "example inputs before pruning"
            )
        if isinstance(value, Tensor):
            tensors[node.name] = str(node.target)
            values[str(node.target)] = value
    canonical = {name: first.get(id(named.get(name, value)), name) for name, value in values.items()}
    return Graph(module, inputs, tensors, canonical, dynamic, batch_size(inputs), values)


def _export(model: nn.Module, inputs: Inputs, dynamic: bool) -> torch.export.ExportedProgram:
    tensors = [leaf for leaf, value in enumerate(pytree.tree_leaves(inputs)) if isinstance(value, Tensor)]
    return export(model, inputs, [(leaf, 0) for leaf in tensors] if dynamic else [])


def _export_or_explain(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    try:
        return _export(model, inputs, dynamic=False)
    except Exception as error:
        refuse_unfit(model, inputs, error)
        reason = str(error).strip().splitlines()
        raise TraceError(
            f"torch.export can't trace {type(model).__name__}: {reason[0] if reason else type(error).__name__}\n"
            "Remedy: make forward free of Python control flow that depends on tensor values (torch.cond, torch.where), "
            "or give surgeon the submodule that can be exported."
        ) from error


def refuse_unfit(model: nn.Module, inputs: Inputs, error: Exception) -> None:
    """Raise InvalidInputs when the model itself, a copy of it, can't run on these inputs: then export is not to blame.

    What is run is another copy, with inputs of its own: forward may write into its tensors, and into what it is given.
    """
    args, kwargs = pytree.tree_map_only(Tensor, lambda value: value.detach().clone(), inputs)
    runner = duplicate(model)
    try:
        with torch.no_grad(), untouched(model):
            runner(*args, **kwargs)
    except Exception as reason:  # noqa: BLE001  (the user's forward may raise anything)
        sizes = [tuple(t.shape) for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)]
        raise InvalidInputs(
            f"{type(model).__name__}.forward does not run on example inputs of shapes {sizes}: {reason}\n"
            "Remedy: pass example_inputs= a tensor, a tuple, or a dict of keyword inputs that forward takes."
        ) from error


def _batches(program: torch.export.ExportedProgram) -> list[torch.SymInt]:
    """The symbolic batch size of each input; none where one of them is a number."""
    user = set(program.graph_signature.user_inputs)
    sizes = [
        node.meta["val"].shape[0]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in user
        and isinstance(node.meta.get("val"), Tensor) and node.meta["val"].dim()
    ]
    symbolic = [size for size in sizes if isinstance(size, torch.SymInt)]
    return symbolic if len(symbolic) == len(sizes) else []
