"""Everything that a model holds and that surrounds it, as a flat table, so that two moments can be compared."""

from __future__ import annotations

import gc
import hashlib
import locale
import logging
import os
import random
import sys
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn.modules import module as torch_module
from torch.nn.modules import transformer
from torch.nn.parameter import is_lazy

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_LOGGERS = ("", "torch", "torch.onnx", "torch.export", "torch._subclasses.fake_tensor", "torch.fx", "onnxscript")


class Snapshot:
    """What `objects` (models, tensors, containers of them) hold now, with the state of the process around them."""

    def __init__(self, *objects: Any) -> None:
        self.rows: dict[str, Any] = {}
        self._alive: list[Any] = []  # so that no id is given to another object meanwhile
        self._seen: set[int] = set()
        for index, each in enumerate(objects):
            self._walk(f"object {index}", each)
        self.rows |= dict(_process())

    def differences(self, later: Snapshot) -> list[str]:
        """The rows that are not the same in `later`, with what they were and are."""
        names = [*self.rows, *(name for name in later.rows if name not in self.rows)]
        missing = "nothing"
        pairs = ((name, self.rows.get(name, missing), later.rows.get(name, missing)) for name in names)
        return [f"{name}: {str(was)[:80]} → {str(now)[:80]}" for name, was, now in pairs if was != now]

    def _walk(self, place: str, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self.rows[place] = repr(value)
            return
        self.rows[place] = (type(value).__name__, id(value))
        self._alive.append(value)
        if id(value) in self._seen or isinstance(value, type):
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            self._tensor(place, value)
        elif isinstance(value, np.ndarray):
            self.rows[f"{place} values"] = _hash(value.tobytes())
        elif isinstance(value, torch.Generator):
            self.rows[f"{place} state"] = _hash(value.get_state().numpy().tobytes())
        elif isinstance(value, random.Random):
            self.rows[f"{place} state"] = _hash(repr(value.getstate()).encode())
        elif isinstance(value, Mapping) and isinstance(value, dict | OrderedDict | defaultdict):
            self.rows[f"{place} keys"] = [repr(key) for key in value]
            for key, each in value.items():
                self._walk(f"{place}[{key!r}]", each)
        elif isinstance(value, list | tuple | deque):
            self.rows[f"{place} length"] = len(value)
            for index, each in enumerate(value):
                self._walk(f"{place}[{index}]", each)
        elif isinstance(value, set | frozenset):
            self.rows[f"{place} elements"] = sorted(map(repr, value))
        elif isinstance(value, fx.GraphModule):
            self.rows[f"{place} code"] = value.code
            self._walk(f"{place}._modules", value._modules)
        elif callable(value) and getattr(value, "__closure__", None):
            for cell in value.__closure__:
                self._walk(f"{place} closure", cell.cell_contents)
        elif type(value).__module__.startswith(("torch._dynamo", "torch._inductor")):
            return
        elif hasattr(value, "__dict__"):
            self._walk(f"{place} vars", vars(value))

    def _tensor(self, place: str, value: Tensor) -> None:
        if is_lazy(value):
            return
        facts = [value.dtype, value.device, value.layout, value.requires_grad, value.is_leaf, id(value.grad_fn)]
        self.rows[f"{place} kind"] = (*facts, tuple(value.shape), value.is_inference())
        self.rows[f"{place} hooks"] = repr(value._backward_hooks)
        if value.is_meta:
            return
        if value.layout is torch.strided and not value.is_quantized:
            self.rows[f"{place} memory"] = (value.data_ptr(), value.stride(), value.storage_offset())
            self.rows[f"{place} values"] = _hash(_bytes(value))
        if value.is_leaf and value.grad is not None:
            self._walk(f"{place}.grad", value.grad)
        else:
            self.rows[f"{place}.grad"] = "None"


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _process() -> Iterator[tuple[str, Any]]:
    """Random numbers, threads, switches and lists of the process."""
    yield "random", _hash(repr(random.getstate()).encode())
    state = np.random.get_state(legacy=False)
    yield "numpy.random", _hash(repr(state).encode() + state["state"]["key"].tobytes())
    yield "torch.random", _hash(torch.random.get_rng_state().numpy().tobytes())
    yield "torch threads", (torch.get_num_threads(), torch.get_num_interop_threads())
    yield "environment", dict(os.environ)
    yield "folder", os.getcwd()
    yield "sys.path", list(sys.path)
    yield "sys.argv", list(sys.argv)
    yield "default dtype and device", (torch.get_default_dtype(), torch.get_default_device())
    yield "grad mode", (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled())
    yield "deterministic", (torch.are_deterministic_algorithms_enabled(), torch.get_deterministic_debug_mode())
    yield "precision", (torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled)
    yield "cudnn", (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    yield "autocast", (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))
    yield "fast path", torch.backends.mha.get_fastpath_enabled()
    yield "causal mask", id(transformer._detect_is_causal_mask)
    yield "stack traces", fx.config.do_not_emit_stack_traces
    yield "warnings", ([repr(each) for each in warnings.filters], id(warnings.showwarning))
    yield "numpy", (np.geterr(), np.get_printoptions())
    yield "garbage", (gc.isenabled(), gc.get_threshold())
    yield "recursion", sys.getrecursionlimit()
    yield "locale", locale.setlocale(locale.LC_ALL)
    yield "logging", logging.root.manager.disable
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        yield f"logger {name}", (logger.level, logger.disabled, logger.propagate, list(map(id, logger.handlers)))
    hooks = [name for name in vars(torch_module) if name.startswith("_global_") and name.endswith("hooks")]
    yield "hooks of all modules", [(name, len(getattr(torch_module, name))) for name in sorted(hooks)]
    yield "modes", (torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack())
