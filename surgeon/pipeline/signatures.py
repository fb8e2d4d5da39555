"""The options of `shrink`, `plan`, `Pruner` and the command line in signatures, docstrings, and for type checkers.

This file does not import torch, since `surgeon --help` reads it.
"""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from surgeon.pipeline.options import Concern, Device, keywords
from surgeon.support.arguments import MinWidth

if TYPE_CHECKING:
    from surgeon.calibration.job import Score
    from surgeon.calibration.labels import Loss
    from surgeon.frontend.ignore import Ignored
    from surgeon.scoring import Criterion

_T = TypeVar("_T", bound=Callable[..., Any])


def flat(*concerns: type[Concern], but: tuple[str, ...] = ()) -> Callable[[_T], _T]:
    """Show the options of `concerns`, all `but` some, in the signature and docstring of a function of `**options`."""
    taken = {name: each for name, each in keywords(*concerns).items() if name not in but}

    def decorate(function: _T) -> _T:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        by_name = inspect.Parameter.KEYWORD_ONLY
        more = [
            inspect.Parameter(name, by_name, default=each.default, annotation=each.type)
            for name, each in taken.items() if name not in signature.parameters
        ]
        ordered = sorted([*more, *own], key=lambda each: each.kind)
        function.__signature__ = signature.replace(parameters=ordered)  # type: ignore[attr-defined]
        entries = "\n".join(_argument(name, each.option.help) for name, each in taken.items())
        text = inspect.getdoc(function) or ""
        function.__doc__ = re.sub(r"^    options: .*$", lambda _: entries, text, flags=re.MULTILINE)
        return function

    return decorate


def _argument(name: str, help: str) -> str:
    """An entry of a docstring's Args."""
    text = f"{name}: {help[0].lower()}{help[1:]}"
    return textwrap.fill(text, 116, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False)


class Selecting(TypedDict, total=False):
    """The options of `Pruner`."""

    scope: str
    ignore: "Ignored | Iterable[Ignored]"
    min_width: MinWidth
    align: int | None
    seed: int


class Planning(Selecting, total=False):
    """The options of `plan`, beside the ratio."""

    latency_ms: float | None
    budget: str
    device: Device
    threads: int | None
    cpu_time: bool
    shapes: Any
    max_params: float | None
    data: Any
    samples: int
    memory: float | None
    loss: "Loss | None"
    importance: "str | Criterion | None"


class Shrinking(Planning, total=False):
    """The options of `shrink`, beside the ratio."""

    project: bool
    compensate: bool
    distill: bool
    min_agreement: float | None
    metric: "Score | None"
    metric_data: Any
    min_metric: float | None
