"""Every model of the list as a file: exported, read back, held against PyTorch, its groups compared, and cut in half.

    python -m benchmarks.onnx_listed                    # all, resuming where a run was broken off
    python -m benchmarks.onnx_listed --table            # print the table of the results so far

As `benchmarks.coverage`; one line of JSON a model in `benchmarks/results/onnx_listed.jsonl`.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import surgeon
from benchmarks import coverage
from benchmarks.coverage import Row, cut, ordered, redraw, sweep
from benchmarks.rows import last, last_line, publish
from surgeon.deploy.inputs import Call, named_outputs, read_call
from surgeon.deploy.parity import relative_deviation
from surgeon.errors import SurgeonError
from surgeon.frontend.trace import normalize_inputs, trace_inputs
from surgeon.groups.coupling import Groups, couple, without_place
from surgeon.onnx_import.module import OnnxModel
from testbed import zoo

RESULTS = Path(__file__).parent / "results" / "onnx_listed.jsonl"
TABLE = RESULTS.with_suffix(".md")
#: How far an output may be from PyTorch's, by its largest value.
TOLERANCE = 1e-3
#: After so many seconds of `benchmarks.coverage`, only the batch of a model is tried at other sizes.
LONG = 240


def _stages(row: Row, library: str, name: str, ratio: float) -> None:
    model, inputs = zoo.load(library, name)
    redraw(model)
    row["stage"] = "inspect"
    seconds: dict[str, float] = {}
    row["times"] = seconds
    start = time.perf_counter()

    def took(stage: str) -> None:
        nonlocal start
        seconds[row["stage"]], start, row["stage"] = round(time.perf_counter() - start, 1), time.perf_counter(), stage

    wanted = in_eval_mode(model, inputs)
    with tempfile.TemporaryDirectory() as folder:
        took("export")
        file = Path(folder) / "model.onnx"
        exported = surgeon.export(model, file, example_inputs=inputs, dynamic=free_axes(f"{library}:{name}"))
        took("read")
        net = surgeon.load_onnx(file)
        row["operators"] = len(net.operators.steps)
        row["fallbacks"] = sorted(each.partition(":")[0] for each in net.fallbacks.values())
        took("run")
        call = read_call(model, inputs)
        row["deviations"] = [deviation(model, net, each) for each in at_sizes(call, exported.shapes_checked)]
        took("groups")
        example = feeds(net, call.tensors)
        found = in_eval_mode(net, example)
        row["groups"] = compared(wanted, found)
        if row["groups"]["lost"]:
            row["why_pinned"] = Counter(without_place(pin.reason) for pin in found.pinned).most_common(8)
        took("shrink")
        _, report, asked = cut(net, example, ratio)
        took("done")
    row |= {
        "asked": round(asked, 4), "reached": round(report.reached, 4), "form": report.form,
        "reason": report.form_reason, "certificate": report.certificate.deviation,
        "stage": "done" if equal(row) else "not equal", "ok": True,
    }


def free_axes(name: str) -> Literal["batch"] | None:
    """Which axes are tried: the batch alone where `benchmarks.coverage` found no more, or took `LONG` over a model."""
    row = last(coverage.RESULTS, "model").get(name, {})
    free = {size for shape in row.get("onnx_inputs", {}).values() for size in shape if isinstance(size, str)}
    return "batch" if free == {"batch"} or row.get("seconds", 0.0) > LONG else None


def in_eval_mode(model: nn.Module, inputs: Any) -> Groups:
    """The groups of what runs in eval mode: a file holds no more, such as the heads that GoogLeNet is trained with."""
    return couple(trace_inputs(model, normalize_inputs(inputs)))


def feeds(net: OnnxModel, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Inputs of a file's module, from those of the call that it was exported with."""
    return {port.parameter: tensor for port, tensor in zip(net.inputs, tensors, strict=True)}


def at_sizes(call: Call, shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> list[Call]:
    """The call, and at each other one of the shapes."""
    made = [call]
    for shape in shapes:
        sizes = {
            (index, axis): size
            for index, (name, tensor) in enumerate(zip(call.names, call.tensors, strict=True))
            for axis, size in enumerate(shape[name]) if size != tensor.shape[axis]
        }
        made += [call.at(sizes)] if sizes else []
    return made


def deviation(model: nn.Module, net: OnnxModel, call: Call) -> float:
    """How far the file's module is from the model, by the largest value of each output."""
    args, kwargs = call.bind(call.tensors)
    with torch.no_grad():
        outputs = [leaf for _, leaf in named_outputs(model(*args, **kwargs)) if isinstance(leaf, Tensor)]
        made = pytree.tree_leaves(net(**feeds(net, call.tensors)))
    if [each.shape for each in outputs] != [each.shape for each in made]:
        raise SurgeonError(f"the file's outputs are of shapes {[tuple(each.shape) for each in made]}")
    return max(relative_deviation(a.numpy(), b.numpy()) for a, b in zip(outputs, made, strict=True))


Members = frozenset[tuple[str, int]]


def compared(wanted: Groups, found: Groups) -> dict[str, Any]:
    """How many groups there are from PyTorch and from the file, and the sizes of those that only one of them has.

    A group is the same where it is of the same size, and of the same axis of a weight. One of which no weight is left
    in the file was computed `away` by the exporter: it has worked out layers that see constants alone.
    """
    held = placed(wanted.graph.values, found.graph.values)
    left = [(group.size, frozenset((member.tensor, member.axis) for member in group.members)) for group in found]
    lost: list[int] = []
    away: list[int] = []
    for group in wanted:
        members: Members = frozenset(
            (name, axes[member.axis]) for member in group.members if member.tensor in held
            for name, axes in [held[member.tensor]]
        )
        same = [each for each in left if each[0] == group.size and each[1] & members]
        if same:
            left.remove(max(same, key=lambda each: len(each[1] & members)))
        else:
            (lost if members else away).append(group.size)
    for size in list(away):  # weights that the exporter changed, as by folding a norm, are not found again
        twin = next((each for each in left if each[0] == size), None)
        if twin is not None:
            left.remove(twin)
            away.remove(size)
    return {
        "model": len(wanted), "file": len(found), "lost": sorted(lost), "away": sorted(away),
        "more": sorted(size for size, _ in left),
    }


def placed(model: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What a model's parameters are called in a file, and which axes theirs are there.

    By their name, or by their values: a matrix may be transposed, under a name that the exporter made up.
    """
    by_values = {_mark(tensor): name for name, tensor in file.items() if tensor.is_floating_point() and tensor.numel()}
    found = {}
    for name, tensor in model.items():
        if not isinstance(tensor, nn.Parameter):
            continue
        other = name if name in file else by_values.get(_mark(tensor))
        if other is None:
            continue
        axes = tuple(range(tensor.dim()))
        turned = tensor.dim() == 2 and torch.equal(file[other], tensor.t())
        if turned or file[other].shape == tensor.shape:
            found[name] = other, axes[::-1] if turned else axes
    return found


def _mark(tensor: Tensor) -> tuple[float, ...]:
    """What tells a tensor from others, whatever its shape."""
    value = tensor.detach()
    return value.numel(), float(value.min()), float(value.max())


def equal(row: Mapping[str, Any]) -> bool:
    """Whether a file computes what its model does, and has the groups of all that is in it."""
    return max(row["deviations"]) <= TOLERANCE and not row["groups"]["lost"]


def unchanged(row: Mapping[str, Any]) -> bool:
    """Whether the groups are the same: neither did the exporter work out layers, nor are more axes free in the file."""
    return equal(row) and not row["groups"]["more"] and not row["groups"].get("away")


def table(rows: dict[str, Row]) -> str:
    """The results in Markdown."""
    read = [row for row in rows.values() if row.get("deviations") and max(row["deviations"]) <= TOLERANCE]
    done = [row for row in rows.values() if row["ok"] and equal(row)]
    alike = [row for row in done if unchanged(row)]
    lines = [
        f"`python -m benchmarks.onnx_listed`: of {len(rows)} models exported and read back, {len(read)} compute the "
        f"same at all sizes tried; {len(done)} of these have the groups of PyTorch, and were cut and certified.",
        "",
        f"In {len(alike)} they are the same groups. In {len(done) - len(alike)} the exporter had computed part of the "
        "model: layers that see constants alone are *gone* with their groups, or positions that PyTorch numbers in a "
        "run are constants, of which *more* units can be removed; all others are the same.",
        "",
        "| model | operators | fallbacks | off PyTorch, at one size and others | groups, PyTorch and file "
        "| MACs removed | form | certificate | seconds |",
        "| --- | ---: | --- | --- | --- | ---: | --- | ---: | ---: |",
    ]
    for name, row in rows.items():
        if not row["ok"]:
            lines.append(f"| {name} | **failed** at {row.get('stage', '?')}: {last_line(row['error'])[:200]} "
                         "| | | | | | | |")
            continue
        groups = row["groups"]
        told = f"{groups['model']}, {groups['file']}"
        for key, word in (("lost", "**lost**"), ("away", "gone"), ("more", "more")):
            told += f", {word} {_counted(groups[key])}" if groups.get(key) else ""
        lines.append(
            f"| {name} | {row['operators']} | {', '.join(row['fallbacks']) or '–'} "
            f"| {', '.join(f'{each:.0e}' for each in row['deviations'])} | {told} | {row['reached']:.1%} "
            f"| {row['form']} | {row['certificate']:.0e} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _counted(sizes: Sequence[int]) -> str:
    """Sizes, and how often each occurs.

    >>> _counted([2, 2, 7])
    '2 × 2, 7'
    """
    return ", ".join(f"{count} × {size}" if count > 1 else str(size) for size, count in Counter(sizes).items())


if __name__ == "__main__":
    sweep(__doc__, _stages, RESULTS)
    publish(table(ordered(RESULTS)), TABLE)
