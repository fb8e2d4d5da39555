"""From a program of torch.export to an ONNX model, and to a file."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import torch
from onnxscript import ir

from surgeon.deploy.flat import cause
from surgeon.deploy.folding import fold_batch_norms
from surgeon.deploy.lowering import (
    copy_before_views,
    out_of_place,
    write_out_attention,
    write_out_global_pools,
    write_out_grouped_products,
)
from surgeon.errors import ExportError, OutputError
from surgeon.support.files import free_name

OPSETS = range(18, 24)
"""What torch.onnx writes."""

SINGLE_FILE_BYTES = 2**31 - 2**24
"""Weights below this go inside the file: protobuf ends at 2 GiB, and the graph takes some of it."""

_LACKING = re.compile(r"No (?:ONNX function|decompositions?)\b.*?OpOverload\(op='([\w.:]+)', overload='(\w+)'\)")


class Untranslatable(ExportError):
    """ONNX has nothing for an operator, whatever the sizes are."""


def to_onnx(program: torch.export.ExportedProgram, opset: int) -> ir.Model:
    """The program as an ONNX model of an opset; the program is changed.

    Raises:
        Untranslatable: ONNX has nothing for an operator, which the message names.
        ExportError: torch.onnx fails otherwise.
    """
    try:
        fold_batch_norms(program)
        out_of_place(program)
        write_out_attention(program)
        write_out_grouped_products(program)
        write_out_global_pools(program)
        try:
            model = _convert(program, opset)
        # torch.onnx raises errors of many unrelated kinds.
        except Exception:
            if not copy_before_views(program):
                raise
            model = _convert(program, opset)
    except Exception as error:
        reason = cause(error)
        if found := _LACKING.search(reason):
            raise Untranslatable(
                f"torch.onnx can't translate the operator {'.'.join(found.groups())}; write what it computes with "
                "others, or leave its part of the model out"
            ) from error
        raise ExportError(f"torch.onnx can't translate the model: {reason}") from error
    if model.opset_imports[""] != opset:
        raise ExportError(f"torch.onnx can't write the model in opset {opset}, but in {model.opset_imports['']}")
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    # The oldest that holds these operators: an onnxruntime reads no newer one than it knows.
    model.ir_version = onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    return model


def _convert(program: torch.export.ExportedProgram, opset: int) -> ir.Model:
    result = torch.onnx.export(program, dynamo=True, verbose=False, optimize=True, opset_version=opset)
    assert result is not None  # because dynamo=True
    model: ir.Model = result.model
    return model


def save(model: ir.Model, path: Path) -> None:
    """Write a model to a file, its weights inside or, where they are too large, to a second one beside it.

    Raises:
        OutputError: it can't be written.
        ExportError: onnx's checker refuses it.
    """
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
        raise ExportError(f"onnx's checker refuses the exported file: {cause(error)}") from error
