"""The file that a model was loaded from, less what was removed, written and held against PyTorch and the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from surgeon.deploy.checking import Checking
from surgeon.deploy.export_report import ExportReport
from surgeon.deploy.free_axes import FreeAxes, find_free_axes
from surgeon.deploy.parity import least_scales, relative_deviation
from surgeon.deploy.user_file.cut import Cut
from surgeon.deploy.user_file.write import save, user_file
from surgeon.device.ort_session import ORT_ERRORS, open_session
from surgeon.errors import ExportError, SurgeonError, first_line
from surgeon.frontend.isolation import quietly
from surgeon.onnx_import.source import Source
from surgeon.support.scratch import temporary_folder

_UNFIT: tuple[type[Exception], ...] = (SurgeonError, *ORT_ERRORS)


def export_changed(model: nn.Module, check: Checking, target: Path, notes: Sequence[str]) -> ExportReport:
    """Write the file and what is known of it; `check` has the place to write to and the model as a function.

    Raises:
        Unpatchable: the file can't be made by changing the one that the model was loaded from.
        ExportError: it does not compute what the model does, or its cut not what the original does with zeros.
    """
    made = user_file(model, check.call)
    save(made.model, made.source, check.path)
    with quietly():
        axes = find_free_axes(check.flat.model, check.call, None).only(made.free).together(made.classes)
    check = replace(check, call=replace(check.call, names=made.inputs), given=made.given)
    axes = _that_run(made.source, check, axes)
    parity, shapes = check(axes)
    off = None
    if isinstance(made.cut, Cut):
        off = _off_original(made.cut, made.source, made.outputs, check, axes)
    elif made.cut is not None:
        notes = [*notes, f"not held against {made.source.path.name} in onnxruntime: {made.cut}"]
    inputs = {
        name: tuple(made.free.get((index, axis), size) for axis, size in enumerate(tensor.shape))
        for index, (name, tensor) in enumerate(zip(made.inputs, check.call.tensors, strict=True))
    }
    size = sum(each.stat().st_size for each in check.path.parent.iterdir())
    return ExportReport(
        target, size, made.opset, inputs, parity.deviation, shapes, (*notes, *parity.notes), made.source.path, off
    )


def _off_original(
    cut: Cut, source: Source, outputs: Sequence[str], check: Checking, axes: FreeAxes
) -> float:
    """How far the cut is from the original with zeros, in onnxruntime, on the example and at other sizes."""
    samples = [check.call.tensors, *check.samples(axes)]
    off, least = 0.0, least_scales(check.path)
    for ours, theirs in zip(_run(cut.slim, source, check, samples), _run(cut.zeroed, source, check, samples),
                            strict=True):
        for name, have, want in zip(outputs, ours, theirs, strict=True):
            scale = least.get(name, 0.0)
            off = max(off, float("inf") if have.shape != want.shape else relative_deviation(want, have, scale))
    if not off <= check.tolerance:
        raise ExportError(
            f"right after the cut, the file is {off:.3g} (max |a - b| / max |b|) off {source.path} with zeros in place "
            "of what was removed"
        )
    return off


def _run(
    model: ModelProto, source: Source, check: Checking, samples: Sequence[Sequence[Tensor]]
) -> list[list[np.ndarray]]:
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        save(model, source, path)
        try:
            session = open_session(path, threads=torch.get_num_threads())
            wanted = {each.name for each in session.get_inputs()}
            found = []
            for sample in samples:
                pairs = zip(check.call.names, sample, strict=True)
                feeds = {name: tensor.numpy() for name, tensor in pairs if name in wanted}
                found.append(session.run(None, {**check.given, **feeds}))
            return found
        except _UNFIT as error:
            raise ExportError(f"onnxruntime can't run what the file is held against: {first_line(error)}") from error


def _that_run(source: Source, check: Checking, axes: FreeAxes) -> FreeAxes:
    """Those of the axes at other sizes of which the original file runs, and the model too, whatever the file says."""

    def run(some: FreeAxes) -> bool:
        samples = check.samples(some)
        try:
            _run(source.model, source, check, samples)
            with torch.no_grad():
                for sample in samples:
                    check.flat(*(each.clone() for each in sample))
        except (SurgeonError, RuntimeError):
            return False
        return True

    if run(axes):
        return axes
    found = FreeAxes()
    for each in axes.classes():
        more = axes.only({*found.names, *each})
        found = more if run(more) else found
    return found
