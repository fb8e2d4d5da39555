"""Every model of the list as a file: exported, read back, held against PyTorch, its groups compared, and cut in half.

    python -m benchmarks.onnx_listed                    # all, resuming where a run was broken off
    python -m benchmarks.onnx_listed --table            # print the table of the results so far

As `benchmarks.coverage`; one line of JSON a model in `benchmarks/results/onnx_listed.jsonl`.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import surgeon
from benchmarks.coverage import Row, cut, ordered, redraw, sweep
from benchmarks.rows import last_line, publish
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


def _stages(row: Row, library: str, name: str, ratio: float) -> None:
    model, inputs = zoo.load(library, name)
    redraw(model)
    row["stage"] = "inspect"
    wanted = in_eval_mode(model, inputs)
    with tempfile.TemporaryDirectory() as folder:
        row["stage"] = "export"
        file = Path(folder) / "model.onnx"
        exported = surgeon.export(model, file, example_inputs=inputs)
        row["stage"] = "read"
        net = surgeon.load_onnx(file)
        row["operators"] = len(net.operators.steps)
        row["fallbacks"] = sorted(each.partition(":")[0] for each in net.fallbacks.values())
        row["stage"] = "run"
        call = read_call(model, inputs)
        row["deviations"] = [deviation(model, net, each) for each in at_sizes(call, exported.shapes_checked)]
        row["stage"] = "groups"
        example = feeds(net, call.tensors)
        found = in_eval_mode(net, example)
        row["groups"] = compared(wanted, found)
        if row["groups"]["lost"]:
            row["why_pinned"] = Counter(without_place(pin.reason) for pin in found.pinned).most_common(8)
        row["stage"] = "shrink"
        _, report, asked = cut(net, example, ratio)
    row |= {
        "asked": round(asked, 4), "reached": round(report.reached, 4), "form": report.form,
        "reason": report.form_reason, "certificate": report.certificate.deviation,
        "stage": "done" if equal(row) else "not equal", "ok": True,
    }


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


def compared(wanted: Groups, found: Groups) -> dict[str, Any]:
    """How many groups there are from PyTorch and from the file, and the sizes of those that only one of them has."""
    ours, theirs = (Counter(group.size for group in each) for each in (wanted, found))
    return {
        "model": len(wanted), "file": len(found),
        "lost": sorted((ours - theirs).elements()), "more": sorted((theirs - ours).elements()),
    }


def equal(row: Mapping[str, Any]) -> bool:
    """Whether a file computes what its model does, and has its groups."""
    groups = row["groups"]
    return max(row["deviations"]) <= TOLERANCE and not groups["lost"] and not groups["more"]


def table(rows: dict[str, Row]) -> str:
    """The results in Markdown."""
    read = [row for row in rows.values() if row.get("deviations") and max(row["deviations"]) <= TOLERANCE]
    same = [row for row in rows.values() if row["ok"] and equal(row)]
    lines = [
        f"`python -m benchmarks.onnx_listed`: of {len(rows)} models exported and read back, {len(read)} compute the "
        f"same at all sizes tried; {len(same)} of these have the same groups as from PyTorch, and were cut and "
        "certified.",
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
        told += f", lost {', '.join(map(str, groups['lost']))}" if groups["lost"] else ""
        told += f", more {', '.join(map(str, groups['more']))}" if groups["more"] else ""
        lines.append(
            f"| {name} | {row['operators']} | {', '.join(row['fallbacks']) or '–'} "
            f"| {', '.join(f'{each:.0e}' for each in row['deviations'])} | {told} | {row['reached']:.1%} "
            f"| {row['form']} | {row['certificate']:.0e} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sweep(__doc__, _stages, RESULTS)
    publish(table(ordered(RESULTS)), TABLE)
