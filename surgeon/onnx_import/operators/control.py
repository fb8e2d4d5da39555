"""If, Loop and Scan: the graphs inside of an operator run as they are needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surgeon.errors import InvalidInputs, first_line
from surgeon.onnx_import.running import Body, Operator, Scope
from surgeon.onnx_import.table import NotCovered, operator
from surgeon.onnx_import.values import Numbers, Value, as_numbers, as_tensor, number

#: The most turns of a loop.
MOST_TURNS = 100_000


def _body(o: Operator, name: str) -> Body:
    found = o._modules.get(name)
    if not isinstance(found, Body):
        raise NotCovered(f"it has no {name}")
    return found


def _run(body: Body, scope: Scope, *values: Any) -> list[Any]:
    inner = scope.inner({}, scope.direct)
    return body.forward(inner, *values) if scope.direct else body(inner, *values)


@operator("If", mixed=True, scoped=True)
def if_(o: Operator, scope: Scope, condition: Value) -> list[Any]:
    """One graph or the other. In a trace, where a value of an input decides, both run, and one result is taken.

    A branch that can't run at the sizes of a trace is none for it, as the original refuses these sizes there: unless
    the trace is for other sizes too, and then there is none.
    """
    if isinstance(condition, Tensor) and torch.compiler.is_compiling():
        return _both(o, scope, condition)
    name = "then_branch" if bool(number(as_numbers(condition))) else "else_branch"
    return _run(_body(o, name), scope)


def _both(o: Operator, scope: Scope, condition: Tensor) -> list[Any]:
    from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing  # imported along with a trace

    fitting: list[Body] = []
    failed: list[Exception] = []
    for body in (_body(o, name) for name in ("then_branch", "else_branch")):
        try:
            with disable_proxy_modes_tracing():  # the trace takes no note of what is tried
                body.forward(scope.inner({}, direct=True))
        except (RuntimeError, ValueError, IndexError, NotImplementedError, NotCovered, InvalidInputs) as error:
            failed.append(error)  # it fits inputs of other sizes alone
        else:
            fitting.append(body)
    if not fitting:
        raise failed[0]
    results = [_run(body, scope) for body in fitting]
    if failed and _of_free_sizes(scope):
        raise InvalidInputs(
            f"{o.place} is decided by a value, and one of its branches runs at other sizes alone "
            f"({first_line(failed[0])}): fix the input that decides it, fixed= of load_onnx"
        )
    if failed:
        return results[0]
    found: list[Any] = []
    for a, b in zip(*results, strict=True):
        first, second = as_tensor(a, scope.device), as_tensor(b, scope.device)
        if first.dim() != second.dim() or first.dtype is not second.dtype:
            raise InvalidInputs(
                f"{o.place} is decided by a value, and its branches give {first.dim()} and {second.dim()} axes: a "
                "trace takes one branch; fix the input that decides it, fixed= of load_onnx"
            )
        found.append(torch.where(condition.reshape(()).bool(), first, second))
    return found


def _of_free_sizes(scope: Scope | None) -> bool:
    """Whether a size of what is known in a scope, or around it, is free in the trace."""
    while scope is not None:
        shapes = [value.shape for value in scope.values.values() if isinstance(value, Tensor)]
        if any(isinstance(size, torch.SymInt) for shape in shapes for size in shape):
            return True
        scope = scope.outer
    return False


@operator("Loop", mixed=True, scoped=True)
def loop(o: Operator, scope: Scope, count: Value | None = None, go_on: Value | None = None, *carried: Any) -> list[Any]:
    body = _body(o, "body")
    turns = number(as_numbers(count)) if count is not None else None
    state = list(carried)
    kept: list[list[Tensor]] = [[] for _ in range(o.outputs - len(carried))]
    running = bool(number(as_numbers(go_on))) if go_on is not None else True
    turn = 0
    while running and (turns is None or turn < turns):
        if turn >= MOST_TURNS:
            raise ValueError(f"a loop of more than {MOST_TURNS:,} turns")
        made = _run(body, scope, Numbers.of(turn, torch.int64), Numbers.of(True, torch.bool), *state)
        running = bool(number(as_numbers(made[0])))
        state = made[1 : 1 + len(state)]
        for place, value in zip(kept, made[1 + len(state) :], strict=True):
            place.append(as_tensor(value, scope.device))
        turn += 1
    if any(not each for each in kept):
        raise NotCovered("a loop without turns, whose results have no shape")
    return [*state, *(torch.stack(each) for each in kept)]


@operator("Scan", scoped=True)
def scan(o: Operator, scope: Scope, *values: Tensor) -> list[Any]:
    body = _body(o, "body")
    count = o.get("num_scan_inputs", 1)
    if o.opset < 9:
        raise NotCovered("a scan as before opset 9")
    state, given = list(values[: len(values) - count]), values[len(values) - count :]
    axes = list(o.get("scan_input_axes", (0,) * count))
    back = list(o.get("scan_input_directions", (0,) * count))
    parts = [value.unbind(axis) for value, axis in zip(given, axes, strict=True)]
    parts = [each[::-1] if reverse else each for each, reverse in zip(parts, back, strict=True)]
    kept: list[list[Tensor]] = [[] for _ in range(o.outputs - len(state))]
    for step in range(len(parts[0])):
        made = _run(body, scope, *state, *(each[step] for each in parts))
        state = made[: len(state)]
        for place, value in zip(kept, made[len(state) :], strict=True):
            place.append(as_tensor(value, scope.device))
    out_axes = o.get("scan_output_axes", (0,) * len(kept))
    turned = o.get("scan_output_directions", (0,) * len(kept))
    stacked = [
        torch.stack(each[::-1] if reverse else each, axis)
        for each, axis, reverse in zip(kept, out_axes, turned, strict=True)
    ]
    return [*state, *stacked]
