"""Recurrent layers: their hidden units are shared by gates, layers, directions and the initial state."""

from __future__ import annotations

from typing import Any

from torch import fx

from surgeon.ir.axes import Axis, concat
from surgeon.ir.operators import operator_name
from surgeon.rules.base import Axes, Context, Typed, rule, where

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input")
def recurrent(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """Input (N, L, I) with batch_first, else (L, N, I); weights (gates·hidden, …), stacked by layer and direction.

    An LSTM may project its hidden units by a weight (projected, hidden): what is handed on are the projected ones then.
    """
    kind = operator_name(node).removeprefix("surgeon::packed_")
    why = f"{where(node)}: hidden units do not align"
    states = [c.of(h) for h in (a["hx"] if isinstance(a["hx"], tuple | list) else [a["hx"]])]
    directions = 2 if a["bidirectional"] else 1
    parameters = [c.of(p) for p in a["params"]]
    each = 4 if a["has_biases"] else 2
    projected = len(parameters) != each * a["num_layers"] * directions
    each += projected
    x = c.of(a["input"])
    out, hidden = states[0][-1], states[-1][-1]
    if not projected:
        c.unify(out, hidden, why)
    step, batch = (x[-2], x[0]) if len(x) == 3 and a["batch_first"] else (x[0], x[-2] if len(x) == 3 else None)
    c.pin((step,), f"{where(node)}: time axis")
    feature: Axis = x[-1]
    for layer in range(a["num_layers"]):
        for direction in range(directions):
            index = (layer * directions + direction) * each
            own = parameters[index : index + each]
            c.unify(feature, own[0][1], why)
            c.unify(out, own[1][1], why)
            if projected:
                c.unify(out, own[-1][0], why)
                c.unify(hidden, own[-1][1], why)
            for axes in own[: each - projected]:
                _gated(node, axes[0], _GATES[kind], hidden, c)
        feature = concat([out] * directions)
    for state in states:
        c.pin(state[:1], f"{where(node)}: layers and directions")
        if batch is not None and len(state) == 3:
            c.unify(batch, state[1], why)
    gates: Axes = tuple(axis for own in parameters for axis in own[1:])
    macs: list[Axes] = [(*x[:-1], *own) for own in parameters if len(own) == 2]
    return Typed([(*x[:-1], feature), *states], contracted=gates, macs=macs)


def _gated(node: fx.Node, rows: Axis, gates: int, hidden: Axis, c: Context) -> None:
    """The rows of a weight or bias are (gates hidden)."""
    gate, units = c.divide(rows, [gates, hidden.size], f"{where(node)}: hidden units do not align")
    c.pin((gate,), f"{where(node)}: gates")
    c.unify(units, hidden, f"{where(node)}: hidden units do not align")


@rule("surgeon::packed_lstm", "surgeon::packed_gru", "surgeon::packed_rnn_tanh", "surgeon::packed_rnn_relu")
def packed(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """Input (L·N, I), the steps of packed sequences one after the other, and the sizes of their batches (L,)."""
    c.pin(c.of(a["sizes"]), f"{where(node)}: lengths of sequences")
    return recurrent(node, {**a, "batch_first": False}, c)


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(node: fx.Node, a: dict[str, Any], c: Context) -> Typed:
    """One step: input (N, I), states (N, H), weights (gates·H, I) and (gates·H, H); the new states."""
    kind = operator_name(node).removesuffix("_cell")
    why = f"{where(node)}: hidden units do not align"
    states = [c.of(h) for h in (a["hx"] if isinstance(a["hx"], tuple | list) else [a["hx"]])]
    x, ins, own = c.of(a["input"]), c.of(a["w_ih"]), c.of(a["w_hh"])
    hidden = states[0][-1]
    c.unify(x[-1], ins[1], why)
    c.unify(hidden, own[1], why)
    for state in states:
        c.broadcast([x[:-1], state[:-1]], why)
        c.unify(hidden, state[-1], why)
    for axes in (ins, own, *(c.of(a[name]) for name in ("b_ih", "b_hh") if a[name] is not None)):
        _gated(node, axes[0], _GATES[kind], hidden, c)
    out = (*x[:-1], hidden)
    macs: list[Axes] = [(*x[:-1], *ins), (*x[:-1], *own)]
    return Typed([out] * len(states) if kind == "lstm" else out, contracted=(ins[1], own[1]), macs=macs)
