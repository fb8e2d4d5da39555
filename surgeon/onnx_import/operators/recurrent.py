"""LSTM, GRU and RNN, of one layer in one or both directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.table import NotCovered, operator
from surgeon.onnx_import.values import Numbers, Value, as_tensor

#: The order of torch's gates in ONNX's: input, output, forget, cell; update, reset, hidden.
_LSTM, _GRU = (0, 2, 3, 1), (1, 0, 2)
_DEFAULT = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


@operator("LSTM", mixed=True)
def lstm(
    o: Operator, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Value | None = None,
    h: Value | None = None, c: Value | None = None, peepholes: Tensor | None = None,
) -> list[Tensor]:
    if peepholes is not None or o.get("input_forget", 0):
        raise NotCovered("peepholes, or an input gate coupled with the forget gate")
    layer = _Layer(o, x, w, r, b, lengths, _LSTM)
    states = (layer.state(h), layer.state(c))
    y, hn, cn = torch.lstm(
        layer.x, states, layer.parameters, b is not None, 1, 0.0, False, layer.directions == 2, False
    )
    return layer.results(y, hn, cn)


@operator("GRU", mixed=True)
def gru(
    o: Operator, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Value | None = None,
    h: Value | None = None,
) -> list[Tensor]:
    layer = _Layer(o, x, w, r, b, lengths, _GRU)
    if not o.get("linear_before_reset", 0):
        return layer.results(*_reset_first(layer, h))
    y, hn = torch.gru(
        layer.x, layer.state(h), layer.parameters, b is not None, 1, 0.0, False, layer.directions == 2, False
    )
    return layer.results(y, hn)


@operator("RNN", mixed=True)
def rnn(
    o: Operator, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Value | None = None,
    h: Value | None = None,
) -> list[Tensor]:
    kinds = {str(each).lower() for each in o.get("activations", ("Tanh",))}
    if len(kinds) != 1 or not kinds <= {"tanh", "relu"}:
        raise NotCovered(f"the activations {', '.join(sorted(kinds))}")
    layer = _Layer(o, x, w, r, b, lengths, (0,), activations=False)
    run: Any = torch.rnn_relu if kinds == {"relu"} else torch.rnn_tanh
    y, hn = run(layer.x, layer.state(h), layer.parameters, b is not None, 1, 0.0, False, layer.directions == 2, False)
    return layer.results(y, hn)


class _Layer:
    """A recurrent layer as torch takes it: input (length, batch, features), weights of each direction."""

    def __init__(
        self, o: Operator, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lengths: Value | None,
        order: tuple[int, ...], activations: bool = True,
    ) -> None:
        self.directions = int(w.shape[0])
        self.hidden, self._order, self._batch_first = r.shape[2], order, bool(o.get("layout", 0))
        wanted = _DEFAULT[o.kind] * self.directions
        given = tuple(o.get("activations", ()) or wanted)
        if activations and tuple(str(each).lower() for each in given) != tuple(each.lower() for each in wanted):
            raise NotCovered(f"the activations {', '.join(given)}")
        if o.get("clip", 0.0):
            raise NotCovered("clipped cells")
        if lengths is not None and not _whole(lengths, x.shape[1 if self._batch_first else 0]):
            raise NotCovered("sequences of several lengths")
        x = x.transpose(0, 1) if self._batch_first else x
        self._reverse = o.get("direction", "forward") == "reverse"
        self.x = x.flip(0) if self._reverse else x
        self.parameters: list[Tensor] = []
        for side in range(self.directions):
            self.parameters += [self._gates(w[side]), self._gates(r[side])]
            if b is not None:
                ours, theirs = b[side].chunk(2)
                self.parameters += [self._gates(ours), self._gates(theirs)]

    def _gates(self, value: Tensor) -> Tensor:
        if len(self._order) == 1:
            return value
        parts = value.chunk(len(self._order), 0)
        return torch.cat([parts[place] for place in self._order], 0)

    def state(self, value: Value | None) -> Tensor:
        if value is None:
            return self.x.new_zeros((self.directions, self.x.shape[1], self.hidden))
        found = as_tensor(value, self.x.device)
        found = found.transpose(0, 1) if self._batch_first else found
        wanted = (self.directions, self.x.shape[1], self.hidden)
        # torch reads beyond the end of a smaller one.
        if found.dim() != 3 or any(have != want for have, want in zip(found.shape, wanted, strict=True)):
            raise ValueError(f"a state of {tuple(found.shape)}, where (directions, batch, hidden) are {wanted}")
        return found

    def results(self, y: Tensor, *states: Tensor) -> list[Tensor]:
        y = y.flip(0) if self._reverse else y
        if self.directions == 1:
            y = y.unsqueeze(1)
        else:
            y = y.unflatten(2, (self.directions, -1)).transpose(1, 2)
        if self._batch_first:
            return [y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in states)]
        return [y, *states]


def _whole(lengths: Value, size: Any) -> bool:
    """Whether the lengths of all sequences are known to be the whole."""
    return isinstance(lengths, Numbers) and isinstance(size, int) and all(each == size for each in lengths.items)


def _reset_first(layer: _Layer, h: Value | None) -> tuple[Tensor, Tensor]:
    """A GRU that resets the state before it is multiplied, step by step."""
    starts = layer.state(h)
    outputs, states = [], []
    each = len(layer.parameters) // layer.directions
    for side in range(layer.directions):
        own = layer.parameters[side * each : (side + 1) * each]
        x = layer.x.flip(0) if side else layer.x
        state = starts[side]
        made = []
        ins = torch.nn.functional.linear(x, own[0], own[2] if each == 4 else None)
        rows_rz, rows_n = own[1].split([2 * layer.hidden, layer.hidden])
        bias_rz, bias_n = own[3].split([2 * layer.hidden, layer.hidden]) if each == 4 else (None, None)
        for step in range(x.shape[0]):
            gates = ins[step]
            both = torch.sigmoid(
                gates[:, : 2 * layer.hidden] + torch.nn.functional.linear(state, rows_rz, bias_rz)
            )
            reset, update = both.chunk(2, 1)
            new = torch.tanh(
                gates[:, 2 * layer.hidden :] + torch.nn.functional.linear(reset * state, rows_n, bias_n)
            )
            state = (1 - update) * new + update * state
            made.append(state)
        y = torch.stack(made)
        outputs.append(y.flip(0) if side else y)
        states.append(state)
    return torch.cat(outputs, 2), torch.stack(states)
