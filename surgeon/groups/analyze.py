"""From a module to its coupled groups: tracing and coupling."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from surgeon.frontend.ignore import Ignored, ignoring
from surgeon.frontend.infer_inputs import infer
from surgeon.frontend.trace import MODULE, Inputs, normalize_inputs, trace_inputs, with_train_only
from surgeon.groups.coupling import Groups, couple
from surgeon.support.progress import stage


def analyze(model: nn.Module, example_inputs: Any, ignore: Ignored | Iterable[Ignored] = ()) -> Groups:
    """The coupled groups of a model, traced in eval mode; without `example_inputs`, those are inferred."""
    MODULE("model", model)
    left_alone = ignoring(model, ignore)
    with stage("trace"):
        inputs = infer(model) if example_inputs is None else normalize_inputs(example_inputs)
    return analyze_inputs(model, inputs, left_alone)


def analyze_inputs(model: nn.Module, inputs: Inputs, ignore: Callable[[str], bool] | None = None) -> Groups:
    """As `analyze`, for inputs as `(args, kwargs)`; `ignore` says of a tensor's name whether it is left alone."""
    with stage("trace"):
        graph = with_train_only(trace_inputs(model, inputs), model)
    with stage("couple"):
        return couple(graph, ignore)
