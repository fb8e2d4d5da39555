"""Changes of the whole process end with the last block that needs them, whatever happens in between."""

from __future__ import annotations

import gc
import logging
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
import torch
from torch import fx
from torch.nn.modules import transformer

from surgeon.frontend import isolation
from surgeon.groups import interpreter
from surgeon.support import process_wide

# Each change, and what it changes.
CHANGES: dict[str, tuple[Callable[[], AbstractContextManager[None]], Callable[[], Any]]] = {
    "default type": (interpreter._double_by_default, torch.get_default_dtype),
    "masks": (isolation.with_masks_as_given, lambda: transformer._detect_is_causal_mask),
    "attention": (isolation.without_fast_attention, torch.backends.mha.get_fastpath_enabled),
    "warnings": (isolation.quietly, lambda: list(warnings.filters)),
    "logs": (isolation.quietly, lambda: logging.getLogger("torch.export").level),
    "garbage": (process_wide.uncollected, gc.isenabled),
    "stack traces": (isolation.without_stack_traces, lambda: fx.config.do_not_emit_stack_traces),
}


@pytest.mark.parametrize("name", CHANGES)
def test_blocks_that_overlap_put_back_what_was(name: str) -> None:
    change, state = CHANGES[name]
    before = state()
    first, second = ExitStack(), ExitStack()
    first.enter_context(change())
    inside = state()
    assert inside != before
    second.enter_context(change())
    first.close()
    assert state() == inside, "the second block is still in it"
    second.close()
    assert state() == before


@pytest.mark.parametrize("name", CHANGES)
def test_an_error_puts_back_what_was(name: str) -> None:
    change, state = CHANGES[name]
    before = state()
    with pytest.raises(ZeroDivisionError), change():
        raise ZeroDivisionError
    assert state() == before


def test_threads_that_overlap_put_back_what_was() -> None:
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        with interpreter.precisely():
            inside.set()
            done.wait(60)

    thread = threading.Thread(target=other)
    with interpreter.precisely():
        thread.start()
        assert inside.wait(60)
    assert torch.get_default_dtype() == torch.float64 and torch.is_grad_enabled()
    done.set()
    thread.join()
    assert torch.get_default_dtype() == torch.float32
