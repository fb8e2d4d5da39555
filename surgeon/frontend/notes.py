"""What surgeon notes on a smaller model, which copies of it keep."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from surgeon.frontend.wrappers import bare

#: The name of the note that holds the ONNX file which a module, or the one that it was made of, comes from.
FILE = "surgeon_onnx"


def note(module: nn.Module, name: str, value: Any) -> None:
    """Set a note; on a graph also in `meta`, as a copy of it has no other attributes.

    >>> import copy
    >>> graph = fx.symbolic_trace(nn.ReLU())
    >>> note(graph, "surgeon_example", 3)
    >>> noted(copy.deepcopy(graph), "surgeon_example")
    3
    """
    vars(module)[name] = value
    if isinstance(module, fx.GraphModule):
        module.meta[name] = value


def noted(module: nn.Module, name: str) -> Any:
    """A note on a module, or on the one that is wrapped; None if there is none."""
    module = bare(module)
    found = getattr(module, name, None)
    return found if found is not None else getattr(module, "meta", {}).get(name)
