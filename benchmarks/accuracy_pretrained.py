"""Rows of `benchmarks.accuracy` on published weights: what a cut leaves of them, without labels.

Each is judged on inputs that are held back. Beside `surgeon.shrink`, at its own widths, with 256 unlabeled inputs, on
noise and on nothing but the weights, stands Torch-Pruning, at widths that are multiples of 16 and with the statistics
of its batch norms re-estimated on the same inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import surgeon
from benchmarks import accuracy_networks as networks
from benchmarks import peers
from benchmarks.accuracy_inputs import crops, sentences
from benchmarks.accuracy_rows import macs
from benchmarks.accuracy_sounds import tones, voices

SAMPLES = 256
HELD_BACK = 300
"""Inputs that models are judged on; sentences are fewer."""
ROUND_TO = 16
CHUNK = 50
"""Inputs that are run at a time."""
RIGHT = 50.0
"""Cents that a pitch may be off."""
UNLABELED = tuple(
    peers.Recipe(criterion, scope, ROUND_TO)
    for criterion, scope in (
        ("L2", "global"), ("L2", "local"), ("L2", "isomorphic"), ("BatchNorm scale", "global"), ("FPGM", "global"),
    )
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Real:
    """A network, unlabeled inputs, a tensor or a dict, and the score of a smaller model on those held back."""

    model: nn.Module
    data: Any
    score: Callable[[nn.Module], float]
    held_back: int
    recipes: Sequence[peers.Recipe] = field(default=UNLABELED)


def make(name: str, ratio: float, seed: int) -> Row:
    """surgeon with data, on noise and on neither, and the peer, each at the same MACs."""
    real = SUBJECTS[name](seed)
    example = _first(real.data, 2)
    whole = macs(real.model, example)
    given: dict[str, Any] = {"example_inputs": example, "seed": seed}
    found: Row = {"held_back": real.held_back, "original": real.score(real.model)}
    ways: dict[str, Row] = {
        "data": {"data": real.data, "samples": SAMPLES}, "noise": {"data": "noise"}, "plain": {"compensate": False},
    }
    for way, options in ways.items():
        start, wall = time.process_time(), time.perf_counter()
        try:
            slim = surgeon.shrink(real.model, ratio, **given, **options)
        except surgeon.SurgeonError as error:
            found[way] = {"error": f"{type(error).__name__}: {error}"}
            continue
        seconds, wall = time.process_time() - start, time.perf_counter() - wall
        found[way] = {"score": real.score(slim), "macs": macs(slim, example) / whole, "seconds": seconds, "wall": wall}
    return {**found, "peer": _peer(real, example, whole, ratio, seed)}


def _peer(real: Real, example: Any, whole: float, ratio: float, seed: int) -> Row:
    torch.manual_seed(seed)

    def judge(slim: nn.Module) -> float:
        reestimate(slim, _first(real.data, SAMPLES))
        return real.score(slim)

    inputs = example if isinstance(example, dict) else (example,)
    found, _ = peers.best(real.model, inputs, real.recipes, partial(macs, inputs=example), (1 - ratio) * whole, judge)
    for row in found.values():
        if "macs" in row:
            row["macs"] /= whole
    return found


@torch.no_grad()
def reestimate(model: nn.Module, data: Any) -> None:
    """Give all batch norms the statistics of these inputs; the rest of the model stays in eval mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    run(model, data)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


@torch.no_grad()
def run(model: nn.Module, data: Any) -> tuple[Tensor, ...]:
    """The model's outputs for all inputs, some at a time."""
    named = isinstance(data, dict)
    rows = len(next(iter(data.values()))) if named else len(data)
    found = []
    for at in range(0, rows, CHUNK):
        part = {name: value[at : at + CHUNK] for name, value in data.items()} if named else data[at : at + CHUNK]
        outputs = model(**part) if named else model(part)
        found.append(outputs if isinstance(outputs, tuple) else (outputs,))
    return tuple(torch.cat(each) for each in zip(*found, strict=True))


def _first(data: Any, count: int) -> Any:
    return {name: value[:count] for name, value in data.items()} if isinstance(data, dict) else data[:count]


def _lite(lite: str, seed: int) -> Real:
    """The share of held-back crops whose top-1 is the original's."""
    model: Any = networks.efficientnet(lite)
    size = model.default_cfg["input_size"][-1]
    held = crops(HELD_BACK, held_back=True, seed=seed, size=size)
    before = run(model, held)[0].argmax(1)
    return Real(
        model, crops(SAMPLES, held_back=False, seed=seed, size=size),
        lambda slim: float((run(slim, held)[0].argmax(1) == before).float().mean()), HELD_BACK,
    )


def _face(name: str, seed: int) -> Real:
    """The share of the variance of the original's logits, boxes and landmarks that is kept: 1 - the error's."""
    model, size = networks.face_network(name)
    held = crops(HELD_BACK, held_back=True, seed=seed, size=size)
    before = _logits(run(model, held))

    def kept(slim: nn.Module) -> float:
        parts = zip(_logits(run(slim, held)), before, strict=True)
        errors = [float((a - b).square().mean() / (b - b.mean(0)).square().mean()) for a, b in parts]
        return 1 - sum(errors) / len(errors)

    return Real(model, crops(SAMPLES, held_back=False, seed=seed, size=size), kept, HELD_BACK, _but_heads(model))


def _logits(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    face, *rest = outputs
    chance = face[:, 1:].clamp(1e-6, 1 - 1e-6)
    return [(chance / (1 - chance)).log(), *rest]


def _crepe(size: str, seed: int) -> Real:
    """The share of held-back tones whose pitch is right, within 50 cents."""
    (data, _), (held, right) = tones(SAMPLES, 2 * seed), tones(HELD_BACK, 2 * seed + 1)

    def share(slim: nn.Module) -> float:
        cents = 1200 * (networks.pitches(run(slim, held)[0]) / right).log2()
        return float((cents.abs() < RIGHT).float().mean())

    return Real(networks.crepe(size), data, share, HELD_BACK)


def _cosine(model: nn.Module, data: Any, held: Any, recipes: Sequence[peers.Recipe]) -> Real:
    """The mean cosine of held-back inputs' embeddings to the original's."""
    before = run(model, held)[0]
    return Real(model, data, lambda slim: float((run(slim, held)[0] * before).sum(1).mean()), len(before), recipes)


def _minilm(seed: int) -> Real:
    model, encode = networks.sentence_embedder()
    order = torch.randperm(len(shown := sentences(held_back=False)), generator=torch.Generator().manual_seed(seed))
    data, held = encode([shown[i] for i in order.tolist()]), encode(sentences(held_back=True))
    inside = ("query", "key", "value", "intermediate.dense")
    ignored = tuple(
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and not name.endswith(inside)
    )
    return _cosine(model, data, held, _without_norms(UNLABELED, ignored))


def _resemblyzer(seed: int) -> Real:
    data, held = (voices(sentences(part), part, seed) for part in (False, True))
    return _cosine(networks.voice_encoder(), data[:SAMPLES], held, _without_norms(UNLABELED, ("linear",)))


def _but_heads(model: nn.Module) -> list[peers.Recipe]:
    """The heads are left alone; any width will do, since some layers have no more than 10 channels."""
    heads = tuple(name for name, _ in model.named_modules() if name.startswith("heads."))
    return [replace(each, round_to=None) for each in _without_norms(UNLABELED, heads)]


def _without_norms(recipes: Sequence[peers.Recipe], ignored: tuple[str, ...]) -> list[peers.Recipe]:
    """What is asked of the peer where there are no batch norms to rank channels by."""
    return [replace(each, ignored=ignored) for each in recipes if each.criterion != "BatchNorm scale"]


SUBJECTS: dict[str, Callable[[int], Real]] = {
    "crepe_full": partial(_crepe, "full"),
    "crepe_tiny": partial(_crepe, "tiny"),
    **{lite: partial(_lite, lite) for lite in ("lite0", "lite1", "lite2")},
    "minilm": _minilm,
    "resemblyzer": _resemblyzer,
    **{name: partial(_face, name) for name in ("pnet", "rnet", "onet")},
}
