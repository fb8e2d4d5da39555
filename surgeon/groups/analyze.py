"""From a module to its coupled groups, with progress."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from surgeon.errors import InvalidArgument
from surgeon.frontend.ignore import Ignored, ignoring
from surgeon.frontend.infer_inputs import infer
from surgeon.frontend.trace import normalise_inputs, trace_inputs, with_train_only
from surgeon.groups.coupling import Groups, couple
from surgeon.support.progress import stage


def analyse(model: nn.Module, example_inputs: Any, ignore: Ignored | Iterable[Ignored] = ()) -> Groups:
    """Trace and couple."""
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"model is a {type(model).__name__}, not a torch.nn.Module")
    left_alone = ignoring(model, ignore)
    with stage("trace"):
        inputs = infer(model) if example_inputs is None else normalise_inputs(example_inputs)
        graph = with_train_only(trace_inputs(model, inputs), model)
    with stage("couple"):
        return couple(graph, left_alone)
