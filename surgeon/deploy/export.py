"""From a PyTorch module to an ONNX file that is known to compute the same."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgeon.deploy.checking import Checking, NotFree, Shapes
from surgeon.deploy.conversion import OPSETS, Untranslatable, save, to_onnx
from surgeon.deploy.export_report import ExportReport
from surgeon.deploy.flat import Flat, cause, flatten
from surgeon.deploy.free_axes import Dynamic, FreeAxes, dynamic, find_free_axes
from surgeon.deploy.graph import fixed_axes, tidy, unfused_batch_norms
from surgeon.deploy.inputs import Call, Place, read_call
from surgeon.deploy.parity import Parity
from surgeon.deploy.user_file.changes import Unpatchable
from surgeon.deploy.user_file.export import export_changed
from surgeon.device.onnx_protobuf import OPSET
from surgeon.errors import ExportError, InvalidArgument, InvalidInputs, TraceError, first_line
from surgeon.frontend.infer_inputs import infer
from surgeon.frontend.isolation import quietly, undisturbed, untouched
from surgeon.frontend.model_checks import check_dense
from surgeon.frontend.notes import FILE, noted
from surgeon.frontend.parameters import public
from surgeon.frontend.program import export as trace_program
from surgeon.frontend.program import in_time
from surgeon.frontend.trace import Inputs
from surgeon.plans.carried import attached
from surgeon.support.arguments import ABOVE_ZERO, integer, listed, optional, refusal
from surgeon.support.documents import EXAMPLE
from surgeon.support.files import replace_beside
from surgeon.support.time_limit import TimeIsUp

SECONDS, SECONDS_A_MODULE = 20.0, 0.1
"""How long a trace in which more than the batch is free may take: some of them never end."""


def _names(name: str, value: Any) -> tuple[str, ...]:
    found = listed(value)
    if isinstance(value, str) or found is None or not all(isinstance(each, str) and each for each in found):
        raise refusal(name, value, "names, one for each tensor, in a list or tuple")
    if len(set(found)) != len(found):
        raise InvalidArgument(f"{name} holds a name twice: {', '.join(found)}")
    return tuple(found)


@public(
    dynamic=dynamic, tolerance=ABOVE_ZERO,
    opset=optional(integer(OPSETS.start, OPSETS.stop - 1, ", which torch.onnx writes")),
    input_names=_names, output_names=_names,
)
@undisturbed()
def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    example_inputs: object = None,
    dynamic: Dynamic = None,
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> ExportReport:
    """Write `model` in eval mode to an ONNX file and hold the file against PyTorch.

    A model of `load_onnx`, or what was made of it, is written as the file that it was loaded from, less what was
    removed: its names, opset, metadata and free axes stay, nothing in it is optimized, and it is also held against the
    original file. Where that can't be, or `dynamic`, `opset` or names are given, it is written as any other model is:
    anew, optimized.

    BatchNorm is folded into convolutions. Weights and inputs of other floating-point types are exported as float32.

    Every axis of an input that the model leaves free, which running it at other sizes tells, is free in the file:
    height, width and length as well as the batch. Where not all can be, fewer are, and the report says which and why.

    The file is compared with PyTorch on the example, and on random inputs like it (`sample_like`) at another size of
    all free axes at once and, with a free batch, of 1 and 3 rows. Only a file that passed takes the place of `path`.

    Args:
        model: any module that `torch.export` can trace; it is not changed, and is read in eval mode whatever mode it
            is in.
        path: where to write.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs; inferred where that is safe.
        dynamic: False fixes the example's sizes, "batch" all but the batch. A mapping names axes, which are insisted
            on, or fixes them, by input and axis: `{"x": {2: "height", 3: "width"}, "mask": False}`; axes of one name
            are of one size.
        opset: the version of ONNX's operators.
        input_names: of the file's inputs, in their order; by default those of `forward`'s arguments.
        output_names: of its outputs.
        tolerance: the largest relative deviation of an output, max |a - b| / max |b|.
        seed: of the random inputs.

    Raises:
        InvalidArgument: a tolerance that is not positive, an opset that torch.onnx does not write, names that are not
            as many as there are tensors, or axes that are not there or that the model fixes.
        OutputError: `path` can't be written (before any work).
        InvalidModel: a tensor of the model has no shape or values.
        InvalidInputs: the model does not run on the example.
        TraceError: `torch.export` can't trace it.
        ExportError: it can't be written as ONNX, an axis that is insisted on can't be free, or the file deviates.

    >>> import tempfile
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = export(net, f"{folder}/net.onnx", example_inputs=torch.randn(1, 3, 8, 8))
    >>> report.inputs, report.deviation < 1e-5
    ({'input': ('batch', 3, 'height', 'width')}, True)
    """
    target = Path(path)
    source = noted(model, FILE)
    if source is not None and target.exists() and source.path.exists() and target.samefile(source.path):
        raise InvalidArgument(f"{target} is the file that the model was loaded from; give another name")
    with replace_beside(target) as scratch, untouched(model):
        if example_inputs is None:
            args, kwargs = _inputs_of(model)
            example_inputs = args or kwargs
        call = _renamed(read_call(model, example_inputs), input_names)
        check_dense(model)
        flat, notes = flatten(model, call)
        asked = not (dynamic is None and opset is None and input_names is None and output_names is None)
        if source is not None and not asked:
            try:
                check = Checking(flat, call, scratch / target.name, tolerance, seed)
                return export_changed(model, check, target, notes)
            except Unpatchable as error:
                notes.append(f"written anew by torch.onnx, not as {source.path.name} with changes: {error}")
        if output_names is not None:
            flat.output_names = _fitting("output_names", output_names, flat.output_names)
            if both := set(output_names) & set(call.names):
                raise InvalidArgument(f"output_names: {', '.join(sorted(both))} is an input's name too")
        with quietly():
            axes = find_free_axes(flat.model, call, dynamic)
        file = _Export(Checking(flat, call, scratch / target.name, tolerance, seed), opset or OPSET)
        written = _settle(file, axes, notes)
        size = sum(each.stat().st_size for each in scratch.iterdir())
    return ExportReport(
        target, size, file.opset, written.inputs, written.parity.deviation, written.shapes, (*notes, *written.notes)
    )


def _inputs_of(model: nn.Module) -> Inputs:
    """Example inputs as can be inferred, or like those that the plan was made with which the model carries."""
    try:
        return infer(model)
    except InvalidInputs:
        plan = attached(model)
        if plan is None:
            raise
        return plan.example_inputs()


def _renamed(call: Call, names: Sequence[str] | None) -> Call:
    return call if names is None else dataclasses.replace(call, names=_fitting("input_names", names, call.names))


def _fitting(argument: str, names: Sequence[str], found: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) != len(found):
        raise InvalidArgument(f"{argument} holds {len(names)} names for {len(found)} tensors: {', '.join(found)}")
    return tuple(names)


def _settle(file: _Export, axes: FreeAxes, notes: list[str]) -> _Written:
    """Write the file with as many of these axes free as can be; what can't be is told in `notes`."""
    left: list[FreeAxes] = [axes, *axes.less()]
    tried: list[frozenset[Place]] = []
    while True:
        each = left.pop(0)
        if frozenset(each.names) in tried:
            continue
        tried.append(frozenset(each.names))
        try:
            written = file.write(each)
        except Untranslatable:
            raise
        except (TraceError, ExportError) as error:
            if isinstance(error, NotFree):
                left.insert(0, each.only(each.names.keys() - error.places))
            left = [other for other in left if axes.insisted <= other.names.keys()]
            if not any(frozenset(other.names) not in tried for other in left):
                raise
            reason = first_line(error)
            file.clear()
            continue
        if each.names.keys() != axes.names.keys():
            notes += _lost(file.call, axes, each, reason)
        return written


def _lost(call: Call, wanted: FreeAxes, got: FreeAxes, reason: str) -> Iterator[str]:
    """What the model leaves free and the file fixes."""
    gone = [place for place in sorted(wanted.names) if place not in got.names]
    sizes = [(axis, call.names[tensor], call.tensors[tensor].shape[axis]) for tensor, axis in gone]
    shown = ", ".join(f"axis {axis} of {name} ({size})" for axis, name, size in sizes)
    yield f"fixed, though the model leaves {'it' if len(gone) == 1 else 'them'} free: {shown}, because {reason}"


@dataclasses.dataclass(frozen=True)
class _Written:
    inputs: Mapping[str, tuple[int | str, ...]]
    parity: Parity
    shapes: Shapes
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Export:
    """One file that is to be written, and what of."""

    check: Checking
    opset: int

    @property
    def flat(self) -> Flat:
        return self.check.flat

    @property
    def call(self) -> Call:
        return self.check.call

    @property
    def path(self) -> Path:
        return self.check.path

    def clear(self) -> None:
        """Take away what was written."""
        for left in self.path.parent.iterdir():
            left.unlink()

    def write(self, axes: FreeAxes) -> _Written:
        """Write the file with these axes free, and check it.

        Raises:
            TraceError, ExportError: it can't be written so, or deviates.
        """
        with quietly():
            model = to_onnx(self._trace(axes), self.opset)
            found, expected = len(model.graph.outputs), len(self.flat.output_names)
            if found != expected:
                raise ExportError(f"torch.onnx wrote {found} outputs, the model has {expected}")
            if fixed := fixed_axes(model.graph, axes.names):
                shown = ", ".join(f"axis {axis} of {self.call.names[tensor]}" for tensor, axis in sorted(fixed))
                raise NotFree(f"torch.export takes {shown} for fixed", fixed)
            tidy(model, self.call.names, self.flat.output_names, axes.names)
            model.metadata_props[EXAMPLE] = json.dumps(self._example(axes))
            save(model, self.path)
        parity, shapes = self.check(axes)
        notes = list(parity.notes)
        if left := unfused_batch_norms(model.graph):
            notes.append(f"{len(left)} BatchNorm could not be folded into the convolution before it")
        inputs = {
            name: tuple(axes.names.get((index, axis), size) for axis, size in enumerate(tensor.shape))
            for index, (name, tensor) in enumerate(zip(self.call.names, self.call.tensors, strict=True))
        }
        return _Written(inputs, parity, shapes, tuple(notes))

    def _example(self, axes: FreeAxes) -> dict[str, list[int]]:
        """The example's shapes, one sample where the batch is free: what the file is timed at."""
        one = self.call.at(dict.fromkeys(axes.batch, 1))
        return {name: list(shape) for name, shape in one.shapes(one.tensors).items()}

    def _trace(self, axes: FreeAxes) -> torch.export.ExportedProgram:
        call = self.call.at(_unlike(self.call, axes))
        spare = len(axes.names) - len(axes.batch)
        seconds = SECONDS + SECONDS_A_MODULE * sum(1 for _ in self.flat.modules()) if spare else None
        try:
            with in_time(seconds):
                return trace_program(self.flat, (call.tensors, {}), axes.names)
        # torch.export raises errors of many unrelated kinds, the user's own among them.
        except Exception as error:
            raise TraceError(f"torch.export can't trace the model: {cause(error)}") from error
        except TimeIsUp as error:
            raise TraceError(f"torch.export didn't get done with so many free sizes in {seconds:.0f} s") from error


def _unlike(call: Call, axes: FreeAxes) -> dict[Place, int]:
    """The sizes to trace with: the example's where all free ones are above 1 and unlike each other, else all others.

    A size of 1 is taken for fixed, and of equal sizes nobody can tell which is which.
    """
    sizes = {each: call.tensors[min(each)[0]].shape[min(each)[1]] for each in axes.classes()}
    alike = len(set(sizes.values())) < len(sizes) or min(sizes.values(), default=2) < 2
    return dict(axes.others) if alike else {}
