"""The ONNX file of a smaller model, written from that of the model that it was cut from, and held against PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from surgeon.deploy.flat import flatten
from surgeon.deploy.inputs import read_call
from surgeon.deploy.onnx_writer import write
from surgeon.deploy.onnx_writer.match import known_cuts
from surgeon.deploy.parity import check_parity
from surgeon.groups.coupling import Groups
from surgeon.surgery.tensors import kept_positions


def write_slim(
    base: Path, path: Path, slim: nn.Module, groups: Groups, keep: Mapping[int, Iterable[int]], seed: int = 0
) -> None:
    """Write the file of `slim`, which is the model of `groups` with the units to keep, from the file of that model.

    Nothing is traced: weights are sliced, and numbers rewritten. The file is compared with `slim` in PyTorch as that of
    an export is, on the inputs of the trace and on a single row.

    Raises:
        Unwritable: the file can't be made so; the message names the operator.
        ExportError: it does not compute what `slim` computes. Nothing is left at `path`.
    """
    write(base, path, known_cuts(base, groups.graph.values, kept_positions(groups, groups.kept(keep))))
    args, kwargs = groups.graph.inputs
    call = read_call(slim, args or kwargs)
    flat, _ = flatten(slim, call)
    generator = torch.Generator().manual_seed(seed)
    samples = [call.sample(generator)]
    if groups.graph.dynamic:
        samples.append(call.with_batch(1).sample(generator))
    try:
        check_parity(path, flat, samples, input_names=call.names, precise=flat.in_double)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
