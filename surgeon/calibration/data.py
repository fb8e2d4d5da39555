"""Calibration data: a bounded number of checked inputs from anything that yields batches, in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.calibration.checks import Checks, tensor_of_samples
from surgeon.calibration.footprint import bytes_backwards
from surgeon.calibration.labels import joined, per_sample
from surgeon.calibration.noise import noise_for
from surgeon.calibration.synthesis import synthesize_for
from surgeon.errors import InvalidInputs
from surgeon.frontend import parameters
from surgeon.frontend.batches import UNUSED, batches, beside, chosen, nothing
from surgeon.frontend.free_sizes import IsolatedCopy, Unfit
from surgeon.frontend.input_spec import by_argument
from surgeon.frontend.parameters import MADE, NOISE
from surgeon.frontend.pictures import Pictures
from surgeon.frontend.trace import Graph, Inputs
from surgeon.groups.weights import check_finite, check_real
from surgeon.ir.fingerprint import named_tensors
from surgeon.ir.size_conditions import Place
from surgeon.support.arguments import POSITIVE
from surgeon.support.memory import working_memory
from surgeon.support.progress import counter

#: Samples that are run at once; fewer if what gradients need would take more than this part of the working memory.
CHUNK = 32
BACKWARDS = 1 / 4
#: The part of the working memory that the inputs may take; fewer samples are used if they would take more.
INPUTS = 1 / 2
#: Samples that are used whatever memory they take.
FEWEST = 16
#: One sample, or one fixed batch, in this many is held back.
HELD_BACK = 8
#: The most different sizes of samples, such as lengths, that are used.
MOST_SIZES = 16
#: Samples that are run at once where there are labels: gradients are observed batch by batch.
LABELED_CHUNK = 8

# The sizes of a sample's tensors.
Sizes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Calibration:
    """Inputs `(args, kwargs)` for a traced graph: those to fit on, and those held back to validate the fit.

    `rest` is what each of `batches` holds besides the inputs, such as labels, if that was asked for. `varying` are the
    axes of the inputs, besides the batch, that are not of the sizes that the graph was traced with in all of the
    batches. `noise` says that the inputs are random, and unrelated to what the model was trained on; `unscaled`, that
    then nothing in the model gives its values the scale that they have on real inputs; `restated`, that batch norms do,
    but only with statistics of these inputs. On `checks` nothing is done but that outputs are compared.
    """

    fit: tuple[Inputs, ...] = field(repr=False)
    held_back: tuple[Inputs, ...] = field(repr=False)
    samples: int
    notes: tuple[str, ...] = ()
    rest: tuple[tuple[Any, ...], ...] = field(default=(), repr=False)
    varying: frozenset[Place] = frozenset()
    noise: bool = False
    unscaled: bool = False
    restated: bool = False
    checks: tuple[Inputs, ...] = field(default=(), repr=False)
    #: By the id of a graph: itself, and the same with the statistics of these inputs, which take a run of the model.
    known: dict[int, tuple[Graph, Graph]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def checked(self) -> tuple[Inputs, ...]:
        """The batches on which outputs are compared: `checks`, or else those held back."""
        return self.checks or self.held_back

    @property
    def batches(self) -> tuple[Inputs, ...]:
        """All batches, those to fit on first."""
        return (*self.fit, *self.held_back)


def calibrate(
    data: Any, graph: Graph, model: nn.Module, samples: int = 256, *, labeled: bool = False, seed: int = 0
) -> Calibration:
    """At most `samples` samples of `data`, no more than the memory allows, as inputs of `graph`, which is `model`'s.

    `data` is a tensor or array of samples, a dict of them by keyword, or any iterable of batches, such as a DataLoader:
    each a tensor, an array, a dict by the names of the model's inputs, or a tuple or list that starts with the model's
    inputs. The rest of a batch, such as labels, is ignored unless `labeled`. No more is read than needed, and the
    processes of a DataLoader end. "synthetic" stands for inputs that are synthesized from the model, "noise" for noise,
    both by `seed`.

    Batches may be of other sizes than the example inputs, such as lengths, where the model runs on them; samples are
    only put together with others of their own sizes.

    Raises:
        InvalidArgument: `samples` is not a positive integer, or `data` does not yield batches.
        InvalidModel: no inputs can be synthesized from the model.
        InvalidInputs: there is no batch, an iterator is exhausted, or a batch has another shape or type than the
            model's inputs, on which the model does not run, or holds NaN or infinity; the message names the batch.

    >>> from surgeon.frontend.trace import trace
    >>> net = nn.Linear(3, 2)
    >>> found = calibrate([(torch.ones(4, 3), torch.zeros(4))] * 5, trace(net, torch.zeros(2, 3)), net, samples=16)
    >>> found.samples, [tuple(args[0].shape) for args, _ in found.batches]
    (16, [(14, 3), (2, 3)])
    """
    samples, data = POSITIVE("samples", samples), parameters.data("data", data)
    check_finite(graph)
    check_real(graph)
    notes = []
    reader = Reader(graph, model)
    most = working_memory(INPUTS)
    affordable = max(most // max(reader.bytes, 1), FEWEST)
    if affordable < samples:
        notes.append(f"{affordable} samples instead of {samples}: more would take over {most / 2**30:.1f} GiB")
        samples = affordable
    if isinstance(data, str) and data in MADE:
        made = (noise_for if data == NOISE else synthesize_for)(graph, samples, seed)
        pile, whole = _Pile(), reader.batched(made.leaves)
        pile.add(whole, 0)
        few = min(CHUNK, max(len(whole[0]) // 2, 1))  # so that a large model can be run on some of them
        split = _split([pile], reader, len(whole[0]), [*notes, made.note], chunk=few)
        return replace(split, noise=made.noise, unscaled=made.unscaled, restated=made.restated)
    piles: dict[Sizes, _Pile] = {}
    rest: list[tuple[Any, ...]] = []
    count = left_out = 0
    unused = False
    if isinstance(data, Pictures):
        data = data.of(model, reader.lone_shape)
    with closing(batches("data", data)) as given, counter("calibration data") as progress:
        for index, batch in enumerate(given):
            leaves = reader.leaves(batch, f"batch {index} of data", samples - count)
            sizes = tuple(tuple(leaf.shape[1:]) for leaf in leaves)
            if sizes not in piles and len(piles) >= MOST_SIZES:
                left_out += len(leaves[0])
                if left_out > samples:
                    break
                continue
            unused = unused or (not labeled and beside(batch, reader.names))
            if labeled:
                rest += per_sample(reader.rest(batch), reader.rows, f"batch {index} of data", len(leaves[0]))
            piles.setdefault(sizes, _Pile()).add(leaves, count)
            count += len(leaves[0])
            progress(count, samples)
            if count >= samples:
                break
    if not count:
        raise nothing("data")
    if unused:
        notes.append(UNUSED)
    if left_out:
        notes.append(f"{left_out} samples were left out: their sizes are others than the first {MOST_SIZES} found")
    return _split(list(piles.values()), reader, count, notes, rest)


class _Pile:
    """Samples of equal sizes, and the number of each among all."""

    def __init__(self) -> None:
        self._parts: list[list[Tensor]] = []
        self._places: list[Tensor] = []

    def add(self, leaves: list[Tensor], first: int) -> None:
        self._parts.append([leaf.clone() for leaf in leaves])  # a loader may fill the same memory again
        self._places.append(torch.arange(first, first + len(leaves[0])))

    @cached_property
    def whole(self) -> list[Tensor]:
        return [torch.cat(leaves) for leaves in zip(*self._parts, strict=True)]

    @cached_property
    def places(self) -> Tensor:
        return torch.cat(self._places)

    def rows(self, places: Tensor) -> list[Tensor]:
        """The samples of these numbers."""
        rows = torch.searchsorted(self.places, places)
        return [leaf[rows] for leaf in self.whole]


def _split(
    piles: list[_Pile], reader: Reader, count: int, notes: list[str], rest: list[tuple[Any, ...]] | None = None,
    chunk: int = CHUNK,
) -> Calibration:
    """Hold back samples that are spread over all of the data, since data are often sorted."""
    fit: list[tuple[_Pile, Tensor]] = []
    held: list[tuple[_Pile, Tensor]] = []
    if reader.fixed:
        chunks = [(pile, chunk) for pile in piles for chunk in _whole_batches(pile.places, reader.fixed)]
        away = min(HELD_BACK, len(chunks)) - 1
        held = chunks[away::HELD_BACK]
        fit = [chunk for i, chunk in enumerate(chunks) if i % HELD_BACK != away]
    else:
        size = min(LABELED_CHUNK if rest else chunk, reader.together)
        for pile in piles:
            away_ = pile.places % HELD_BACK == min(HELD_BACK, count) - 1
            for into, chosen in ((held, away_), (fit, ~away_)):
                into += [(pile, part) for part in pile.places[chosen].split(size) if len(part)]
    if not fit:
        fit = held
        notes = [*notes, "there is only one batch or sample, so the fit is validated on the data that it was made from"]

    def inputs(chunks: list[tuple[_Pile, Tensor]]) -> tuple[Inputs, ...]:
        return tuple(reader.inputs(pile.rows(chunk)) for pile, chunk in chunks)

    return Calibration(
        inputs(fit), inputs(held), sum(len(chunk) for _, chunk in (fit if fit is held else [*fit, *held])),
        tuple(notes), tuple(joined([rest[i] for i in chunk]) for _, chunk in [*fit, *held]) if rest else (),
        varying=frozenset(reader.varying),
    )


def _whole_batches(places: Tensor, size: int) -> list[Tensor]:
    if len(places) < size:
        places = places.repeat(-(-size // len(places)))[:size]
    return list(places[: len(places) // size * size].split(size))


class Reader:
    """Converts batches to a graph's inputs."""

    def __init__(self, graph: Graph, model: nn.Module) -> None:
        self._leaves, self._spec = pytree.tree_flatten(graph.inputs)
        self._batched = [
            i for i, leaf in enumerate(self._leaves)
            if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == graph.batch
        ]
        self.fixed = 0 if graph.dynamic else graph.batch
        self.together = max(1, working_memory(BACKWARDS) // bytes_backwards(graph))
        self.bytes = sum(self._leaves[at].nbytes for at in self._batched) // max(graph.batch, 1)
        self._names = [name for name, leaves in by_argument(model, graph.inputs) for _ in leaves]
        self._device = next((tensor.device for _, tensor in named_tensors(model)), torch.device("cpu"))
        self._model = model
        self._known = {tuple(tuple(self._leaves[at].shape[1:]) for at in self._batched)}
        self._checks = Checks(graph)
        self.rows = 0
        self.varying: set[Place] = set()

    @property
    def lone_shape(self) -> tuple[int, ...]:
        """The shape of the only example input with a batch axis; empty if there are several."""
        return tuple(self._leaves[self._batched[0]].shape) if len(self._batched) == 1 else ()

    @property
    def names(self) -> list[str]:
        """The names of the model's arguments whose tensors have a batch axis, once for each of these."""
        return [self._names[at] for at in self._batched]

    def inputs(self, leaves: list[Tensor]) -> Inputs:
        """The graph's inputs; those without a batch axis are the example inputs."""
        found = list(self._leaves)
        for place, leaf in zip(self._batched, leaves, strict=True):
            image = leaf.dim() == 4 and leaf.is_floating_point()  # kernels are faster with channels last, or no slower
            found[place] = leaf.to(self._device, memory_format=torch.channels_last if image else torch.preserve_format)
        return pytree.tree_unflatten(found, self._spec)

    def batched(self, leaves: list[Any]) -> list[Tensor]:
        """The leaves of inputs that have a batch axis."""
        return [leaves[at].detach().cpu() for at in self._batched]

    def rest(self, batch: Any) -> tuple[Any, ...]:
        """What a batch holds besides the inputs; for a dict, one dict of the entries that the model does not take."""
        if isinstance(batch, Mapping):
            return ({name: value for name, value in batch.items() if name not in self.names},)
        return tuple(batch[len(self._batched) :]) if isinstance(batch, tuple | list) else ()

    def leaves(self, batch: Any, place: str, most: int) -> list[Tensor]:
        """The first `most` of the batch's samples, a tensor for each input of the model that has a batch axis.

        How many `rows` the batch has is kept.
        """
        given = [
            tensor_of_samples(value, f"{place}, input {self._names[at]}")
            for value, at in zip(chosen(batch, self.names, place), self._batched, strict=True)
        ]
        counts = {len(leaf) for leaf in given}
        if len(counts) > 1:
            raise InvalidInputs(f"{place}: its inputs have different numbers of samples: {sorted(counts)}")
        self.rows = max(counts, default=0)
        found = [
            self._checks.taken(value[:most], at, f"{place}, input {self._names[at]}")
            for value, at in zip(given, self._batched, strict=True)
        ]
        self._checks.masks(dict(zip(self._batched, found, strict=True)), place)
        if (sizes := tuple(tuple(leaf.shape[1:]) for leaf in found)) not in self._known:
            self._check_sizes(found, place)
            self._known.add(sizes)
        return found

    def _check_sizes(self, found: list[Tensor], place: str) -> None:
        """Make sure that the model runs on tensors of other sizes than the example inputs."""
        examples = [self._leaves[at] for at in self._batched]
        unlike = [i for i, (a, b) in enumerate(zip(found, examples, strict=True)) if a.shape[1:] != b.shape[1:]]
        reason = "" if all(a.dim() == b.dim() for a, b in zip(found, examples, strict=True)) else "other axes"
        if not reason:
            batch = self.fixed or 1
            ran = IsolatedCopy(self._model).run(self.inputs([torch.cat([leaf] * batch)[:batch] for leaf in found]))
            reason = ran.reason if isinstance(ran, Unfit) else ""
        if reason:
            index = unlike[0]
            shape, wanted = tuple(found[index].shape), tuple(examples[index].shape[1:])
            sizes = ", ".join(str(size) for size in wanted)
            single = " (a single sample? batch it, as with DataLoader(data, batch_size=32))" if shape == wanted else ""
            if len(shape) > 2 and (shape[-1], *shape[1:-1]) == wanted:
                single = " (channels last? x.movedim(-1, 1) puts them first, as the model takes them)"
            raise InvalidInputs(
                f"{place}, input {self._names[self._batched[index]]} has shape {shape}; expected "
                f"(batch{', ' if wanted else ''}{sizes}){single}" + (f": {reason}" if reason != "other axes" else "")
            )
        self.varying |= {
            (self._batched[i], axis) for i in unlike for axis in range(1, found[i].dim())
            if found[i].shape[axis] != examples[i].shape[axis]
        }
