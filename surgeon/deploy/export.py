"""From a PyTorch module to an ONNX file that is known to compute the same."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import ir
from torch import Tensor, nn

from surgeon.deploy.graph import has_fixed_batch, tidy, unfused_batch_norms
from surgeon.deploy.inputs import Call, named_outputs, read_call, unique
from surgeon.deploy.lowering import copy_before_views, write_out_attention
from surgeon.deploy.parity import check_parity
from surgeon.errors import ExportError, InvalidInputs, OutputError, TraceError, first_line
from surgeon.frontend.copies import duplicate
from surgeon.frontend.isolation import quietly, undisturbed, untouched
from surgeon.frontend.parameters import public
from surgeon.frontend.trace import check_dense
from surgeon.support.arguments import ABOVE_ZERO, flag
from surgeon.support.files import free_name, replace_beside

OPSET = 20
"""The newest opset torch.onnx converts to by default; onnxruntime reads it since 1.17."""

SINGLE_FILE_BYTES = 2**31 - 2**24
"""Weights below this go inside the file: protobuf ends at 2 GiB, and the graph takes some of it."""


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written, and how closely it follows PyTorch.

    `bytes` counts weights in a file beside it too; `deviation` is the largest max |a - b| / max |b| of an
    output over all inputs tried, of the batch sizes `batches_checked`; `notes` say what may be unexpected.
    """

    path: Path
    bytes: int
    opset: int
    dynamic_batch: bool
    deviation: float
    batches_checked: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        batch = "any batch size" if self.dynamic_batch else "fixed batch size"
        checked = ", ".join(map(str, self.batches_checked))
        lines = [
            f"{self.path}: {self.bytes / 1e6:.2f} MB, opset {self.opset}, {batch}, "
            f"deviation from PyTorch {self.deviation:.1e} (batches of {checked})"
        ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


@public(dynamic_batch=flag, tolerance=ABOVE_ZERO)
@undisturbed()
def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    example_inputs: object,
    dynamic_batch: bool | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> ExportReport:
    """Write `model` in eval mode to an ONNX file, optimized, and hold the file against PyTorch.

    `example_inputs` is a tensor, a tuple of positional inputs or a dict of keyword inputs. With
    `dynamic_batch=None` the first axis of every input of the batch's size is made dynamic if the model
    allows it; `True` insists on it, `False` fixes the example's sizes. BatchNorm is folded into
    convolutions. Weights and inputs of other floating-point types are exported as float32. `model` is not
    changed, and is read in eval mode whatever mode it is in.

    The file is compared with PyTorch on the example and on random inputs like it (`sample_like`), and with
    a dynamic batch on batches of 1, 2 and 3: each output must satisfy max |a - b| / max |b| <= `tolerance`.
    Only a file that passed takes the place of `path`.

    Raises `InvalidArgument` for a tolerance that is not positive, `OutputError` if `path` can't be written
    (before any work), `InvalidModel` if a tensor of the model has no shape or values, `InvalidInputs` if the
    model does not run on the example, `TraceError` if `torch.export` can't trace it, and `ExportError` if it
    can't be written as ONNX or the file deviates.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = export(nn.Linear(4, 2), f"{folder}/linear.onnx", example_inputs=torch.randn(1, 4))
    >>> report.dynamic_batch, report.batches_checked, report.deviation < 1e-5
    (True, (1, 2, 3), True)
    """
    target = Path(path)
    with replace_beside(target) as scratch, untouched(model):
        call = read_call(model, example_inputs)
        check_dense(model)
        frozen, notes = _float32_copy(model)
        wrapped = _Flat(frozen, call)
        wrapped.learn_outputs()
        notes += [f"output {name} is a {kind}, not a tensor, and left out" for name, kind in wrapped.left_out]
        attempts = [True, False] if dynamic_batch is None else [dynamic_batch]
        for index, dynamic in enumerate(attempts):
            try:
                opset, deviation, batches, more = _attempt(
                    wrapped, call, scratch / target.name, dynamic, tolerance, seed
                )
                break
            except (TraceError, ExportError) as error:
                if index == len(attempts) - 1:
                    raise
                notes.append(f"the batch is fixed, because a dynamic one failed: {_first_line(error)}")
                for left in scratch.iterdir():
                    left.unlink()
        size = sum(file.stat().st_size for file in scratch.iterdir())
    return ExportReport(target, size, opset, dynamic, deviation, batches, (*notes, *more))


class _Flat(nn.Module):
    """`model` as a function from tensors to a tuple of tensors, whatever it takes and returns."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model = model
        self.call = call
        self.output_names: tuple[str, ...] = ()
        self.left_out: list[tuple[str, str]] = []
        self.training = False

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = self.call.bind(tensors)
        leaves = named_outputs(self.model(*args, **kwargs))
        return tuple(leaf for _, leaf in leaves if isinstance(leaf, Tensor))

    def in_double(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The same outputs, computed in float64 throughout."""
        double = _Flat(duplicate(self.model).double(), self.call)
        return double(*tensors)

    def learn_outputs(self) -> None:
        """Run the model on the example and note its outputs' names; `InvalidInputs` if it does not run."""
        args, kwargs = self.call.bind(tuple(tensor.clone() for tensor in self.call.tensors))
        try:
            with torch.no_grad():
                leaves = list(named_outputs(self.model(*args, **kwargs)))
        # A user's forward may raise anything.
        except Exception as error:
            shapes = self.call.shapes(self.call.tensors)
            raise InvalidInputs(
                f"the model does not run on the example inputs {shapes}: {_first_line(error)}"
            ) from error
        names = [name for name, leaf in leaves if isinstance(leaf, Tensor)]
        if not names:
            raise ExportError("the model returns no tensor, so there is nothing to export")
        self.output_names = unique(names, self.call.names)
        self.left_out = [(name, type(leaf).__name__) for name, leaf in leaves if not isinstance(leaf, Tensor)]


def _attempt(
    wrapped: _Flat, call: Call, path: Path, dynamic: bool, tolerance: float, seed: int
) -> tuple[int, float, tuple[int, ...], list[str]]:
    """Export and check; the opset, the deviation, the batch sizes checked, and notes."""
    with quietly():
        program = _trace(wrapped, call, dynamic)
        model = _to_onnx(program)
        found, expected = len(model.graph.outputs), len(wrapped.output_names)
        if found != expected:
            raise ExportError(f"torch.onnx wrote {found} outputs, the model has {expected}")
        if dynamic and any(has_fixed_batch(model.graph.inputs[index]) for index in call.batched):
            raise ExportError("torch.export fixed the batch size of an input that should be dynamic")
        tidy(model, call.names, wrapped.output_names)
        _write(model, path)
    generator = torch.Generator().manual_seed(seed)
    samples = [call.tensors, call.sample(generator), call.sample(generator)]
    if dynamic:
        samples += [call.with_batch(batch).sample(generator) for batch in (1, 2, 3)]
    parity = check_parity(
        path, wrapped, samples, input_names=call.names, tolerance=tolerance, precise=wrapped.in_double
    )
    first = call.batched[0] if call.batched else None
    batches = set() if first is None else {sample[first].shape[0] for sample in samples}
    notes = list(parity.notes)
    if left := unfused_batch_norms(model.graph):
        notes.append(f"{len(left)} BatchNorm could not be folded into the convolution before it")
    return model.opset_imports[""], parity.deviation, tuple(sorted(batches)), notes


def _trace(wrapped: _Flat, call: Call, dynamic: bool) -> torch.export.ExportedProgram:
    shapes: tuple[Any, ...] | None = None
    if dynamic:
        if not call.batched:
            raise TraceError("no input has an axis that could be a dynamic batch")
        # A batch of 1 is specialized away and gets baked into reshapes.
        call = call.with_batch(max(2, call.batch or 0))
        batched = set(call.batched)
        shapes = (tuple({0: torch.export.Dim.AUTO} if i in batched else None for i in range(len(call.tensors))),)
    try:
        with torch.no_grad():
            return torch.export.export(wrapped, call.tensors, dynamic_shapes=shapes, strict=False)
    # torch.export raises errors of many unrelated kinds, the user's own among them.
    except Exception as error:
        raise TraceError(f"torch.export can't trace the model: {_first_line(error)}") from error


def _to_onnx(program: torch.export.ExportedProgram) -> ir.Model:
    try:
        write_out_attention(program)
        try:
            return _convert(program)
        # torch.onnx raises errors of many unrelated kinds.
        except Exception:
            if not copy_before_views(program):
                raise
            return _convert(program)
    except Exception as error:
        raise ExportError(f"torch.onnx can't translate the model: {_first_line(error)}") from error


def _convert(program: torch.export.ExportedProgram) -> ir.Model:
    result = torch.onnx.export(program, dynamo=True, verbose=False, optimize=True, opset_version=OPSET)
    assert result is not None  # because dynamo=True
    model: ir.Model = result.model
    return model


def _write(model: ir.Model, path: Path) -> None:
    weights = (value.const_value for value in model.graph.initializers.values())
    size = sum(tensor.nbytes for tensor in weights if tensor is not None)
    external = free_name(path) if size >= SINGLE_FILE_BYTES else None
    try:
        ir.save(model, path, external_data=external)
    except OSError as error:
        raise OutputError(f"{path.name} could not be written ({error})") from error
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ExportError(f"onnx's checker refuses the exported file: {_first_line(error)}") from error


def _float32_copy(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A copy of the model in eval mode, float32, on the CPU, and a note on what was converted."""
    result = duplicate(model)
    tensors = [*model.parameters(), *model.buffers()]
    kinds = {str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()} - {"float32"}
    result.to("cpu")
    if kinds:
        result.float()
    # Set directly: `eval()` is refused by the modules that torch.export returns.
    for module in result.modules():
        module.training = False
    notes = [f"exported in float32, the model is in {', '.join(sorted(kinds))}"] if kinds else []
    return result, notes


def _first_line(error: BaseException) -> str:
    """The first line of what went wrong at the bottom: torch.onnx wraps the reason in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
