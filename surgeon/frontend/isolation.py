"""What is kept away from a user's model while it is traced, and what of its traces is kept away from the user."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import _trace
from torch.nn.modules import transformer

from surgeon.support.process_wide import process_wide

_LOGGERS = tuple(map(logging.getLogger, (
    "torch", "torch._dynamo", "torch._subclasses.fake_tensor", "torch.export", "torch.fx",
    "torch.fx.experimental.symbolic_shapes", "torch.onnx", "onnxscript", "onnx_ir",
)))


@process_wide
def quietly() -> Iterator[None]:
    """Without what torch, onnxscript and onnxruntime's quantizer warn of, log and print on the way: what fails is told
    by its error alone."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)  # logging to the root would else give it one, for good
    root.addFilter(_not_from_the_quantizer)
    was = [logger.level for logger in _LOGGERS]
    for logger in _LOGGERS:
        logger.setLevel(logging.CRITICAL + 1)
    printing = vars(_trace).get("print", print)
    vars(_trace)["print"] = _silent  # it prints the graph of a model that branches on values
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(_LOGGERS, was, strict=True):
            logger.setLevel(level)
        root.removeFilter(_not_from_the_quantizer)
        root.removeHandler(handler)
        vars(_trace)["print"] = printing


def _not_from_the_quantizer(record: logging.LogRecord) -> bool:
    return os.path.join("onnxruntime", "quantization") not in record.pathname


def _silent(*_: object, **__: object) -> None:
    """Print nothing."""


@process_wide
def without_stack_traces() -> Iterator[None]:
    """Leave out the Python stack of every node, which takes a fifth of the time; modules' names are kept anyway."""
    before = fx.config.do_not_emit_stack_traces
    fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx.config.do_not_emit_stack_traces = before


@process_wide
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


@process_wide
def without_fast_attention() -> Iterator[None]:
    """Without the kernels that fuse a whole transformer layer: export goes without them."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def with_symbolic_lengths(model: nn.Module) -> Iterator[None]:
    """With a `len` in the modules that the model's code is in that gives the length of a tensor as a symbol.

    Python's own makes a number of it, which then stands in the trace.
    """
    places = (getattr(type(each).forward, "__globals__", {}) for each in model.modules())
    changed = [
        place for place in {id(place): place for place in places}.values()
        if "len" not in place and not str(place.get("__name__", "torch")).startswith("torch.")
    ]
    for place in changed:
        place["len"] = _length
    try:
        yield
    finally:
        for place in changed:
            place.pop("len", None)


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else len(value)


_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)
#: Kinds of values that hold nothing which could be changed.
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, ModuleType)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put back random numbers and switches of the process: a user's forward, hook, data or loss may move any of them.

    These are the states of Python's, numpy's and torch's generators, torch's threads, default type, gradient and
    deterministic modes, the filters of warnings, and the environment.
    """
    states = random.getstate(), np.random.get_state(legacy=True), torch.random.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    threads, dtype, learning = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic = torch.get_deterministic_debug_mode()
    environment = dict(os.environ)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        if devices:
            torch.cuda.set_rng_state_all(devices)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(learning)
        if torch.get_deterministic_debug_mode() != deterministic:
            torch.set_deterministic_debug_mode(deterministic)
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back what the attributes of the model's modules held, and what functions that hang on them remember.

    A hook, or a method that forward calls, may note what it sees in them: tensors without values, in a trace. A copy of
    the model has copies of its attributes, but the same functions, which remember in what they enclose.
    """
    held = _Held()
    for module in model.modules():
        held.add(vars(module))
    try:
        yield
    finally:
        held.put_back()


class _Held:
    """What containers held when they were added, and all that can be reached from them."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._containers: list[tuple[Any, Any]] = []
        self._cells: list[tuple[CellType, Any]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []

    def add(self, value: Any) -> None:
        todo = [(value, False)]
        while todo:
            value, enclosed = todo.pop()
            if isinstance(value, _PLAIN) or id(value) in self._seen:
                continue
            self._seen.add(id(value))
            todo += [(each, enclosed) for each in self._contained(value, enclosed)]
            if isinstance(value, FunctionType | MethodType | partial):
                todo += [(each, True) for each in self._enclosed(value)]

    def _contained(self, value: Any, enclosed: bool) -> Iterable[Any]:
        """The values in a container, or in an object that a function encloses."""
        if type(value) in _CONTAINERS:
            self._containers.append((value, value.copy()))
            return list(value.values()) if isinstance(value, dict) else list(value)
        if isinstance(value, tuple):
            return value
        if enclosed and isinstance(value, Tensor):
            if type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided and not value.is_meta:
                self._tensors.append((value, value.detach().clone()))
        elif enclosed and type(getattr(value, "__dict__", None)) is dict:
            return (vars(value),)
        return ()

    def _enclosed(self, function: Any) -> Iterable[Any]:
        if isinstance(function, partial):
            return function.func, function.args, function.keywords
        if isinstance(function, MethodType):
            return function.__func__, function.__self__
        cells = [(cell, _content(cell)) for cell in function.__closure__ or ()]
        self._cells += cells
        return [*(content for _, content in cells), *(function.__defaults__ or ())]

    def put_back(self) -> None:
        for cell, content in self._cells:
            if _content(cell) is not content and content is not _EMPTY:
                cell.cell_contents = content
        for container, content in self._containers:
            _put_back(container, content)
        for tensor, value in self._tensors:
            if not _equal(tensor, value):
                tensor.data.copy_(value)


_EMPTY = object()


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return _EMPTY


def _put_back(container: Any, content: Any) -> None:
    if _same(container, content):
        return
    container.clear()
    if isinstance(container, list | deque):
        container.extend(content)
    else:
        container.update(content)


def _same(container: Any, content: Any) -> bool:
    if len(container) != len(content):
        return False
    if isinstance(container, set):
        return {id(each) for each in container} == {id(each) for each in content}
    if isinstance(container, list | deque):
        return all(a is b for a, b in zip(container, content, strict=True))
    # The order of the keys counts: parameters, buffers and hooks come in it.
    return all(a is b and container[a] is content[b] for a, b in zip(container, content, strict=True))


def _equal(tensor: Tensor, value: Tensor) -> bool:
    return tensor.shape == value.shape and bool(((tensor == value) | ((tensor != tensor) & (value != value))).all())


@contextmanager
def with_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """With other functions in place of the forwards of some modules, copies of the user's."""
    before = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, own in before.items():
            vars(module).pop("forward", None)
            if own is not None:
                vars(module)["forward"] = own
