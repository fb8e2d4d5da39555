"""Two independent proofs in float64 that the smaller model is the original less the removed units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from surgeon.errors import InvalidModel, NotEquivalent
from surgeon.frontend.trace import Graph
from surgeon.groups.coupling import Groups
from surgeon.groups.gains import Balance, evaluate, rescaled
from surgeon.groups.interpreter import Interpreter, double, precisely
from surgeon.rules import Kept, arguments, is_random, where
from surgeon.verification.certificate import Certificate
from surgeon.verification.masks import gathered, is_masked, masked, removed, without_removed
from surgeon.verification.reference import STATISTICS
from surgeon.verification.zeroed import Zeroed

TOLERANCE = 1e-9
#: By how many roundings a rescaled tensor may be off.
ROUNDINGS = 2


def certify(
    groups: Groups, kept: Kept, slim: Graph, pairs: Mapping[fx.Node, fx.Node], tolerance: float = TOLERANCE
) -> Certificate:
    """Hold the smaller graph against the original.

    `pairs` maps each operator of the original graph to the one in `slim` that stands for it. Both are run on the inputs
    of `slim`.

    Raises:
        NotEquivalent: an operator's result deviates by more than `tolerance`, relative to the largest magnitude in it;
            the message names the first such operator.
        InvalidModel: an output holds NaN, of which nothing can be proved.
    """
    inputs = checked_inputs(slim)
    statistics = groups.reductions(kept)
    full = Interpreter(groups.graph, inputs, parameter=without_removed(groups, kept), precision=double)
    zeroed = None if statistics else Zeroed(groups, kept, inputs, full)
    deviation, worst, count, results = _node_by_node(full, zeroed, groups, kept, slim, pairs, inputs, tolerance)
    for position, (output, _) in enumerate(results):
        if output.is_floating_point() and output.isnan().any():
            raise InvalidModel(
                f"output {position} of the model holds NaN on the example inputs, so nothing can be proved of it; "
                "pass example_inputs= on which the model gives numbers"
            )
    names = tuple(dict.fromkeys(f"{where(n)} over {axis.size} -> {kept.width(axis)}" for n, axis in statistics))
    per_output = tuple(relative(a, b) for a, b in results)
    reason = "statistics are taken over the kept units only" if zeroed is None else zeroed.reason
    whole: float | None = None
    if zeroed is not None and not reason:
        whole = max((relative(z, b) for z, (_, b) in zip(zeroed.outputs, results, strict=True)), default=0.0)
    if whole is not None and whole > tolerance:
        raise NotEquivalent(
            f"the original with its removed units' parameters set to zero differs from the smaller model by "
            f"{whole:.1e} (relative), though every operator agrees; please report this network"
        )
    norms = tuple(where(groups.gains[name].node) for name in rescaled(groups, kept))
    return Certificate(deviation, worst, count, per_output, whole, reason, names, tolerance, rescaled=norms)


def checked_inputs(graph: Graph) -> Any:
    """The example inputs, varied."""
    return varied(graph.inputs)


def varied(inputs: Any) -> Any:
    """Inputs; floating ones that are constant, and so would hide mistakes, are drawn at random."""
    generator = torch.Generator().manual_seed(0)

    def vary(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() and value.min() == value.max():
            return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device)
        return value

    return torch.utils._pytree.tree_map(vary, inputs)


def _node_by_node(
    full: Interpreter, zeroed: Zeroed | None, groups: Groups, kept: Kept, slim: Graph,
    pairs: Mapping[fx.Node, fx.Node], inputs: Any, tolerance: float,
) -> tuple[float, str, int, list[tuple[Tensor, Tensor]]]:
    small = Interpreter(slim, inputs, precision=double)
    balanced = {balance.node: balance for balance in groups.gains.values()}
    remaining = iter(small)
    passed: set[fx.Node] = set()
    worst, place, count = 0.0, "", 0
    results: list[tuple[Tensor, Tensor]] = []
    with precisely():
        for node in full:
            if node.op == "output":
                outputs = full.compute(node)
                results = list(zip(outputs, _advance(small, remaining, passed, slim.output), strict=True))
                if zeroed is not None:
                    zeroed.follow(node, outputs, outputs)
                break
            computed = reference(groups, kept, node, full)
            if zeroed is None or not zeroed.shares(node):
                value = masked(groups, kept, node, computed, full)
            else:
                value = computed if is_masked(groups, kept, node, computed) else masked(groups, kept, node, computed)
            if zeroed is not None:
                zeroed.follow(node, computed, value)
            if node in balanced:
                _hold_weights(groups, kept, node, value, balanced[node])
            full.set(node, value)
            full.drop(node)  # before the smaller model's node is computed and compared
            if node not in pairs:
                continue
            if pairs[node] in passed and not small.holds(pairs[node]):
                continue  # it only gives what was compared already, and nobody needs any more
            other = _advance(small, remaining, passed, pairs[node])
            if is_random(node):  # other numbers are drawn for another shape: go on with the same ones
                other = _same_draw(groups, kept, node, value, other)
                small.set(pairs[node], other)
            found = _deviation(groups, kept, node, value, other)
            count += node.op == "call_function"
            if found > tolerance:
                raise NotEquivalent(
                    f"{where(node)} ({node.name}) deviates by {found:.1e} (relative), more than {tolerance:.0e}: "
                    "it is the first operator of the smaller model that does not compute the original's result "
                    "less the removed units"
                )
            if found > worst:
                worst, place = found, where(node)
    return worst, place, count, results


def _hold_weights(groups: Groups, kept: Kept, node: fx.Node, value: Any, balance: Balance) -> None:
    """Hold what the rescaled tensor of a norm makes of the kept weights against what the original's made of them.

    They are equal but for the rounding of the rescaled tensor, which counts for more where terms of a sum cancel.
    """
    axes = groups.axes_of(node)[0]
    after = gathered(value[0] if isinstance(value, tuple | list) else value, axes, kept)
    deviation = relative(gathered(evaluate(balance.graph, node), axes, kept), after)
    left = without_removed(groups, kept)
    terms = gathered(evaluate(balance.graph, node, lambda name, each: left(name, each).abs()), axes, kept)
    epsilon = torch.finfo(balance.graph.tensor(balance.tensor).dtype).eps
    if deviation * float(after.abs().max()) > ROUNDINGS * epsilon * float(terms.max()):
        raise NotEquivalent(
            f"{where(node)} ({node.name}): the kept weights under this norm deviate by {deviation:.1e} (relative) from "
            "the original's, though they were rescaled to be the same; please report this network"
        )


def _advance(run: Interpreter, remaining: Iterator[fx.Node], passed: set[fx.Node], goal: fx.Node) -> Any:
    """Compute the remaining nodes up to `goal`, and give its value."""
    if run.holds(goal):
        return run.value(goal)
    for node in remaining:
        passed.add(node)
        value = run.compute(node)
        run.drop(node)
        if node is goal:
            return value
    raise NotEquivalent(f"{goal.name}: the smaller model computes its operators in another order")


def reference(groups: Groups, kept: Kept, node: fx.Node, run: Interpreter) -> Any:
    """The node's value at full size; a statistic over removed positions is taken over the kept ones."""
    reduced = groups.typed[node].reduced
    if not any(kept.changed(axis) for axis in reduced):
        return run.compute(node)
    name = node.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
    if name not in STATISTICS:
        raise NotEquivalent(f"{where(node)}: there is no reference for {name} over removed units")
    operand, formula = STATISTICS[name]
    given = arguments(node)
    axes = groups.axes[given[operand]]
    assert isinstance(axes, tuple)
    values = {key: fx.node.map_arg(value, run.value) for key, value in given.items()}
    values = {key: double(value) for key, value in values.items()}
    x = values[operand]
    mask = torch.ones_like(x, dtype=torch.float64)
    for dim, axis in enumerate(axes):
        if kept.changed(axis):
            mask.index_fill_(dim, removed(kept, axis, x, dim), 0)
    return formula(values, mask)


def _same_draw(groups: Groups, kept: Kept, node: fx.Node, full: Any, small: Any) -> Any:
    """What was drawn at full size, at its kept positions, in place of what was drawn at the smaller size."""
    axes = groups.axes[node]
    if isinstance(full, Tensor) and isinstance(small, Tensor) and isinstance(axes, tuple):
        drawn = gathered(full, axes, kept)
        return drawn if drawn.shape == small.shape else small
    return small


def _deviation(groups: Groups, kept: Kept, node: fx.Node, full: Any, small: Any) -> float:
    axes = groups.axes[node]
    if isinstance(full, Tensor) and isinstance(small, Tensor) and isinstance(axes, tuple):
        return relative(gathered(full, axes, kept), small)
    if isinstance(full, tuple | list) and isinstance(axes, list):
        each = [
            relative(gathered(f, a, kept), s)
            for f, s, a in zip(full, small, axes, strict=False)
            if isinstance(f, Tensor) and isinstance(s, Tensor) and len(a) == f.dim()
        ]
        return max(each, default=0.0)
    return 0.0


def relative(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|; equal infinities and NaN in the same places do not deviate."""
    if a.shape != b.shape:
        return float("inf")
    if a.numel() == 0:
        return 0.0
    if not a.is_floating_point() and not a.is_complex():
        return 0.0 if torch.equal(a, b) else float("inf")
    if a.is_floating_point():
        low, high = (a - b).aminmax()
        far, near = b.aminmax()
        largest, most = float(torch.maximum(high, -low)), float(torch.maximum(near, -far))
        if 0 < most < float("inf") and largest < float("inf"):  # neither is NaN
            return largest / most
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, 0.0, (a - b).abs())
    scale = torch.where(b.isfinite(), b.abs(), 0.0).max()
    largest = float(difference.max())
    if largest != largest:
        return float("inf")
    return largest / float(scale) if scale > 0 else (0.0 if largest == 0 else float("inf"))
