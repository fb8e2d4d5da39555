"""What a user does with a smaller model: train it, cut it again, save it, load it; compile it, trace it, export it."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import surgeon
from surgeon.errors import Infeasible, SurgeonError
from testbed import zoo

STEPS = ("trained", "cut again", "loaded", "exported", "compiled")
RATIO = 0.25  # of what the first cut left


def live(slim: nn.Module, library: str, name: str, inputs: Any) -> dict[str, str]:
    """What became of each step: "ok", or why not; the steps after one that failed go on with what there is.

    A step that fails counts as "original fails too" where the unpruned model fails at it alike.
    """
    found: dict[str, str] = {}
    state: dict[str, Any] = {"model": slim}

    def trained() -> None:
        _train(slim, inputs)

    def cut_again() -> None:
        state["model"] = _cut(slim, inputs)

    def loaded() -> None:
        with tempfile.TemporaryDirectory() as folder:
            surgeon.save(state["model"], folder)
            again = surgeon.load(folder, zoo.load(library, name)[0]).eval()
        _equal(_run(state["model"], inputs), _run(again, inputs), 0.0)

    def exported() -> None:
        _equal(_run(_export(state["model"], inputs), inputs), _run(state["model"], inputs), 1e-4)

    def compiled() -> None:
        _equal(_run(_compile(state["model"]), inputs), _run(state["model"], inputs), 1e-4)

    originally: dict[str, Callable[[nn.Module], Any]] = {
        "trained": lambda model: _train(model, inputs),
        "exported": lambda model: _export(model, inputs),
        "compiled": lambda model: _run(_compile(model), inputs),
    }
    for step, act in zip(STEPS, (trained, cut_again, loaded, exported, compiled), strict=True):
        found[step] = _outcome(act)
        if found[step] != "ok" and step in originally:
            original = zoo.load(library, name)[0]
            if _outcome(lambda step=step, original=original: originally[step](original)) != "ok":  # type: ignore[misc]
                found[step] = "original fails too"
    return found


def _outcome(act: Callable[[], Any]) -> str:
    try:
        act()
    except SurgeonError as error:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  (a crash is a result too)
        return traceback.format_exc()[-1500:]
    return "ok"


def _train(model: nn.Module, inputs: Any) -> None:
    """A step of SGD, small enough that the outputs stay finite."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    loss = sum(leaf.float().square().mean() for leaf in _tensors(_call(model, inputs)) if leaf.requires_grad)
    if not isinstance(loss, Tensor):
        raise SurgeonError("no output of the model has a gradient")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    model.zero_grad()
    model.eval()


def _cut(model: nn.Module, inputs: Any) -> nn.Module:
    try:
        return surgeon.shrink(model, RATIO, example_inputs=inputs, compensate=False)
    except Infeasible as error:
        if not error.reachable or error.reachable <= 0:
            raise
        return surgeon.shrink(model, error.reachable, example_inputs=inputs, compensate=False)


def _export(model: nn.Module, inputs: Any) -> nn.Module:
    args, kwargs = _arguments(inputs)
    with torch.no_grad():
        return torch.export.export(model, args, kwargs).module()


def _compile(model: nn.Module) -> Any:
    """Compiled as far as a backend that needs no C++ compiler goes: captured, and lowered to ATen's operators."""
    torch._dynamo.reset()
    return torch.compile(model, backend="aot_eager")


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (inputs, {}) if isinstance(inputs, tuple) else ((), dict(inputs))


def _call(model: Any, inputs: Any) -> Any:
    args, kwargs = _arguments(inputs)
    return model(*args, **kwargs)


def _run(model: Any, inputs: Any) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return _tensors(_call(model, inputs))


def _tensors(value: Any) -> list[Tensor]:
    value = dict(value) if hasattr(value, "keys") else value
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _equal(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    if len(found) != len(expected):
        raise SurgeonError(f"{len(found)} outputs instead of {len(expected)}")
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            raise SurgeonError(f"an output of {tuple(one.shape)} instead of {tuple(other.shape)}")
        worst = (one.double() - other.double()).abs().max().item() if one.numel() else 0.0
        bound = tolerance * max(other.double().abs().max().item() if other.numel() else 0.0, 1e-6)
        if not worst <= bound:
            raise SurgeonError(f"outputs differ by {worst:.1e}")
