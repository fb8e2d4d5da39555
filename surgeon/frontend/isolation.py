"""What is kept away from a user's model while it is traced, and what of its traces is kept away from the user."""

from __future__ import annotations

import gc
import logging
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn
from torch.nn.modules import transformer

_LOGGERS = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes", "torch.export")


@contextmanager
def quietly() -> Iterator[None]:
    """Without what torch warns of and logs on the way: an export that fails is told by its error alone."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    was = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in zip(loggers, was, strict=True):
            logger.disabled = disabled


@contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's search for cycles of garbage.

    What is made in here is small, lives until the end and sets off searches of all objects of the process, which take
    longer than the work itself.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def without_stack_traces() -> Iterator[None]:
    """Leave out the Python stack of every node, which takes a fifth of the time; modules' names are kept anyway."""
    before = fx.config.do_not_emit_stack_traces
    fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx.config.do_not_emit_stack_traces = before


@contextmanager
def with_masks_as_given() -> Iterator[None]:
    """Without the look that torch's own transformer layers take at the values of a mask, which can't be traced.

    They look whether it is a causal one, for which there are faster kernels; what they compute is the same.
    """
    before = transformer._detect_is_causal_mask

    def as_given(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
        return is_causal is True

    transformer._detect_is_causal_mask = as_given
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = before


_CONTAINERS = (dict, OrderedDict, defaultdict, list, set)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back what the attributes of the model's modules held.

    A hook, or a method that forward calls, may remember what it sees in them: tensors without values, in a trace.
    """
    held: list[tuple[dict[str, Any], dict[str, Any], list[tuple[Any, Any]]]] = []
    for module in model.modules():
        own = vars(module)
        containers = [(value, value.copy()) for value in own.values() if type(value) in _CONTAINERS]
        held.append((own, own.copy(), containers))
    try:
        yield
    finally:
        for own, attributes, containers in held:
            _put_back(own, attributes)
            for container, content in containers:
                _put_back(container, content)


def _put_back(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
    elif not _same(container, content):
        container.clear()
        container.update(content)


def _same(container: Any, content: Any) -> bool:
    if isinstance(container, set):
        return bool(container == content)
    return container.keys() == content.keys() and all(container[key] is content[key] for key in content)
