"""Quantizes to int8, and keeps the result only if it is measured to be faster and accurate enough."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.calibration.synthesis import synthesize
from surgeon.deploy.conversion import SINGLE_FILE_BYTES
from surgeon.deploy.export import export
from surgeon.deploy.free_axes import BATCH
from surgeon.deploy.inputs import read_call
from surgeon.device.benchmark import Verdict, benchmark
from surgeon.device.clock import Clock
from surgeon.device.ort_session import make_feeds, open_session, untold
from surgeon.errors import InvalidArgument, InvalidInputs
from surgeon.frontend.batches import batches
from surgeon.frontend.infer_inputs import infer
from surgeon.frontend.isolation import undisturbed
from surgeon.frontend.notes import FILE, noted
from surgeon.frontend.parameters import NOISE, SYNTHETIC, public
from surgeon.frontend.parameters import data as calibration_data
from surgeon.frontend.pictures import Pictures
from surgeon.frontend.trace import MODULE, normalize_inputs
from surgeon.onnx_import.usual import usual_shapes
from surgeon.quantization.accuracy import Accuracy, Judge, judge_by
from surgeon.quantization.calibration import Feeds, Input, accepted, collect, divide, tensors
from surgeon.quantization.half import HALF, in_half
from surgeon.quantization.quantizer import Method, Source, left_in_float
from surgeon.quantization.recipes import Trial, search
from surgeon.support.arguments import ABOVE_ZERO, UNIT, a_path, choice, either
from surgeon.support.arguments import path as is_path
from surgeon.support.files import free_name, referred, replace_beside
from surgeon.support.progress import stage
from surgeon.support.scratch import temporary_folder

Kind = Literal["auto", "static", "dynamic", "float16"]
Precision = Literal["int8", "mixed", "float16", "float32"]

_RANDOM = 8
"""The number of random batches to measure accuracy on if no calibration is given."""
_EXPORTED = 2
"""Rows of the first calibration batch that a module is exported with."""


@dataclass(frozen=True)
class Quantized:
    """What `quantize` wrote to `path`, and the numbers that decided it.

    `accepted` says whether the file is int8, at least in part; otherwise it is the float32 one, and `reason` says why.
    `precision` is "int8" if all operators with weights are, "mixed" if those named in `floating`, of `operators` in
    total, are in float32, "float16" if that was asked for, and else "float32". `operators` is the number of those with
    weights. `recipe` describes the best int8 model found; `accuracy` and `verdict` compare its outputs and its speed
    with float32. `overall` compares the file at `path` with `base`, if that was given. `bytes` is the size of the file
    at `path`, `float_bytes` that of the float32 file. `tried` are all recipes that were timed, and `notes` say what may
    be unexpected.

    >>> path = Path("a.float32.onnx")
    >>> made = Quantized(path, False, "int8 is not faster", "", None, None, None, 2_000_000, 2_000_000)
    >>> print(made)
    a.float32.onnx: float32 is kept, 2.00 MB (float32 2.00 MB)
      int8 is not faster
    >>> json.loads(made.to_json())["precision"]
    'float32'
    """

    path: Path
    accepted: bool
    reason: str
    recipe: str
    accuracy: Accuracy | None
    verdict: Verdict | None
    overall: Verdict | None
    bytes: int
    float_bytes: int
    tried: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()
    precision: Precision = "float32"
    floating: tuple[str, ...] = ()
    operators: int = 0

    def __str__(self) -> str:
        kept = {
            "int8": "int8",
            "mixed": f"mixed, {len(self.floating)} of {self.operators} operators with weights in float32, others int8",
            "float16": "float16",
            "float32": "float32 is kept",
        }[self.precision]
        lines = [f"{self.path}: {kept}, {self.bytes / 1e6:.2f} MB (float32 {self.float_bytes / 1e6:.2f} MB)"]
        lines.append(f"  {self.reason}")
        if self.recipe:
            lines.append(f"  best int8: {self.recipe}" if self.recipe != HALF else f"  {self.recipe}")
        if self.accuracy is not None:
            lines.append(f"  {self.accuracy}")
        if self.verdict is not None:
            ratio, low = self.verdict.ratio, (self.verdict.base.low, self.verdict.slim.low)
            form = "float16" if self.recipe == HALF else "int8"
            lines.append(f"  float32 {low[0]:.3f} ms, {form} {low[1]:.3f} ms: {ratio} ({self.verdict.decision})")
        if self.overall is not None:
            lines.append(f"  against the base: {self.overall.ratio} ({self.overall.decision})")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def to_json(self) -> str:
        """All fields by their names, as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=str)


@public(
    model=either(MODULE, a_path("a torch.nn.Module, or the path of an ONNX file"), lambda v: isinstance(v, nn.Module)),
    calibration=calibration_data, base=is_path,
    kind=choice(*get_args(Kind)), judge=choice(*get_args(Judge)), agreement=UNIT, deviation=ABOVE_ZERO,
)
@undisturbed()
def quantize(
    model: nn.Module | str | os.PathLike[str],
    calibration: Any = None,
    *,
    path: str | os.PathLike[str] | None = None,
    example_inputs: Any = None,
    base: str | os.PathLike[str] | None = None,
    kind: Kind = "auto",
    judge: Judge = "auto",
    agreement: float = 0.98,
    deviation: float = 0.1,
    samples: int = 256,
    threads: int | None = None,
    seconds: float = 5.0,
    seed: int = 0,
) -> Quantized:
    """Write `model` to `path` in int8 if that is faster on this CPU and accurate enough, else in float32.

    onnxruntime's quantizer is used: 8-bit weights with a scale per output channel; activations with ranges from
    calibration ("static") or from each run ("dynamic", for matrix products). Measurements decide which operators stay
    in float: how many at the start of the network, where few channels make int8 slow, and which kinds. If int8 is not
    accurate enough, other calibration methods and 7-bit weights are tried.

    Args:
        model: a module, which is exported first, or an ONNX file.
        calibration: unlabeled inputs, as `data` of `surgeon.shrink`, read once; every other batch is held out to
            measure accuracy. Labels beside the inputs are ignored. Without it only "dynamic" is possible, and accuracy
            is measured on random inputs.
        path: where to write, atomically; by default NAME.int8.onnx beside a file NAME.onnx, and int8.onnx in the
            current folder for a module, with "mixed" in place of "int8" if some operators with weights stay in float32,
            and "float32" if all do.
        example_inputs: of a module; by default two rows of the first batch of calibration.
        base: an ONNX file, such as the unpruned model, with which the speed of the result is compared too.
        kind: "static", "dynamic", or "auto", which tries what applies and keeps the best. "float16" is no int8: half
            the bytes, kept if accurate enough, however fast.
        judge: "top-1" accepts int8 if it agrees with float32 on the top-1 class for at least the share `agreement` of
            the rows, "deviation" if |int8 - float32| / |float32| (Euclidean norms) is at most `deviation`. "auto" is
            "top-1" for a model with one output of shape (N, K), K > 1, else "deviation".
        agreement: the least share, 0 to 1.
        deviation: the largest relative deviation.
        samples: the number of calibration rows to read.
        threads: onnxruntime's threads while measuring, as for `surgeon.benchmark`.
        seconds: how long each of the final measurements takes.
        seed: for random inputs and the order of measurements.

    Raises:
        InvalidArgument: an argument is out of range.
        InvalidInputs: calibration is empty, or a batch holds NaN or does not fit the model.
        OutputError: `path` can't be written (before any work).
        InvalidModel, TraceError, ExportError: a module can't be exported, or a file can't be read.
        BenchmarkError: the model can't be run by onnxruntime.

    >>> import torch
    >>> net, inputs = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)), torch.randn(64, 16)
    >>> with temporary_folder() as folder:
    ...     made = quantize(net, inputs.split(16), path=folder / "int8.onnx", kind="dynamic", seconds=0.1)
    ...     made.path.stat().st_size == made.bytes
    True
    >>> made.precision in ("int8", "mixed", "float32")         # as it is measured on this CPU
    True
    """
    if isinstance(calibration, str):
        if calibration == NOISE:
            raise InvalidArgument(
                f'calibration="{NOISE}": the ranges of noise are not those of data; give batches, or "{SYNTHETIC}"'
            )
        if not isinstance(model, nn.Module):
            raise InvalidArgument(
                f'calibration="{SYNTHETIC}" is made from a module, not from a file; give the module, or batches'
            )
        calibration = synthesize(model, example_inputs, samples=samples, seed=seed)
    if kind == "static" and calibration is None:
        raise InvalidArgument("static int8 takes the ranges of activations from data: pass calibration")
    threads = Clock.of(threads).threads
    target = Path(path) if path is not None else _beside(model, "int8")
    with (
        replace_beside(target) as scratch, temporary_folder() as folder,
        _read(model, example_inputs, calibration) as given,
    ):
        source, given = _float_file(model, example_inputs, given, folder)
        inputs = _inputs(source)
        notes: list[str] = []
        with stage("read calibration"):
            use: list[Feeds] = []
            if given is None:
                session = open_session(source)
                example = usual_shapes(source) if untold(session) else None
                held = [make_feeds(session, seed=seed + index, example=example) for index in range(_RANDOM)]
                notes.append("no calibration: only dynamic int8, with its accuracy measured on random inputs")
            else:
                owner = model if isinstance(model, nn.Module) else None
                read, labels = collect(given, inputs, owner, samples)
                use, held, alike = divide(read, inputs)
                notes += [note for note in (labels, alike) if note]
        prepared = Source(source, folder, use)
        methods: tuple[Method, ...] = ("static", "dynamic") if use and kind != "dynamic" else ("dynamic",)
        if kind == "static":
            methods = ("static",)
        feeds = held[0] if all(each.shape for each in inputs) else {}
        free = {each.name for each in inputs if each.free}
        feeds = {name: value[:1] if name in free else value for name, value in feeds.items()}
        measure = judge_by(source, held, judge, agreement, deviation, threads)
        verdict = overall = None
        tried: tuple[Trial, ...] = ()
        recipe, made, accepted = "", None, False
        accuracy: Accuracy | None
        if kind == "float16":
            recipe, made = HALF, in_half(source, folder / "float16.onnx")
            accuracy = measure(made)
        else:
            best, accuracy, tried = search(
                prepared, methods, feeds, measure, threads=threads, seconds=seconds, seed=seed
            )
            if best is not None:
                recipe, made = str(best), prepared.write(best)
        if made is not None:
            with stage("measure"):
                verdict = benchmark(
                    source, made, threads=threads, seconds=seconds, feeds=feeds, seed=seed, peak_memory=False
                )
            accepted, reason = _decide(verdict, accuracy, "float16" if kind == "float16" else "int8")
        else:
            reason = (
                "the model has no operator with weights that can be quantized"
                if not tried
                else "no int8 file could be run"
            )
        chosen = made if accepted and made is not None else source
        floating, operators = left_in_float(chosen)
        precision: Precision = "float32" if not accepted else "float16" if recipe == HALF else (
            "mixed" if floating else "int8"
        )
        if path is None:
            target = _beside(model, precision)
        elif any(each in target.name and precision != each for each in ("int8", "float16")):
            notes.append(f"{target.name} is the requested name, but the file is {precision}")
        if base is not None:
            with stage("measure against the base"):
                overall = benchmark(base, chosen, threads=threads, seconds=seconds, feeds=feeds, seed=seed)
        _copy(chosen, source, scratch / target.name)
        sizes = [sum(file.stat().st_size for file in scratch.iterdir()), _bytes(source)]
    return Quantized(
        target, accepted, reason, recipe, accuracy, verdict, overall, sizes[0], sizes[1], tried, tuple(notes),
        precision, tuple(floating), operators,
    )


def _beside(model: nn.Module | str | os.PathLike[str], precision: Precision) -> Path:
    name = f"{precision}.onnx"
    return Path(name) if isinstance(model, nn.Module) else Path(model).with_suffix(f".{name}")


def _decide(verdict: Verdict, accuracy: Accuracy | None, form: Literal["int8", "float16"]) -> tuple[bool, str]:
    if accuracy is None or not accuracy.enough:
        return False, f"{form} is not accurate enough: {accuracy}"
    if form == "float16":
        return True, f"float16, as asked, accurate enough: {verdict.ratio.value:.2f} times as fast as float32"
    if verdict.decision != "faster":
        return False, f"int8 is not faster: {verdict.ratio}, {verdict.decision}"
    return True, f"int8 is {verdict.ratio.value:.2f} times as fast as float32, and accurate enough"


@contextmanager
def _read(
    model: nn.Module | str | os.PathLike[str], example: Any, calibration: Any
) -> Iterator[Iterator[object] | None]:
    """The batches of calibration, if there is any."""
    if isinstance(calibration, Pictures):
        if not isinstance(model, nn.Module):
            raise InvalidArgument(
                "calibration holds pictures, and a file does not tell how they are scaled and normalized; give the "
                "batches that its module, by load_onnx, makes of them as you say, or other batches"
            )
        args, kwargs = normalize_inputs(example) if example is not None else ((), {})
        shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        calibration = calibration.of(model, shapes[0] if shapes else None)
    if calibration is None:
        yield None
        return
    with closing(batches("calibration", calibration)) as found:
        yield found


def _float_file(
    model: nn.Module | str | os.PathLike[str], example: Any, given: Iterator[object] | None, folder: Path
) -> tuple[Path, Iterator[object] | None]:
    """The float model's file, and the batches, of which the first may have been looked at."""
    if not isinstance(model, nn.Module):
        return Path(model), given
    first: object = None
    if example is None and given is not None:
        first = next(given)
        given = itertools.chain([first], given)
        call = read_call(model, tensors(accepted(model, first), "batch 0 of calibration"))
        small = call.with_batch(min(call.batch or 1, _EXPORTED))
        args, kwargs = small.bind(small.tensors)
        example = kwargs or args
    elif example is None:
        args, kwargs = infer(model)
        example = args or kwargs
    dynamic = None if noted(model, FILE) is not None else BATCH  # a file that was loaded is written as it is
    with stage("export"):
        try:
            return export(model, folder / "float.onnx", example_inputs=example, dynamic=dynamic).path, given
        except InvalidInputs as error:
            if not isinstance(first, tuple | list) or len(first) < 2:
                raise
            raise InvalidInputs(f"{error}; if batches hold more than the inputs, pass example_inputs=") from error


def _inputs(path: Path) -> tuple[Input, ...]:
    found = open_session(path).get_inputs()
    return tuple(
        Input(each.name, each.type, tuple(d if isinstance(d, int) else None for d in each.shape)) for each in found
    )



def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, *map(path.with_name, referred(path))) if file.is_file())


def _copy(chosen: Path, source: Path, target: Path) -> None:
    """Copy a model and its weights, into one file if they fit, with what `source` says beside its graph."""
    model, said = onnx.load(chosen), onnx.load(source, load_external_data=False)
    del model.metadata_props[:]
    model.metadata_props.extend(said.metadata_props)
    for mine, theirs in ((model, said), (model.graph, said.graph)):
        for name in ("name", "doc_string", "producer_name", "producer_version", "domain", "model_version"):
            if getattr(mine, name, None) != getattr(theirs, name, None):
                setattr(mine, name, getattr(theirs, name))
    if model.ByteSize() < SINGLE_FILE_BYTES:
        onnx.save(model, target)
    else:
        onnx.save(model, target, save_as_external_data=True, location=free_name(target))
