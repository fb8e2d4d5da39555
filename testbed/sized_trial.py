"""One random plan of one network that takes several sizes, held against the oracle at each of them, in both forms."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from surgeon.errors import SurgeonError
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import couple
from surgeon.surgery.build import carry_out
from testbed import oracle
from testbed.networks import tensors
from testbed.sized_networks import Inputs, sized_network
from testbed.trial import TOLERANCE, Outcome, cuts_of, failure, only_failures_of_rules, random_plan

#: What the error of bfloat16 may be: over the original's own, over what roundings do to the smaller model in float64
#: where that is more, as behind a norm of two channels; or in all, four units in the last place.
TIMES, LEAST = 2.0, 2.0**-6
#: Roundings that are drawn, and how large one is.
DRAWS, ROUNDING = 4, 2.0**-9


def examine_sizes(seed: int, forms: tuple[str, ...] = ("auto", "graph")) -> Iterator[Outcome]:
    """Prune the network of this seed by one random plan, and try the result at each size and in bfloat16.

    The `plan` of an outcome is the place of the size, or -1 for bfloat16. "refused" is what the original takes and the
    smaller model says that it does not; where the original fails, the smaller one has to fail too.
    """
    network, sizes = sized_network(seed)
    network, sizes = network.double(), [oracle.double(inputs) for inputs in sizes]
    name = type(network).__name__
    try:
        with only_failures_of_rules():
            groups = couple(trace(network, sizes[0]))
            keep = random_plan(groups, Random(f"{seed}/sizes"))
            if not len(groups):
                yield Outcome(seed, 0, name, "nothing")
                return
            made = [carry_out(network, groups, keep, form)[0] for form in forms]
    except Exception as error:  # noqa: BLE001  (whatever goes wrong is what the fuzz is after)
        yield failure(Outcome(seed, 0, name, ""), error)
        return
    removed = sum(group.size - len(keep[group.leaf.id]) for group in groups)
    for operation in made[:1] if made[0].form == "graph" else made:
        about = partial(Outcome, seed, network=name, form=operation.form, groups=len(groups), removed=removed)
        for place, inputs in enumerate(sizes):
            yield _at(network, operation.module, cuts_of(groups, keep), inputs, partial(about, plan=place))
        yield _in_half(network, operation.module, sizes[0], partial(about, plan=-1))


def _at(network: nn.Module, slim: nn.Module, cuts: oracle.Cuts, inputs: Inputs, about: partial[Outcome]) -> Outcome:
    """The smaller model at one size."""
    shapes = ", ".join(str(tuple(each.shape)) for each in inputs)
    try:
        expected = oracle.masked(network, cuts, inputs)
    except NotImplementedError as error:
        return failure(about(verdict=""), error)
    except Exception as error:  # noqa: BLE001  (the original may refuse a size with any error)
        expected, why = [], f"{error}"
    try:
        found = _run(slim, inputs)
    except SurgeonError as error:
        if not expected:
            return about(verdict="right", message=f"refused like the original: {why}")
        return about(verdict="refused", message=f"at {shapes}: {error}")
    except Exception as error:  # noqa: BLE001  (and so may the smaller model)
        if not expected:
            return about(verdict="right", message=f"fails like the original: {why}")
        return about(verdict="crashed", message=f"at {shapes}: {type(error).__name__}: {error}")
    if not expected:
        return about(verdict="wrong", message=f"at {shapes} it answers, where the original fails: {why}")
    if [x.shape for x in found] != [y.shape for y in expected]:
        return about(verdict="wrong", message=f"at {shapes} its outputs are {[tuple(x.shape) for x in found]}")
    deviation = oracle.deviation(found, expected)
    right = deviation <= TOLERANCE
    return about(verdict="right" if right else "wrong", deviation=deviation, message="" if right else f"at {shapes}")


def _in_half(network: nn.Module, slim: nn.Module, inputs: Inputs, about: partial[Outcome]) -> Outcome:
    """The smaller model in bfloat16, against the original's error in it."""
    try:
        original = _error(network, inputs)
    except RuntimeError as error:
        return about(verdict="right", message=f"the original does not run in bfloat16: {error}")
    try:
        found = _error(slim, inputs)
    except Exception as error:  # noqa: BLE001
        return about(verdict="crashed", message=f"in bfloat16: {type(error).__name__}: {error}")
    right = found <= max(TIMES * original, LEAST) or found <= TIMES * _sensitivity(slim, inputs)
    message = "" if right else f"in bfloat16, whose error is {original:.2g} in the original"
    return about(verdict="right" if right else "wrong", deviation=found, message=message)


def _error(module: nn.Module, inputs: Inputs) -> float:
    """The largest deviation of bfloat16 from float64, of weights that both can hold."""
    rounded = deepcopy(module).bfloat16()
    half: Any = tuple(x.bfloat16() if x.is_floating_point() else x for x in inputs)
    exact = deepcopy(rounded).double()
    found = _run(rounded, half)
    return oracle.deviation([x.double() for x in found], _run(exact, oracle.double(half)))


class _Rounded(TorchDispatchMode):
    """Makes an error of the size of a rounding in every floating result."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def of(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        noise = torch.rand(value.shape, generator=self.generator, dtype=value.dtype)
        return value * (1 + ROUNDING * (2 * noise - 1))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return pytree.tree_map(self.of, func(*args, **(kwargs or {})))


def _sensitivity(module: nn.Module, inputs: Inputs) -> float:
    """The largest deviation, in float64, that roundings of the weights, the inputs and all results make."""
    exact = _run(module, inputs)
    found = 0.0
    for seed in range(DRAWS):
        rounded = _Rounded(torch.Generator().manual_seed(seed))
        other = deepcopy(module)
        for tensor in [*other.parameters(), *other.buffers()]:
            tensor.data = rounded.of(tensor.data)
        with rounded:
            found = max(found, oracle.deviation(_run(other, tuple(map(rounded.of, inputs))), exact))
    return found


def _run(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad(), only_failures_of_rules():
        return list(tensors(module(*inputs)))
