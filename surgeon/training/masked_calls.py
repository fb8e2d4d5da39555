"""Functions that a user's own code calls over masked units, computed over those that are kept.

A call is known by its place: the lines of code that lead to it from the module's `forward`, and by its arguments other
than tensors. A dry run tells which operator of the graph each place is. A call that was not seen then may be over
masked units or not: where it may, it is refused before anything is made of it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from threading import local
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C._dynamo.eval_frame import set_eval_frame
from torch._dynamo.decorators import skip
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils import checkpoint
from torch.utils.hooks import RemovableHandle

from surgeon.errors import SurgeryError
from surgeon.frontend.copies import duplicate
from surgeon.frontend.isolation import untouched, without_fast_attention
from surgeon.groups.coupling import Groups
from surgeon.training.masked_statistics import Site, operator_name
from surgeon.verification.reference import STATISTICS

#: The lines of code that lead from a module's forward to a call: file, function, and where in it.
Place = tuple[tuple[str, str, Any], ...]
#: The place of a call, the function's name, and its arguments as far as they are alike whenever it is called there.
Key = tuple[Place, str, Any]

_CALL = nn.Module._call_impl.__code__
#: What stands between a function and its caller in some runs and not in others.
_PLUMBING = (_CALL.co_filename, torch.overrides.__file__, torch._dynamo.eval_frame.__file__, __file__)


@lru_cache(maxsize=4096)
def _line(code: CodeType, instruction: int) -> tuple[str, str, Any]:
    return code.co_filename, code.co_qualname, next(islice(code.co_positions(), instruction // 2, None))


def _called(frame: FrameType | None) -> tuple[Place, FrameType] | None:
    """Where in the innermost module's code a call is, and the frame of that module's own call; None outside of all."""
    found = []
    while frame is not None and frame.f_code is not _CALL:
        if frame.f_code.co_filename not in _PLUMBING:
            found.append(_line(frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return (tuple(found), frame) if frame is not None else None


def _kind(value: Any, first: tuple[int, ...]) -> Any:
    """An argument, or what stands for it where it may change from call to call: tensors, sizes, fractions, types."""
    match value:
        case Tensor():
            return "tensor"
        case list() | tuple():
            plain = len(value) > 0 and all(isinstance(each, int) for each in value)
            sizes = plain and tuple(value) == first[-len(value) :]
            return ("sizes", len(value)) if sizes else tuple(_kind(each, first) for each in value)
        case float() | torch.dtype():
            return type(value).__name__
        case None | int() | str():
            return value
    return type(value).__name__


def _key(place: Place, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Key:
    first = next((tuple(v.shape) for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), ())
    named = sorted((name, _kind(value, first)) for name, value in kwargs.items())
    return place, operator_name(function), (*(_kind(value, first) for value in args), *named)


def _named(site: Site, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names that the operator's schema has for them."""
    names: Any = site.given  # torch's own functions in C have no signature, but the order of the schema
    if isinstance(function, FunctionType):
        names = function.__code__.co_varnames
    alias = {"input": "self", "self": "input"}
    named = {**dict(zip(names, args, strict=False)), **kwargs}
    return {name if name in site.given else alias.get(name, name): value for name, value in named.items()}


class _Watch(TorchFunctionMode):
    """Hands the calls of functions that are watched to `seen`, with the frame that they come from."""

    watched: frozenset[str]

    @torch.compiler.disable
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        called = _called(sys._getframe(1)) if operator_name(func) in self.watched else None
        return self.seen(*called, func, args, kwargs or {}) if called is not None else func(*args, **(kwargs or {}))

    def seen(self, place: Place, call: FrameType, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """What the function gives; `call` is the frame in which the module around is called."""
        raise NotImplementedError


@dataclass
class Learned:
    """What a dry run found of the calls in one module's code.

    `nodes` has the operators that each call is, None for such as are no operator of the graph, and `results` the class
    of several results. `unlike` are names of functions whose calls can't be told apart, or are not the graph's.
    """

    nodes: dict[Key, list[fx.Node | None]] = field(default_factory=dict)
    results: dict[Key, type] = field(default_factory=dict)
    unlike: set[str] = field(default_factory=set)


    def masked(self, path: str, sites: Mapping[fx.Node, Site]) -> MaskedCalls | str:
        """The module's sites at their places, or why they can't be told."""
        found: dict[Key, Site | None] = {}
        for node in sites:
            name = operator_name(node.target)
            if name in self.unlike or not any(node in nodes for nodes in self.nodes.values()):
                return f"no call in the module's code can be told to be this operator, named {name}"
        for key, nodes in self.nodes.items():
            of = [sites.get(node) if node is not None else None for node in nodes]
            if not alike(of):
                return "the same line of code is called several times, on different units"
            found[key] = of[0]
        return MaskedCalls(path, found, self.results)


def alike(sites: Sequence[Site | None]) -> bool:
    """Whether all are the same site, or none is one.

    >>> alike([None, None])
    True
    """
    first = sites[0]
    return all(site is first or (site is not None and first is not None and site.same(first)) for site in sites[1:])


class _DryRun(_Watch):
    """Finds the operator of the graph that each call is, by their order in each call of a module."""

    def __init__(self, groups: Groups, calls: Mapping[nn.Module, Sequence[Mapping[str, Sequence[fx.Node]]]]) -> None:
        super().__init__()
        self.groups, self.calls = groups, calls
        self.watched = frozenset(name for each in calls.values() for call in each for name in call) | _STATISTICS
        self.learned = {module: Learned() for module in calls}
        self.frames: dict[nn.Module, list[FrameType]] = {module: [] for module in calls}
        self.counts: Counter[tuple[nn.Module, int, str]] = Counter()

    def seen(self, place: Place, call: FrameType, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        module, name = call.f_locals["self"], operator_name(func)
        if module not in self.calls:
            return result
        learned, key = self.learned[module], _key(place, func, args, kwargs)
        node = None
        if any(name in each for each in self.calls[module]):
            node = self._node(module, call, name)
            if node is None or not self._computes(node, func, args, kwargs, result):
                learned.unlike.add(name)
        learned.nodes.setdefault(key, []).append(node)
        if isinstance(result, tuple) and type(result) is not tuple:
            learned.results[key] = type(result)
        return result

    def _node(self, module: nn.Module, call: FrameType, name: str) -> fx.Node | None:
        """The next operator of this name in this call of the module, of which the frame tells."""
        frames = self.frames[module]
        if call not in frames:
            frames.append(call)
        number = frames.index(call)
        nodes = self.calls[module][number].get(name, ()) if number < len(self.calls[module]) else ()
        self.counts[module, number, name] += 1
        count = self.counts[module, number, name]
        return nodes[count - 1] if count <= len(nodes) else None

    def _computes(self, node: fx.Node, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> bool:
        """Whether the operator gives what the function gave, if it is one that can be over masked units."""
        typed = self.groups.typed[node]
        if not (typed.reduced or typed.contracted):
            return True
        whole = Site.of(self.groups, self.groups.kept({}), node, ())
        if whole is None:
            return True
        try:
            again = whole.compute(_named(whole, func, args, kwargs))
        except (RuntimeError, TypeError, SurgeryError):  # its arguments are not those of the operator
            return False
        pairs = list(zip(pytree.tree_leaves(again), pytree.tree_leaves(result), strict=False))
        return all(a.shape == b.shape and torch.allclose(a, b, equal_nan=True) for a, b in pairs)

    def done(self) -> None:
        """Note the functions that were called less often than the graph has operators of them."""
        for module, calls in self.calls.items():
            for number, call in enumerate(calls):
                for name, nodes in call.items():
                    if self.counts[module, number, name] != len(nodes):
                        self.learned[module].unlike.add(name)


def learn(groups: Groups, model: nn.Module, calls: Mapping[str, Sequence[Sequence[fx.Node]]]) -> dict[str, Learned]:
    """Run a copy of the model on the inputs of the graph, and find the operators in the code of its modules.

    `calls` are the operators of each module, by its path, in each call of it.
    """
    named: dict[str, list[dict[str, list[fx.Node]]]] = {}
    for path, each in calls.items():
        for nodes in each:
            named.setdefault(path, []).append({})
            for node in nodes:
                named[path][-1].setdefault(operator_name(node.target), []).append(node)
    twin = duplicate(model).eval()
    values = [value for value in pytree.tree_leaves(groups.graph.inputs) if isinstance(value, Tensor)]
    twin.to(next((value.dtype for value in values if value.is_floating_point()), torch.float32))
    device = next(twin.parameters()).device
    args, kwargs = pytree.tree_map_only(Tensor, lambda value: value.to(device, copy=True), groups.graph.inputs)
    run = _DryRun(groups, {twin.get_submodule(path): each for path, each in named.items()})
    with torch.no_grad(), untouched(model), without_fast_attention(), torch.random.fork_rng(devices=[]), run:
        twin(*args, **kwargs)
    run.done()
    return dict(zip(calls, run.learned.values(), strict=True))


@dataclass(frozen=True)
class MaskedCalls:
    """The sites in the code of one module, None for calls that are none, and the classes of several results."""

    path: str
    sites: Mapping[Key, Site | None]
    results: Mapping[Key, type]

    @property
    def watched(self) -> frozenset[str]:
        """The names of functions that may be over masked units."""
        return _STATISTICS | {name for (_, name, _), site in self.sites.items() if site is not None}

    def attach(self, module: nn.Module) -> list[RemovableHandle]:
        """Hook the module; the handles that undo it."""
        return [
            module.register_forward_pre_hook(self.enter, prepend=True),
            module.register_forward_hook(self.leave, prepend=True, always_call=True),
        ]

    @skip
    def enter(self, module: nn.Module, args: Any) -> None:
        """Watch the calls of the module's code, which is not compiled from here on: that would change its places."""
        mode = _Mode(self, module, set_eval_frame(None))
        _running().append(mode)
        mode.__enter__()

    @skip
    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Watch no longer, even if forward has failed."""
        if _running() and _running()[-1].module is module:
            mode = _running().pop()
            mode.__exit__(None, None, None)
            set_eval_frame(mode.compiler)

    def compute(self, place: Place, module: nn.Module, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What a call in the module's own code gives.

        Raises:
            SurgeryError: it may be over masked units, but is not as it was traced.
        """
        key = _key(place, func, args, kwargs)
        site = self.sites.get(key)
        if site is None:
            if key not in self.sites and self._may_be_masked(key[1], args, kwargs) and not _in_hook(place, module):
                self._refuse(key, "in a way that was not traced")
            return func(*args, **kwargs)
        if torch.is_grad_enabled() and any(file == checkpoint.__file__ for file, *_ in place):
            self._refuse(key, "in a checkpoint, which would compute it again without masks")
        result = site.compute(_named(site, func, args, kwargs))
        return self.results[key](result) if key in self.results else result

    def _may_be_masked(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether an axis that is summed over has the size of one with masked units."""
        sizes = {size for site in self.sites.values() if site is not None for size in site.sizes}
        tensors = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        dims = kwargs.get("dim", args[1] if len(args) > 1 and not name.endswith("norm") else None)
        dims = list(dims) if isinstance(dims, list | tuple) else [dims]
        found = [set(value.shape) for value in tensors]
        if all(type(dim) is int and -tensors[0].dim() <= dim < tensors[0].dim() for dim in dims):
            found = [{tensors[0].shape[dim] for dim in dims}]
        return any(sizes & each for each in found)

    def _refuse(self, key: Key, how: str) -> None:
        place, name, _ = key
        file, _, (line, *_) = next((each for each in place if not each[0].startswith(torch.__path__[0])), place[-1])
        raise SurgeryError(
            f"{self.path or 'the model'}: line {line} of {file} calls {name} {how}, so masked units can't be told from "
            "the others\nRemedy: make the call a layer of torch.nn, which is masked wherever it is called, or let "
            "forward take the path that it takes in eval mode on the example inputs."
        )


def _in_hook(place: Place, module: nn.Module) -> bool:
    """Whether a hook on the module makes the call: what it computes is not the model's."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    codes = [code for code in (getattr(hook, "__code__", None) for hook in hooks) if code is not None]
    return any(place[-1][:2] == (code.co_filename, code.co_qualname) for code in codes)


class _Mode(_Watch):
    """Computes the sites in the own code of one module, during one call of it."""

    def __init__(self, calls: MaskedCalls, module: nn.Module, compiler: Any) -> None:
        super().__init__()
        self.calls, self.module, self.watched, self.compiler = calls, module, calls.watched, compiler

    def seen(self, place: Place, call: FrameType, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        if _running()[-1] is not self or call.f_locals["self"] is not self.module:  # it is another module's own
            return func(*args, **kwargs)
        return self.calls.compute(place, self.module, func, args, kwargs)


_STATISTICS = frozenset(name.strip("_") for name in STATISTICS)
_LOCAL = local()


def _running() -> list[_Mode]:
    """The modes that are entered in this thread: replicas of a model run in several."""
    if not hasattr(_LOCAL, "modes"):
        _LOCAL.modes = []
    modes: list[_Mode] = _LOCAL.modes
    return modes
