"""Builds the smaller model: in the user's own class where that is provably right, else as a graph of its operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.errors import InvalidArgument, SurgeonError, SurgeryError, first_line
from surgeon.frontend.copies import duplicate
from surgeon.frontend.free_sizes import FreeSizes
from surgeon.frontend.functionalize import write_again
from surgeon.frontend.trace import Graph, refuse_unfit, skeleton, trace_inputs, unread
from surgeon.groups.coupling import Groups
from surgeon.rules import Kept
from surgeon.support.process_wide import uncollected
from surgeon.surgery.attributes import NAMED_ALIKE, Attribute, Renumbered, module_path, renumber
from surgeon.surgery.canonical import Stream, difference
from surgeon.surgery.follow import follow_tensors
from surgeon.surgery.input_sizes import check_on_entry
from surgeon.surgery.ladder import Rung, ladder
from surgeon.surgery.leaves import restore_leaves
from surgeon.surgery.record import Stand, record
from surgeon.surgery.rewrite import assemble, check_shapes, printed, slim_graph
from surgeon.surgery.same import pair
from surgeon.surgery.tensors import like, slim_tensors, take
from surgeon.verification.certificate import SecondSize
from surgeon.verification.second_size import certify_second

FORMS = ("auto", "module", "graph")
#: How often another reading of the attributes in doubt is tried: each takes a trace.
MOST_TRIALS = 4


# A graph, and for each operator of the original's graph the one in it that stands for it.
Retraced = tuple[Graph, dict[fx.Node, fx.Node]]


@dataclass(frozen=True)
class Operation:
    """The smaller model and how it came to be.

    `module` is what the user gets; `form` is "module" (the user's own class) or "graph" (a `torch.fx.GraphModule`), for
    the `reason` given. `renumbered` lists the integers that were rewritten: module, attribute, old, new.
    """

    module: nn.Module
    form: str
    reason: str
    retrace: Callable[[], Retraced] = field(repr=False)
    rung: Rung = field(repr=False)
    second_size: SecondSize | None = None
    renumbered: tuple[tuple[str, str, object, object], ...] = ()

    @property
    def traced(self) -> Graph:
        """The graph of `module`, which is traced when it is first asked for.

        Raises:
            SurgeryError: it is not the predicted one, although `module` made the predicted calls.
        """
        return self._retraced[0]

    @property
    def pairs(self) -> Mapping[fx.Node, fx.Node]:
        """Each operator of the original graph with the one in `traced` that stands for it. Raises as `traced`."""
        return self._retraced[1]

    @cached_property
    def _retraced(self) -> Retraced:
        return self.retrace()


@dataclass(frozen=True)
class _Prediction:
    """What the smaller model must be: its tensors, and each operator of the original graph as it is called now.

    `calls` is what these operators call in their turn; None where recording does not tell, or is not wanted.
    """

    rung: Rung
    copies: Mapping[fx.Node, fx.Node]
    tensors: Mapping[str, Tensor]
    stand: Stand
    calls: Stream | None


def operate(
    model: nn.Module, groups: Groups, keep: Mapping[int, Iterable[int]], form: str = "auto", *, retrace: bool = False,
    sizes: FreeSizes | None = None,
) -> Operation:
    """The model with only the kept units; `model` is left as it is.

    `keep` maps a leaf's id to its kept units. `form` may be "module" or "graph" to insist on one. The smaller model is
    held against the predicted graph by the operators that it calls, and by its own graph where these do not tell; with
    `retrace` by its own graph in any case, which takes longer. A graph is made for all `sizes` of the inputs that the
    model leaves free, and refuses others; without them it is made for those of the example inputs, and refuses none.

    Raises:
        InvalidArgument: there is no such form.
        SurgeryError: the rewritten graph does not have the shapes that its axes predict, or `form="module"` and the
            user's class can't hold the smaller tensors; the message says why.
    """
    if form not in FORMS:
        raise InvalidArgument(f"form={form!r} is none that surgeon knows; choose one of {', '.join(FORMS)}")
    with uncollected():
        return _operate(model, groups, keep, form, retrace, sizes)


def _operate(
    model: nn.Module, groups: Groups, keep: Mapping[int, Iterable[int]], form: str, retrace: bool,
    sizes: FreeSizes | None,
) -> Operation:
    reason = "asked for"
    if form != "graph":
        made = _in_own_class(model, _predict(Rung(groups, groups.kept(keep), sizes), retrace))
        if isinstance(made, Operation):
            return made
        reason = made
        if form == "module":
            raise SurgeryError(f"{type(model).__name__} can't hold the smaller tensors in its own class: {reason}")
    if sizes is None:
        return _as_graph(model, Rung(groups, groups.kept(keep)), retrace, reason)
    error: SurgeonError | None = None
    why: list[str] = []
    for rung in ladder(model, groups, keep, sizes, why):
        try:
            made = _as_graph(model, rung, retrace, reason)
            return replace(made, second_size=_at_second_size(model, made))
        except SurgeonError as failed:
            error = error or failed
            why.append(first_line(failed))
    assert error is not None
    raise error


def _at_second_size(model: nn.Module, made: Operation) -> SecondSize | None:
    rung = made.rung
    if rung.sizes is None:
        return None
    return certify_second(model, made.module, rung.groups, rung.kept, rung.sizes, whole=False, symbolic=rung.proved)


def _predict(rung: Rung, retrace: bool) -> _Prediction:
    groups, kept = rung.groups, rung.kept
    _, copies = slim_graph(groups, kept)
    tensors = slim_tensors(groups, kept)
    stand = Stand()
    calls = check_shapes(groups, kept, copies, tensors, stand)
    return _Prediction(rung, copies, tensors, stand, None if retrace else calls)


def _as_graph(model: nn.Module, rung: Rung, retrace: bool, reason: str) -> Operation:
    predicted = _predict(rung, retrace)
    module = as_graph(model, rung.groups, rung.kept, predicted.tensors)
    if rung.sizes is not None:
        check_on_entry(module, rung.sizes, rung.conditions)
    found = _hold(module, predicted)
    if isinstance(found, str):
        raise SurgeryError(f"the smaller graph of {type(model).__name__} is not the predicted one: {found}")
    _copy_modes(model, module)
    return Operation(module, "graph", reason, found, rung)


def _in_own_class(model: nn.Module, predicted: _Prediction) -> Operation | str:
    """The operation in the user's own class, or why that can't be.

    Where several sizes of a module were equal, which of them an attribute is has to be tried.
    """
    first = ""
    groups, kept = predicted.rung.groups, predicted.rung.kept
    trials: list[dict[Attribute, int]] = [{}]
    for trial in trials:
        candidate, renumbered = own_class(model, groups, kept, predicted.tensors, trial)
        found = _train_only(candidate, groups) or _hold(candidate, predicted)
        if not isinstance(found, str):
            _copy_modes(model, candidate)
            reason, rung = "sizes rewritten on its modules", predicted.rung
            return Operation(candidate, "module", reason, found, rung, renumbered=renumbered.changes)
        first = first or found
        if not trial:
            doubts = [{key: size} for key, sizes in renumbered.doubts.items() for size in sizes]
            trials += doubts[:MOST_TRIALS]
    return first


def _hold(candidate: nn.Module, predicted: _Prediction) -> str | Callable[[], Retraced]:
    """How to get the candidate's own graph, where the candidate is the predicted one; or why it is not."""
    groups, copies = predicted.rung.groups, predicted.copies
    if predicted.calls is not None:
        try:
            calls = record(skeleton(candidate).eval(), groups.graph.inputs, predicted.stand)
            same = calls is not None and difference(predicted.calls, calls) is None
        except Exception as error:  # noqa: BLE001  (the user's forward may raise anything)
            try:
                refuse_unfit(skeleton(candidate).eval(), groups.graph.inputs, error)
            except SurgeonError as unfit:
                return _does_not_run(unfit)
            same = False
        if same:
            return partial(_predicted, candidate, groups, copies)
    found = _retrace(candidate, groups, copies)
    return found if isinstance(found, str) else lambda: found


def _predicted(candidate: nn.Module, groups: Groups, copies: Mapping[fx.Node, fx.Node]) -> Retraced:
    found = _retrace(candidate, groups, copies)
    if isinstance(found, str):
        raise SurgeryError(f"{type(candidate).__name__} is not the predicted smaller graph once it is traced: {found}")
    return found


def own_class(
    model: nn.Module,
    groups: Groups,
    kept: Kept,
    tensors: Mapping[str, Tensor],
    chosen: Mapping[Attribute, int] | None = None,
) -> tuple[nn.Module, Renumbered]:
    """A copy of the user's module with smaller tensors and rewritten integers; not yet known to be right."""
    slim = skeleton(model)
    new: dict[int, Tensor] = {}
    for path, module in slim.named_modules(remove_duplicate=False):
        for table in _tables(module):
            for key, value in table.items():
                name = f"{path}.{key}" if path else key
                if isinstance(value, Tensor) and name in tensors:
                    new[id(value)] = tensors[name]
    for module in slim.modules():
        for table in _tables(module):
            for key, value in list(table.items()):
                if isinstance(value, Tensor):
                    if id(value) not in new:
                        new[id(value)] = like(value, take(value, {}))
                    table[key] = new[id(value)]
    return slim, renumber(slim, groups, kept, chosen)


def _tables(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Where a module keeps its tensors: parameters, buffers and plain attributes."""
    return module._parameters, module._buffers, vars(module)


def _retrace(candidate: nn.Module, groups: Groups, copies: Mapping[fx.Node, fx.Node]) -> str | Retraced:
    """The candidate's own graph, paired with the original's operators; or why it is not the predicted graph."""
    why = ""
    # Fixed sizes trace in half the time; where they hide how a number came about, it may not be found to be a size.
    for dynamic in (False, True) if groups.graph.dynamic else (False,):
        try:
            traced = trace_inputs(candidate, groups.graph.inputs, dynamic)
        except SurgeonError as error:
            return _does_not_run(error)
        found = pair(groups, traced, copies)
        if not isinstance(found, str):
            return traced, found
        why = found
    return why


def _does_not_run(error: SurgeonError) -> str:
    return f"its Python code does not run at the new sizes ({first_line(error)})"


def _train_only(candidate: nn.Module, groups: Groups) -> str:
    """Why the candidate can't run in train mode, where it has parameters that eval mode does not read; else empty."""
    idle = unread(groups.graph, candidate)
    if not idle:
        return ""
    args, kwargs = groups.graph.inputs
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            duplicate(candidate).train()(*args, **kwargs)
    except Exception as error:  # noqa: BLE001  (the user's forward may raise anything)
        return f"parts that run in train mode only ({idle[0]} …) do not fit the smaller rest ({first_line(error)})"
    return ""


def as_graph(
    model: nn.Module, groups: Groups, kept: Kept, tensors: Mapping[str, Tensor]
) -> fx.GraphModule:
    """The smaller graph as a module, with torch.nn's leaf modules under their original names."""
    read = {groups.graph.tensors[n.name] for n in groups.graph.nodes if n.name in groups.graph.tensors and n.users}
    graph, copies = slim_graph(groups, kept)
    follow_tensors(model, groups.graph, copies)
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    write_again(graph)
    module = assemble(graph, {name: value for name, value in tensors.items() if name in read}, _persistent(model))
    numbers: dict[str, dict[str, Any]] = {}
    unlike: set[str] = set()
    for node, typed in groups.typed.items():
        path = module_path(node)
        if path is not None and typed.args.keys() & set(NAMED_ALIKE):
            for name, new in printed(node, typed, kept).items():
                if name in NAMED_ALIKE and numbers.setdefault(path, {}).setdefault(name, new) != new:
                    unlike.add(path)
    restore_leaves(module, model, numbers, unlike)
    return module


def _copy_modes(model: nn.Module, slim: nn.Module) -> None:
    """Train or eval, module by module, as in the original."""
    slim.train(model.training)
    modes = {name: module.training for name, module in model.named_modules(remove_duplicate=False)}
    for name, module in slim.named_modules():
        while name not in modes:  # a part of the graph's own goes with the module that it was traced in
            name = name.rpartition(".")[0]
        module.training = modes[name]


def _persistent(model: nn.Module) -> set[str]:
    return set(model.state_dict(keep_vars=True))

