"""Recurrent layers on packed sequences, in a traced copy of a model: as operators on sequences that are padded.

How many rows a packed sequence has depends on the values of the lengths, of which a trace has none. So what is packed
stays padded while a model is traced, and each recurrent layer is one operator, which packs it when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from surgeon.frontend.isolation import with_forwards

_VF = torch._VF
_KINDS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@contextmanager
def with_padded_sequences(model: nn.Module) -> Iterator[None]:
    """With the recurrent layers of `model`, a copy of the user's, as operators on padded sequences for packed ones."""
    layers = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    if not layers:
        yield
        return
    with with_forwards({each: partial(_forward, each, type(each).forward) for each in layers}), _Padded():
        yield


class _Padded(TorchFunctionMode):
    """Packing gives the padded sequence, step by step, and how many sequences each has; padding takes it back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _VF._pack_padded_sequence:
            x, lengths, batch_first = args
            x = x.transpose(0, 1) if batch_first else x
            return x.flatten(0, 1), _more_than(lengths, x.shape[0])
        if func is _VF._pad_packed_sequence:
            data, sizes, batch_first, value, total = args
            x = data.unflatten(0, (sizes.shape[0], -1))
            lengths = _more_than(sizes, x.shape[1])
            return _padded(x, lengths, batch_first, value, total), lengths
        return func(*args, **(kwargs or {}))


def _more_than(counts: Tensor, size: int) -> Tensor:
    """How many counts are more than 0, 1, …, as many as `size`: of lengths the sizes of batches, and the reverse."""
    return (counts[None, :] > torch.arange(size, device=counts.device)[:, None]).sum(1)


def _padded(x: Tensor, lengths: Tensor, batch_first: bool, value: float, total: int) -> Tensor:
    steps = torch.arange(x.shape[0], device=x.device)[:, None, None]
    x = torch.where(steps < lengths.to(x.device)[:, None], x, value)
    if total != x.shape[0]:
        x = nn.functional.pad(x, (0, 0, 0, 0, 0, total - x.shape[0]), value=value)
    return x.transpose(0, 1) if batch_first else x


def _forward(module: nn.RNNBase, plain: Any, x: Any, hx: Any = None) -> Any:
    if not isinstance(x, PackedSequence):
        return plain(module, x, hx)
    data, sizes, chosen, back = x
    batch, kind = data.shape[0] // sizes.shape[0], module.mode.lower()
    directions = 2 if module.bidirectional else 1
    count = 2 if kind == "lstm" else 1
    if hx is None:
        widths = [module.proj_size or module.hidden_size, module.hidden_size][:count]
        states = [data.new_zeros(module.num_layers * directions, batch, width) for width in widths]
    else:
        states = [state.index_select(1, chosen) if chosen is not None else state for state in
                  (hx if isinstance(hx, tuple) else (hx,))]
    parameters = [getattr(module, name) for name in module._flat_weights_names]
    found = getattr(torch.ops.surgeon, f"packed_{kind}")(
        data, sizes, states, parameters, module.bias, module.num_layers, module.bidirectional
    )
    after = [state.index_select(1, back) if back is not None else state for state in found[1:]]
    return PackedSequence(found[0], sizes, chosen, back), tuple(after) if count == 2 else after[0]


def _run(
    kind: str, input: Tensor, sizes: Tensor, hx: list[Tensor], params: list[Tensor], has_biases: bool,
    num_layers: int, bidirectional: bool,
) -> list[Tensor]:
    with torch._C.DisableTorchFunction():  # here sequences are packed
        steps = input.unflatten(0, (sizes.shape[0], -1))
        packed = rnn.pack_padded_sequence(steps, _more_than(sizes, steps.shape[1]).cpu())
        states = tuple(hx) if kind == "lstm" else hx[0]
        found = getattr(_VF, kind)(
            packed.data, packed.batch_sizes, states, list(params), has_biases, num_layers, 0.0, False, bidirectional
        )
        y, _ = rnn.pad_packed_sequence(PackedSequence(found[0], packed.batch_sizes), total_length=steps.shape[0])
    return [y.flatten(0, 1), *found[1:]]


def _shapes(
    input: Tensor, sizes: Tensor, hx: list[Tensor], params: list[Tensor], has_biases: bool, num_layers: int,
    bidirectional: bool,
) -> list[Tensor]:
    width = hx[0].shape[2] * (2 if bidirectional else 1)
    return [input.new_empty(input.shape[0], width), *(torch.empty_like(state) for state in hx)]


def _saved(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.given = inputs


def _backward(kind: str, ctx: Any, gradients: list[Tensor | None]) -> Any:
    input, sizes, hx, params, *rest = ctx.given
    learnt = [value.detach().requires_grad_() for value in (input, *hx, *params)]
    with torch.enable_grad():
        found = _run(kind, learnt[0], sizes, learnt[1 : 1 + len(hx)], learnt[1 + len(hx) :], *rest)
        pairs = [(a, b) for a, b in zip(found, gradients, strict=True) if b is not None]
        own = torch.autograd.grad([a for a, _ in pairs], learnt, [b for _, b in pairs], allow_unused=True)
    return own[0], None, list(own[1 : 1 + len(hx)]), list(own[1 + len(hx) :]), None, None, None


def _define(kind: str) -> None:
    operator = torch.library.custom_op(
        f"surgeon::packed_{kind}", partial(_run, kind), mutates_args=(),
        schema="(Tensor input, Tensor sizes, Tensor[] hx, Tensor[] params, bool has_biases, int num_layers, "
        "bool bidirectional) -> Tensor[]",
    )
    operator.register_fake(_shapes)
    operator.register_autograd(partial(_backward, kind), setup_context=_saved)


for _kind in _KINDS:
    _define(_kind)
