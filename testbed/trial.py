"""One random plan of one random network, carried out and held against the oracle."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.errors import SurgeonError
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Groups, couple
from surgeon.rules import RuleFailure
from surgeon.surgery import operate
from testbed import oracle
from testbed.networks import random_network, tensors

#: The largest relative deviation in float64 that rounding explains.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Outcome:
    """What became of one random plan of one network.

    `verdict` is "right", "wrong" (it runs and computes something else), "refused" (surgeon says that it can't, and
    why), "crashed" (any other error) or "nothing" (the network has no group). `deviation` is relative; nan where
    nothing was compared.
    """

    seed: int
    plan: int
    network: str
    verdict: str
    form: str = ""
    groups: int = 0
    removed: int = 0
    deviation: float = float("nan")
    message: str = ""


def random_plan(groups: Groups, rng: Random) -> dict[int, list[int]]:
    """For each group a random part of its units, at least one; now and then all of them, or a single one."""
    keep: dict[int, list[int]] = {}
    for group in groups:
        count = rng.choice([group.size, 1, *(rng.randint(1, group.size) for _ in range(6))])
        keep[group.leaf.id] = sorted(rng.sample(range(group.size), count))
    return keep


def cuts_of(groups: Groups, keep: dict[int, list[int]]) -> dict[tuple[str, int], list[int]]:
    """What a plan leaves of each tensor: name and axis -> kept positions."""
    kept = groups.kept(keep)
    return {
        (name, index): kept.positions(axis).tolist()
        for name, axes in groups.tensors.items()
        for index, axis in enumerate(axes)
        if kept.changed(axis)
    }


def examine(seed: int, plans: int = 1) -> Iterator[Outcome]:
    """Prune the network of this seed by `plans` random plans, and compare each result with the oracle's."""
    network, inputs = random_network(seed)
    network, inputs = network.double(), oracle.double(inputs)  # before tracing, which writes types into the graph
    name = type(network).__name__
    before = {key: value.clone() for key, value in network.state_dict().items()}
    try:
        with only_failures_of_rules():
            groups = couple(trace(network, inputs))
    except Exception as error:  # noqa: BLE001  (whatever goes wrong is what the fuzz is after)
        yield failure(Outcome(seed, 0, name, ""), error)
        return
    if not len(groups):
        yield Outcome(seed, 0, name, "nothing")
        return
    for plan in range(plans):
        keep = random_plan(groups, Random(f"{seed}/{plan}"))
        about = partial(Outcome, seed, plan, name, groups=len(groups),
                        removed=sum(group.size - len(keep[group.leaf.id]) for group in groups))
        try:
            with only_failures_of_rules():
                yield _compare(network, groups, keep, inputs, about)
        except Exception as error:  # noqa: BLE001
            yield failure(about(""), error)
    after = network.state_dict()
    if not all(torch.equal(value, after[key]) for key, value in before.items()):
        yield Outcome(seed, 0, name, "wrong", message="the original network was changed")


@contextmanager
def only_failures_of_rules() -> Iterator[None]:
    """Of all warnings, the one that a rule failed is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", RuleFailure)
        yield


def _compare(
    network: nn.Module, groups: Groups, keep: dict[int, list[int]], inputs: tuple[Tensor, ...],
    about: partial[Outcome],
) -> Outcome:
    operation = operate(network, groups, keep)
    slim = operation.module
    if groups.graph.dynamic:  # another batch size finds one that was written into a reshape
        inputs = pytree.tree_map(lambda x: x[[0, 1, 0]], inputs)
    expected = oracle.masked(network, cuts_of(groups, keep), inputs)
    with torch.no_grad():
        found = tensors(slim(*inputs))
    deviation = oracle.deviation(list(found), expected)
    unknown = set(slim.state_dict()) - set(network.state_dict())
    if unknown:
        return about("wrong", operation.form, deviation=deviation, message=f"new names in the state_dict: {unknown}")
    right = deviation <= TOLERANCE
    return about("right" if right else "wrong", operation.form, deviation=deviation, message=operation.reason)


def failure(about: Outcome, error: Exception) -> Outcome:
    """What an error makes of a trial: surgeon's own is a refusal."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    message = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {error}"
    return replace(about, verdict="refused" if isinstance(error, SurgeonError) else "crashed", message=message)
