"""The parts of a model that can be traced where the whole can't: its largest submodules that the rest only calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from surgeon.errors import InvalidInputs, SurgeonError, first_line
from surgeon.frontend.copies import duplicate
from surgeon.frontend.isolation import quietly, untouched
from surgeon.frontend.trace import Inputs, trace_inputs

#: A part that is called in more ways than this is left alone.
WAYS = 8


class Parts(nn.Module):
    """Submodules of a model under their own names. `forward` takes `(args, kwargs)` for each path in `called`.

    `why` says why the whole can't be traced.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 4)))
    >>> parts = Parts(net, ["1"])
    >>> [name for name, _ in parts.named_parameters()]
    ['1.1.weight', '1.1.bias']
    >>> parts(((torch.zeros(2, 3),), {}))[0].shape
    torch.Size([2, 4])
    """

    def __init__(self, model: nn.Module, called: Iterable[str], why: str = "") -> None:
        super().__init__()
        self.called, self.why = tuple(called), why
        self.training = model.training
        for path in dict.fromkeys(self.called):
            *parents, name = path.split(".")
            holder: nn.Module = self
            for parent in parents:
                if parent not in holder._modules:
                    holder.add_module(parent, nn.Module())
                holder = holder.get_submodule(parent)
            holder.add_module(name, model.get_submodule(path))

    def forward(self, *calls: Any) -> list[Any]:
        pairs = zip(self.called, calls, strict=True)
        return [self.get_submodule(path)(*args, **kwargs) for path, (args, kwargs) in pairs]


def put_back(model: nn.Module, parts: nn.Module, called: Iterable[str]) -> nn.Module:
    """A copy of the model with other parts in place of its own.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 4)))
    >>> other = Parts(nn.Sequential(nn.Identity(), nn.Tanh()), ["1"])
    >>> put_back(net, other, ["1"])
    Sequential(
      (0): Linear(in_features=2, out_features=3, bias=True)
      (1): Tanh()
    )
    """
    memo: dict[int, Any] = {}
    for path in called:
        new = dict(parts.get_submodule(path).named_modules(remove_duplicate=False))
        for name, old in model.get_submodule(path).named_modules(remove_duplicate=False):
            if name in new:
                memo[id(old)] = new[name]
    return duplicate(model, memo)


def traceable_parts(model: nn.Module, inputs: Inputs, why: str = "") -> tuple[Parts, Inputs] | None:
    """The largest submodules of the model that can be traced and that nothing else reaches into, and the inputs that
    they get while the model runs in eval mode on `inputs`. None where there is no such part.

    What leaves and enters a part keeps its shape when the part is cut as a model by itself, so that the rest of the
    model fits it as before.
    """
    found: dict[str, list[Inputs]] = {}
    waiting = _below(model, "")
    while waiting:
        calls = calls_of(model, waiting, inputs)
        below = []
        for path in waiting:
            if 0 < len(calls.get(path, ())) <= WAYS and _traces(model, path, calls[path]):
                found[path] = calls[path]
            else:
                below += _below(model, path)
        waiting = below
    return _together(model, found, why)


def parts_at(model: nn.Module, paths: Iterable[str], inputs: Inputs) -> tuple[Parts, Inputs] | None:
    """The parts at these paths, and the inputs that they get while the model runs on `inputs`."""
    return _together(model, calls_of(model, list(dict.fromkeys(paths)), inputs))


def _together(model: nn.Module, calls: Mapping[str, list[Inputs]], why: str = "") -> tuple[Parts, Inputs] | None:
    pairs = [(path, call) for path, each in calls.items() for call in each]
    if not pairs:
        return None
    return Parts(model, [path for path, _ in pairs], why), (tuple(call for _, call in pairs), {})


def _below(model: nn.Module, path: str) -> list[str]:
    """The submodules next below one, without those in which there is no width between two modules with parameters."""
    return [
        f"{path}.{name}".lstrip(".") for name, module in model.get_submodule(path).named_children()
        if not isinstance(module, torch.jit.ScriptModule)
        and sum(bool(each._parameters) for each in module.modules()) > 1
    ]


def _traces(model: nn.Module, path: str, calls: list[Inputs]) -> bool:
    with suppress(SurgeonError):
        trace_inputs(Parts(model, [path] * len(calls)), (tuple(calls), {}), dynamic=False)
        return True
    return False


def calls_of(model: nn.Module, paths: Iterable[str], inputs: Inputs) -> dict[str, list[Inputs]]:
    """How the submodules at `paths` are called while the model runs in eval mode, one call of each kind.

    Those are left out of which something is used from outside while they don't run, and those that share a parameter.

    Raises:
        InvalidInputs: the model does not run.
    """
    runner = duplicate(model).eval()
    watch = _Watch({path: runner.get_submodule(path) for path in paths}, runner)
    args, kwargs = pytree.tree_map_only(Tensor, lambda value: value.detach().clone(), inputs)
    try:
        with untouched(model), quietly(), torch.no_grad(), watch.watching(), watch:
            runner(*args, **kwargs)
    except Exception as error:
        name = type(model).__name__
        raise InvalidInputs(f"{name}.forward does not run on example_inputs: {first_line(error)}") from error
    return {path: list(calls.values()) for path, calls in watch.calls.items() if path not in watch.entered}


class _Watch(TorchFunctionMode):
    """Notes how parts of a model are called, and which of them something else reaches into."""

    def __init__(self, parts: Mapping[str, nn.Module], model: nn.Module) -> None:
        super().__init__()
        self.calls: dict[str, dict[str, Inputs]] = {}
        self._parts = parts
        self._depth = dict.fromkeys(parts, 0)
        self._within: dict[int, set[str]] = {}
        for path, part in parts.items():
            for held in (*part.modules(), *part.parameters(), *part.buffers()):
                self._within.setdefault(id(held), set()).add(path)
        inside = {id(module) for part in parts.values() for module in part.modules()}
        rest = [module for module in model.modules() if id(module) not in inside]
        outside = {id(value) for each in rest for value in (*each._parameters.values(), *each._buffers.values())}
        shared = [owners for key, owners in self._within.items() if len(owners) > 1 or key in outside]
        self.entered = set().union(*shared)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in pytree.tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._use(value)
        return func(*args, **(kwargs or {}))

    def _use(self, held: Any) -> None:
        for path in self._within.get(id(held), ()):
            if not self._depth[path]:
                self.entered.add(path)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While the model runs."""
        handles: list[Any] = []
        for path, part in self._parts.items():
            inner = [each for each in part.modules() if each is not part]
            known = [each for each in inner if not isinstance(each, torch.jit.ScriptModule)]
            handles += [each.register_forward_pre_hook(lambda module, args: self._use(module)) for each in known]
            handles.append(part.register_forward_pre_hook(self._begins(path), with_kwargs=True, prepend=True))
            handles.append(part.register_forward_hook(self._ends(path), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begins(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._depth[path] += 1
            leaves, spec = pytree.tree_flatten((args, kwargs))
            kind = str([spec, [(v.dtype, v.dim()) if isinstance(v, Tensor) else v for v in leaves]])
            copied = pytree.tree_map_only(Tensor, lambda value: value.detach().clone(), (args, dict(kwargs)))
            self.calls.setdefault(path, {}).setdefault(kind, copied)

        return hook

    def _ends(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            self._depth[path] -= 1

        return hook
