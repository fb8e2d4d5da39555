"""Builds the smaller model: in the user's own class where that is provably right, else as a graph of its operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from surgeon.errors import InvalidArgument, SurgeonError, SurgeryError, first_line
from surgeon.frontend.copies import duplicate
from surgeon.frontend.free_sizes import FreeSizes
from surgeon.frontend.functionalize import write_again
from surgeon.frontend.isolation import quietly, untouched
from surgeon.frontend.trace import Graph, Inputs, batched, refuse_unfit, skeleton, trace_inputs, unread
from surgeon.groups.coupling import Groups
from surgeon.rules import Kept, where
from surgeon.support.process_wide import uncollected
from surgeon.surgery.attributes import NAMED_ALIKE, Renumbered, module_path
from surgeon.surgery.canonical import Stream, alike_but_for_sizes, difference
from surgeon.surgery.elsewhere import used_beyond
from surgeon.surgery.follow import follow_tensors
from surgeon.surgery.input_sizes import check_on_entry
from surgeon.surgery.ladder import Rung, ladder
from surgeon.surgery.leaves import restore_leaves
from surgeon.surgery.meanings import Reading
from surgeon.surgery.own_class import own_class
from surgeon.surgery.record import Stand, record
from surgeon.surgery.replay import Paired, replay
from surgeon.surgery.rewrite import Predicted, assemble, check_shapes, printed, slim_graph
from surgeon.surgery.same import pair
from surgeon.surgery.tensors import slim_tensors
from surgeon.verification.certificate import SecondSize
from surgeon.verification.second_size import certify_second

FORMS = ("auto", "module", "graph")
#: What stands in an error in front of the reason why a model's class can't hold a plan.
OWN_CLASS = "in its own class: "


@dataclass(frozen=True)
class Operation:
    """The smaller model and how it came to be.

    `module` is what the user gets; `form` is "module" (the user's own class) or "graph" (a `torch.fx.GraphModule`), for
    the `reason` given. `recorded` says that its graph is made of the calls that it was seen to make, and not exported.
    `rung` is what it was made from, `second_size` what was seen of a graph at another size. `renumbered` lists the
    integers that were rewritten: module, attribute, old, new; `configuration` says what became of the configurations
    that the model holds.
    """

    module: nn.Module
    form: str
    reason: str
    paired: Paired = field(repr=False)
    recorded: bool
    rung: Rung = field(repr=False)
    second_size: SecondSize | None = None
    renumbered: tuple[tuple[str, str, object, object], ...] = ()
    configuration: tuple[str, ...] = ()

    @property
    def traced(self) -> Graph:
        """The graph of what `module` computes."""
        return self.paired[0]

    @property
    def pairs(self) -> Mapping[fx.Node, fx.Node]:
        """Each operator of the original graph with the one in `traced` that stands for it."""
        return self.paired[1]


class _Prediction:
    """What the smaller model must be: its tensors, and each operator of the original graph as it is called now.

    `faults` keeps for what a recording raised why the candidate does not run; empty where it runs on real tensors.

    Raises SurgeryError where the rewritten graph is asked for, and does not have the shapes that its axes predict.
    """

    def __init__(self, rung: Rung, retrace: bool) -> None:
        self.rung, self.retrace = rung, retrace
        self.tensors = slim_tensors(rung.groups, rung.kept)
        self.stand = Stand()
        self.faults: dict[str, str] = {}

    @cached_property
    def copies(self) -> Mapping[fx.Node, fx.Node]:
        """The operators of the smaller graph by those of the original one."""
        return self._made[0]

    @cached_property
    def calls(self) -> Predicted | None:
        """What these operators call in their turn; None where recording does not tell, or is not wanted."""
        return None if self.retrace else self._made[1]

    @cached_property
    def _made(self) -> tuple[Mapping[fx.Node, fx.Node], Predicted | None]:
        groups, kept = self.rung.groups, self.rung.kept
        _, copies = slim_graph(groups, kept)
        return copies, check_shapes(groups, kept, copies, self.tensors, self.stand)


def operate(
    model: nn.Module, groups: Groups, keep: Mapping[int, Iterable[int]], form: str = "auto", *, retrace: bool = False,
    sizes: FreeSizes | None = None, reading: Reading | None = None,
) -> Operation:
    """The model with only the kept units; `model` is left as it is.

    `keep` maps a leaf's id to its kept units. `form` may be "module" or "graph" to insist on one. The smaller model is
    held against the predicted graph by the operators that it calls, and by its own graph where these do not tell; with
    `retrace` by its own graph in any case, which takes longer. A graph is made for all `sizes` of the inputs that the
    model leaves free, and refuses others; without them it is made for those of the example inputs, and refuses none.
    `reading` is of the same model and groups, where several choices are carried out on them.

    Raises:
        InvalidArgument: there is no such form.
        SurgeryError: the rewritten graph does not have the shapes that its axes predict, or `form="module"` and the
            user's class can't hold the smaller tensors; the message says why.
    """
    if form not in FORMS:
        raise InvalidArgument(f"form={form!r} is none that surgeon knows; choose one of {', '.join(FORMS)}")
    with uncollected():
        return _operate(model, groups, keep, form, retrace, sizes, reading or Reading(model, groups))


def _operate(
    model: nn.Module, groups: Groups, keep: Mapping[int, Iterable[int]], form: str, retrace: bool,
    sizes: FreeSizes | None, reading: Reading,
) -> Operation:
    reason = "asked for"
    rungs = _Rungs(model, groups, keep, sizes) if sizes is not None else None
    if form != "graph":
        made: Operation | str = _runs_elsewhere(model, groups, sizes, rungs)
        made = made or _in_own_class(model, _Prediction(Rung(groups, groups.kept(keep), sizes), retrace), reading)
        if isinstance(made, Operation):
            return made
        reason = made
        if form == "module":
            raise SurgeryError(f"{type(model).__name__} can't hold the smaller tensors {OWN_CLASS}{reason}")
    if rungs is None:
        return _as_graph(model, Rung(groups, groups.kept(keep)), retrace, reason)
    error: SurgeonError | None = None
    for rung in rungs:
        try:
            made = _as_graph(model, rung, retrace, reason)
            return replace(made, second_size=_at_second_size(model, made))
        except SurgeonError as failed:
            error = error or failed
            rungs.why.append(first_line(failed))
    assert error is not None
    raise error


class _Rungs:
    """The rungs of a ladder, each made when it is first asked for; `why` has the reasons of those that are left out."""

    def __init__(
        self, model: nn.Module, groups: Groups, keep: Mapping[int, Iterable[int]], sizes: FreeSizes
    ) -> None:
        self.why: list[str] = []
        self._left = ladder(model, groups, keep, sizes, self.why)
        self._made: list[Rung] = []

    def __iter__(self) -> Iterator[Rung]:
        yield from self._made
        for rung in self._left:
            self._made.append(rung)
            yield rung


def _runs_elsewhere(model: nn.Module, groups: Groups, sizes: FreeSizes | None, rungs: _Rungs | None) -> str:
    """Why other sizes of the inputs may run parts of the model that are not cut with the rest; else empty.

    Those are parts whose parameters no operator reads, but one at a size at which the code takes another branch.
    Whoever can't be traced with free sizes is taken to have none.
    """
    if sizes is None or rungs is None or not sizes.free:
        return ""
    idle = set(unread(groups.graph, model))
    if groups.graph.train_only is not None:
        idle &= set(unread(groups.graph.train_only, model))
    if not idle:
        return ""
    if (why := _unfit_for_training(model, groups.graph.inputs)) and groups.graph.train_only is None:
        return (
            f"its train mode does not run on the example inputs ({why}); give some as for training, with targets, so "
            f"that what runs in it alone is cut with the rest ({min(idle)} …)"
        )
    rung = next(iter(rungs))
    fixed = rung.sizes is None or len(rung.sizes.free) < len(sizes.free)
    if rungs.why or not (fixed or used_beyond(model, rung, idle)):
        return ""
    return f"at other sizes, parts run that are not cut with the rest ({min(idle)} …)"


def _at_second_size(model: nn.Module, made: Operation) -> SecondSize | None:
    rung = made.rung
    if rung.sizes is None:
        return None
    return certify_second(model, made.module, rung.groups, rung.kept, rung.sizes, whole=False, symbolic=rung.proved)


def _as_graph(model: nn.Module, rung: Rung, retrace: bool, reason: str) -> Operation:
    for node in rung.groups.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "surgeon":
            raise SurgeryError(
                f"{type(model).__name__} can't be made a graph, since {where(node)} stands for what no graph holds, "
                f"such as packed sequences; and not in its own class: {reason}"
            )
    predicted = _Prediction(rung, retrace)
    module = as_graph(model, rung.groups, rung.kept, predicted.tensors)
    if rung.sizes is not None:
        check_on_entry(module, rung.sizes, rung.conditions)
    found = _hold(module, predicted)
    if isinstance(found, str):
        raise SurgeryError(f"the smaller graph of {type(model).__name__} is not the predicted one: {found}")
    _copy_modes(model, module)
    return Operation(module, "graph", reason, *found, rung)


def _in_own_class(model: nn.Module, predicted: _Prediction, reading: Reading) -> Operation | str:
    """The operation in the user's own class, or why that can't be.

    Where several sizes of a module were equal, which of them an attribute is may have to be found out.
    """
    groups, kept = predicted.rung.groups, predicted.rung.kept
    plain = own_class(model, groups, kept, predicted.tensors)

    def understood() -> tuple[nn.Module, Renumbered] | None:
        meanings = {key: meaning for key, meaning in reading.meanings.items() if key in plain[1].doubts}
        return own_class(model, groups, kept, predicted.tensors, meanings) if meanings else None

    tries: list[Callable[[], tuple[nn.Module, Renumbered] | None]] = [lambda: plain]
    if plain[1].doubts:
        tries.insert(0 if reading.was_asked else 1, understood)
    failed = ""
    for made in tries:
        if (made_so := made()) is None:
            continue
        candidate, renumbered = made_so
        found = _train_only(candidate, groups) or _hold(candidate, predicted)
        if not isinstance(found, str):
            break
        failed = failed or found
    else:
        return failed
    _copy_modes(model, candidate)
    reason, rung = "sizes rewritten on its modules", predicted.rung
    return Operation(candidate, "module", reason, *found, rung, renumbered=renumbered.changes)


def _hold(candidate: nn.Module, predicted: _Prediction) -> tuple[Paired, bool] | str:
    """The candidate's own graph and whether it is recorded, if the candidate is the predicted one; or why it is not."""
    groups = predicted.rung.groups
    if not predicted.retrace:
        calls: Stream | None = None
        try:
            calls = record(skeleton(candidate).eval(), groups.graph.inputs, predicted.stand)
        except Exception as error:  # noqa: BLE001  (the user's forward may raise anything)
            said = f"{type(error).__name__}: {error}"
            if said not in predicted.faults:
                try:
                    refuse_unfit(skeleton(candidate).eval(), groups.graph.inputs, error)
                    predicted.faults[said] = ""
                except SurgeonError as unfit:
                    predicted.faults[said] = _does_not_run(unfit)
            if predicted.faults[said]:
                return predicted.faults[said]
        if calls is not None and (want := predicted.calls) is not None:
            unlike = difference(want.stream, calls)
            if unlike is None:
                inputs, calls = _one_sample(candidate, predicted, calls)
                paired = replay(groups, inputs, predicted.tensors, want, calls)
                if paired is not None:
                    return paired, True
            elif unlike.by_shape:
                return f"{where(want.origin(unlike.call))}{unlike.words}"  # other calls may be the same ones in a graph
    found = _retrace(candidate, groups, predicted.copies)
    return found if isinstance(found, str) else (found, False)


def _one_sample(candidate: nn.Module, predicted: _Prediction, calls: Stream) -> tuple[Inputs, Stream]:
    """Inputs to hold the candidate's values against the original's on, and its calls on them.

    Of equal samples, as where one was repeated for the trace, it is one, unless it is treated otherwise than several.
    """
    graph = predicted.rung.groups.graph
    alone = batched(graph.inputs, 1)
    if not graph.dynamic or graph.batch == 1 or not _repeats(graph.inputs, alone):
        return graph.inputs, calls
    try:
        found = record(skeleton(candidate).eval(), alone, predicted.stand)
    except Exception:  # noqa: BLE001  (the user's forward may raise anything; it takes several)
        return graph.inputs, calls
    return (alone, found) if found is not None and alike_but_for_sizes(calls, found) else (graph.inputs, calls)


def _repeats(inputs: Inputs, alone: Inputs) -> bool:
    pairs = zip(pytree.tree_leaves(inputs), pytree.tree_leaves(alone), strict=True)
    return all(torch.equal(every, one.expand(every.shape)) for every, one in pairs if isinstance(every, Tensor))


def _retrace(candidate: nn.Module, groups: Groups, copies: Mapping[fx.Node, fx.Node]) -> str | Paired:
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
    if idle and (why := _unfit_for_training(candidate, groups.graph.inputs)):
        return f"parts that run in train mode only ({idle[0]} …) do not fit the smaller rest ({why})"
    return ""


def _unfit_for_training(model: nn.Module, inputs: Inputs) -> str:
    """Why a model does not run in train mode; empty where it does."""
    args, kwargs = inputs
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), quietly(), untouched(model):
            duplicate(model).train()(*args, **kwargs)
    except Exception as error:  # noqa: BLE001  (the user's forward may raise anything)
        return first_line(error)
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
    widths = {axis.size for axes in groups.tensors.values() for axis in axes if kept.changed(axis)}
    widths |= {leaf.size for axes in groups.tensors.values() for leaf in groups.leaves(axes) if kept.changed(leaf)}
    module.take_from(model, widths)
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

