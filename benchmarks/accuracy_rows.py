"""What is measured in the rows of `benchmarks.accuracy` on the networks of `models/`, without labels."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import models
import surgeon
from benchmarks import peers
from benchmarks.latency_subject import measured
from models.data import load_test, load_train

SAMPLES = 1024
"""Unlabeled images, of the training set."""
LABELED = {"Taylor": 512, "Hessian": 16}
"""Labeled ones, for the peer's criteria that want labels."""
COMPARED = 2000
"""Test images that the peer's criteria are compared on."""

TOGETHER = 500
"""Test images that are run at a time."""

Row = dict[str, Any]


class Subject:
    """A network of `models/`, the images that it is judged by, and those that a seed draws for it."""

    def __init__(self, network: str, seed: int) -> None:
        self.network, self.seed = network, seed
        self.model = models.load(network)
        self.images, self.labels = load_test()
        self.inputs = self.images[:2]
        self.train, self.train_labels = load_train()
        self.drawn = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        self.macs = macs(self.model, self.inputs)

    @property
    def data(self) -> Tensor:
        """The unlabeled images."""
        return self.train[self.drawn[:SAMPLES]]

    def accuracy(self, model: nn.Module) -> float:
        """The share of the test images that a model gets right."""
        return models.accuracy(model, self.images, self.labels)

    def shrink(self, ratio: float, **options: Any) -> Any:
        """What `surgeon.shrink` makes of the network with the images."""
        given: dict[str, Any] = {"data": self.data, "samples": SAMPLES, "seed": self.seed, **options}
        return surgeon.shrink(self.model, ratio, example_inputs=self.inputs, **given)

    def judged(self, make: Callable[[], Any]) -> tuple[nn.Module, Row]:
        """A smaller model, with its accuracy, its share of the MACs, and the CPU seconds that it took.

        With a report, also the agreement that it tells, and the true one: the share of the test images that get the
        network's own class.
        """
        start = time.process_time()
        made = make()
        seconds = time.process_time() - start
        slim, report = made if isinstance(made, tuple) else (made, None)
        row = {"accuracy": self.accuracy(slim), "macs": macs(slim, self.inputs) / self.macs, "seconds": seconds}
        if report is not None and report.agreement is not None:
            row |= {"predicted": report.agreement.share, "agreement": self.agreement(slim)}
        return slim, row

    def agreement(self, slim: nn.Module) -> float:
        """The share of the test images that get the class that the network gives them."""
        return models.accuracy(slim, self.images, _classes(self.network))


def macs(model: nn.Module, inputs: Any) -> float:
    """Multiply-accumulate operations of one of the samples in `inputs`, a tensor or a dict, by torch's own count."""
    named = inputs if isinstance(inputs, dict) else {}
    tensors = () if named else (inputs,)
    # the counter knows matrix products, but not every fused attention
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(*tensors, **named)
    return counter.get_total_flops() / 2 / len(next(iter((*tensors, *named.values()))))


@functools.cache
def dense(network: str) -> float:
    """The accuracy of a whole network."""
    return models.accuracy(models.load(network), *load_test())


@functools.cache
def _classes(network: str) -> Tensor:
    """The classes that a whole network gives the test images."""
    model = models.load(network)
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in load_test()[0].split(TOGETHER)])


def free(subject: Subject, ratio: float) -> Row:
    """Any width."""
    _, row = subject.judged(lambda: subject.shrink(ratio, align=1, return_report=True))
    return {"dense": dense(subject.network), "images": SAMPLES, **row}


def fast(subject: Subject, ratio: float, files: Path, seconds: float) -> Row:
    """Widths that are fast in onnxruntime, and how much faster they are, beside the base in one process."""
    slim, row = subject.judged(lambda: subject.shrink(ratio, return_report=True))
    base, other = files / f"{subject.network}.onnx", files / f"{subject.network}_{ratio:g}_{subject.seed}.onnx"
    for path, model in ((base, subject.model), (other, slim)):
        surgeon.export(model, path, example_inputs=subject.inputs)
    found = measured(base, other, seconds)
    timed = {name: found[name] for name in ("ratio", "low", "high", "base_ms", "slim_ms", "fallen")}
    return {"images": SAMPLES, **row, **timed}


def parts(subject: Subject, ratio: float) -> Row:
    """Each part of the recovery switched off by itself, at any width."""
    found: Row = {}
    for name, make in _PARTS.items():
        found[name] = subject.judged(lambda: make(subject, ratio))[1]  # noqa: B023  (called at once)
    return found


def _without_selection(subject: Subject, ratio: float) -> nn.Module:
    """The widths that the data ask for, but of each group the units with the largest weights."""
    rotated = _projected(subject)
    given: dict[str, Any] = {"example_inputs": subject.inputs, "align": 1, "data": subject.data, "samples": SAMPLES}
    guided = surgeon.plan(rotated, ratio, seed=subject.seed, **given)
    groups = surgeon.inspect(rotated, subject.inputs)
    kept = guided.keep(groups)
    widths = {group.name: len(kept.get(group.leaf.id, range(group.size))) for group in groups}
    plan = surgeon.plan(rotated, ratio, importance="magnitude", min_width=widths, **given)
    return _recovered(subject, rotated, plan)


def _without_batch_norm(subject: Subject, ratio: float) -> nn.Module:
    rotated = _projected(subject)
    plan = surgeon.plan(
        rotated, ratio, example_inputs=subject.inputs, align=1, data=subject.data, samples=SAMPLES, seed=subject.seed
    )
    return _recovered(subject, rotated, plan, batch_norm=False)


def _projected(subject: Subject) -> nn.Module:
    return surgeon.project(subject.model, subject.data, samples=SAMPLES, example_inputs=subject.inputs)


def _recovered(subject: Subject, model: nn.Module, plan: surgeon.Plan, **options: Any) -> nn.Module:
    slim = plan.apply(model, example_inputs=subject.inputs)
    return surgeon.recover(model, slim, plan, data=subject.data, samples=SAMPLES, **options)


_PARTS: dict[str, Callable[[Subject, float], nn.Module]] = {
    "all parts": lambda subject, ratio: subject.shrink(ratio, align=1),
    "selection": _without_selection,
    "allocation": lambda subject, ratio: subject.shrink(ratio, align=1, scope="local"),
    "compensation": lambda subject, ratio: subject.shrink(ratio, align=1, compensate=False),
    "BatchNorm": _without_batch_norm,
    "distillation": lambda subject, ratio: subject.shrink(ratio, align=1, distill=False),
    "projection": lambda subject, ratio: subject.shrink(ratio, align=1, project=False),
    "data": lambda subject, ratio: subject.shrink(ratio, align=1, data=None, compensate=False),
}
PARTS = tuple(_PARTS)


def noise(subject: Subject, ratio: float) -> Row:
    """Without any data, and no image among the example inputs: the plain cut, the default, and more noise."""
    example = torch.randn(subject.inputs.shape, generator=torch.Generator().manual_seed(subject.seed))
    found: Row = {}
    ways: dict[str, dict[str, Any]] = {"plain": {"compensate": False}, "64": {}, "256": {"data": "noise"}}
    for name, options in ways.items():
        given: dict[str, Any] = {"example_inputs": example, "seed": subject.seed, "return_report": True, **options}
        make = functools.partial(surgeon.shrink, subject.model, ratio, **given)
        found[name] = subject.judged(make)[1]
    return found


def no_data(subject: Subject, ratio: float) -> Row:
    """Inputs made up from the network alone, at any width; not even the example inputs are images."""
    noise = torch.randn(subject.inputs.shape, generator=torch.Generator().manual_seed(subject.seed))
    return subject.judged(lambda: surgeon.shrink(
        subject.model, ratio, example_inputs=noise, align=1, data="synthetic", seed=subject.seed, return_report=True
    ))[1]


def peer(subject: Subject, ratio: float) -> Row:
    """Torch-Pruning with each of its criteria, at any width; and torch's own pruning of the same share of channels.

    The criteria are compared on the first test images, the best one is judged on all.
    """
    torch.manual_seed(subject.seed)
    found, best = peers.best(
        subject.model, (subject.inputs,), recipes(subject), lambda model: macs(model, subject.inputs),
        (1 - ratio) * subject.macs,
        lambda model: models.accuracy(model, subject.images[:COMPARED], subject.labels[:COMPARED]),
    )
    for row in found.values():
        if "macs" in row:
            row["macs"] /= subject.macs
    row = {"criteria": found, "zeroed": subject.accuracy(peers.zeroed(subject.model, ratio))}
    return row if best is None else {**row, "best": best[0], "accuracy": subject.accuracy(best[1])}


def recipes(subject: Subject) -> list[peers.Recipe]:
    """All that the peer is asked for: every criterion ranked globally, and L2 by layer and by kind of layer too."""
    made = [peers.Recipe("L2", scope) for scope in ("local", "isomorphic")]
    for criterion in peers.CRITERIA:
        chosen = subject.drawn[: LABELED.get(criterion, 0)]
        labeled = (subject.train[chosen], subject.train_labels[chosen]) if len(chosen) else None
        made.append(peers.Recipe(criterion, labeled=labeled))
    return made
