"""Models of public libraries: cut at half the MACs, trained for two steps by the library's own means, run at another
size than that of the example inputs, saved and loaded.

    python -m benchmarks.libraries                       # all, resuming where a run was broken off
    python -m benchmarks.libraries --only smp:unet --redo
    python -m benchmarks.libraries --table               # print the table of the results so far

Needs the extra "libraries". One line of JSON a row in `benchmarks/results/libraries.jsonl`.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import surgeon
from benchmarks.coverage import cut, redraw
from benchmarks.libraries_cases import CASES, Case, with_suppression
from benchmarks.rows import command, last, last_line, publish, to_run
from surgeon.errors import SurgeonError
from testbed import zoo

RESULTS = Path(__file__).parent / "results" / "libraries.jsonl"
TABLE = Path(__file__).parent / "results" / "libraries.md"
RATIO = 0.5


def one(name: str) -> dict[str, Any]:
    """What became of one model."""
    row: dict[str, Any] = {"row": name, "ok": False, "stage": "make"}
    start = time.perf_counter()
    try:
        torch.manual_seed(0)
        _stages(row, CASES[name]())
    except SurgeonError as error:
        row["error"] = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  (a crash is a result too)
        row["error"] = traceback.format_exc()[-1500:]
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def _stages(row: dict[str, Any], case: Case) -> None:
    original, fresh = case.model, copy.deepcopy(case.model)
    redraw(original)
    whole = original.get_submodule(case.part)
    row["stage"] = "shrink"
    slim, report, asked = cut(whole, case.inputs, RATIO, **case.options)
    second = report.certificate.second_size
    row |= {
        "asked": round(asked, 4), "reached": round(report.reached, 4), "form": report.form,
        "reason": report.form_reason, "own class": type(slim) is type(whole), "deviation": report.certificate.deviation,
        "second": None if second is None else second.deviation, "configuration": list(report.configuration),
    }
    if asked < RATIO:
        row["pinned"] = sorted({pin.reason for pin in report.pinned})[:8]
    model = _with_part(original, case.part, slim)
    row["stage"] = "train"
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    case.train(model)
    row["trained"] = sum(not torch.equal(value, before[name]) for name, value in model.named_parameters())
    if not row["trained"]:
        raise SurgeonError("no parameter changed")
    row["stage"] = "predict"
    model.eval()
    found, expected = case.predict(model, case.other), case.predict(original, case.other)
    row["shapes"] = _alike(found, expected)
    row["stage"] = "load"
    with tempfile.TemporaryDirectory() as folder:
        surgeon.save(model.get_submodule(case.part), folder)
        again = surgeon.load(folder, fresh.get_submodule(case.part))
    _equal(case.predict(_with_part(model, case.part, again), case.other), found)
    row["library"] = "" if case.keep is None else _kept(case, model, found)
    row |= {"stage": "done", "ok": True}


def _with_part(model: nn.Module, part: str, value: nn.Module) -> nn.Module:
    """A copy of the model with another module in place of one of its parts; or that module, where it is the whole."""
    if not part:
        return value
    return copy.deepcopy(model, {id(model.get_submodule(part)): value})


def _alike(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The shapes of what the smaller model gave, if the original gives tensors of these shapes too.

    How many objects a detector finds in a picture may differ.
    """
    if found.keys() != expected.keys():
        raise SurgeonError(f"outputs {', '.join(found)} instead of {', '.join(expected)}")
    for name, value in found.items():
        counted = name.rpartition(".")[2] in ("boxes", "scores", "labels")
        if value.shape[counted:] != expected[name].shape[counted:]:
            raise SurgeonError(f"output {name} has {tuple(value.shape)} instead of {tuple(expected[name].shape)}")
        if not torch.isfinite(value).all():
            raise SurgeonError(f"output {name} is not finite")
        if not value.numel():
            raise SurgeonError(f"output {name} is empty")
    return {name: list(value.shape) for name, value in found.items()}


def _equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, value in expected.items():
        if not torch.equal(found[name], value):
            raise SurgeonError(f"output {name} is another after it was read")


def _kept(case: Case, model: nn.Module, expected: Mapping[str, Tensor]) -> str:
    """What became of writing and reading by the library's own means: "ok", or what it said."""
    assert case.keep is not None
    try:
        _equal(case.predict(case.keep(model), case.other), expected)
    except (SurgeonError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return "ok"


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The results in Markdown."""
    good = [row for row in rows.values() if row["ok"]]
    lines = [
        f"{len(good)} of {len(rows)} cut, trained for two steps by the library's own means, run at another size, "
        f"saved, loaded and equal; {sum(row['own class'] for row in good)} in the user's own class, "
        f"{sum(row['asked'] == RATIO for row in good)} at half the MACs.",
        "",
        "Trained: parameters that the two steps changed. Another size: the greatest deviation from the original, less "
        "the removed units, at a second size of the inputs, before training; shapes: that the outputs there have the "
        "original's. From its library: written and read by Hugging Face's own means. A detector predicts through "
        "`torchvision::nms`, for which a kernel in Python stands in where torchvision's extension is not loaded.",
        "",
        "| model | form | MACs removed | trained | at another size | loaded | from its library | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        if not row["ok"]:
            lines.append(f"| {name} | **failed** at {row['stage']} | | | | | | {row['seconds']:.0f} |")
            continue
        second = "shapes" if row["second"] is None else f"{row['second']:.0e}"
        lines.append(
            f"| {name} | {row['form']} | {row['reached']:.1%} | {row['trained']} | {second} | equal "
            f"| {'equal' if row['library'] == 'ok' else 'no' if row['library'] else '–'} | {row['seconds']:.0f} |"
        )
    said = [
        *(f"- {name}: {last_line(row['error'])}" for name, row in rows.items() if not row["ok"]),
        *(f"- {row['row']}, a graph: {row['reason']}" for row in good if not row["own class"]),
        *(f"- {row['row']}, less than half: {'; '.join(row['pinned'])}" for row in good if "pinned" in row),
        *(
            f"- {row['row']}, from its library: {'; '.join(row['configuration']) or row['library']}"
            for row in good if row["library"] not in ("", "ok")
        ),
    ]
    return "\n".join([*lines, *(["", *said] if said else [])]) + "\n"


def main() -> None:
    """The command."""
    options = command(__doc__).parse_args()
    if not options.table:
        zoo.define_torchvision_operators()
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        done = {name for name, row in last(RESULTS, "row").items() if row["ok"]}
        for name in to_run(CASES, options.only, options.redo, done):
            with with_suppression():
                row = one(name)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            good = row["ok"]
            verdict = f"{row['form']:6} -{row['reached']:.1%}" if good else f"FAILED at {row['stage']} {row['error']}"
            sys.stdout.write(f"{name:50} {row['seconds']:6.0f} s  {verdict}\n")
            sys.stdout.flush()
    rows = last(RESULTS, "row")
    publish(table({name: rows[name] for name in CASES if name in rows}), TABLE)


if __name__ == "__main__":
    main()
