"""Every model of the list: traced, cut at half the MACs, certified, run forward and backward, exported, held in ONNX;
then trained, cut again, saved, loaded, exported by torch and compiled.

    python -m benchmarks.coverage                       # all, resuming where a run was broken off
    python -m benchmarks.coverage --only timm:swin --redo
    python -m benchmarks.coverage --table               # print the table of the results so far

A process a model, with a time limit; one line of JSON a model in `benchmarks/results/coverage.jsonl`.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import surgeon
from benchmarks.coverage_life import STEPS, live
from benchmarks.rows import command, last, last_line, publish, to_run
from surgeon.errors import Infeasible, SurgeonError
from surgeon.verification.certificate import SecondSize
from testbed import zoo

RESULTS = Path(__file__).parent / "results" / "coverage.jsonl"
TABLE = Path(__file__).parent / "results" / "coverage.md"


def redraw(model: nn.Module) -> int:
    """Draw parameters and buffers at random whose values are all the same, and parameters equal to others; how many.

    Libraries initialize gains, biases and heads with constants, and some layers all alike: with those, mistakes would
    cancel out or be switched off, and exporters write equal tensors once.
    """
    generator = torch.Generator().manual_seed(0)
    count = 0
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.numel() > 1 and tensor.min() == tensor.max():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.data.copy_(tensor.data + 0.1 + 0.4 * noise if tensor.max() > 0 else 0.02 * (noise - 0.5))
            count += 1
    seen: dict[tuple[Any, ...], Tensor] = {}
    for tensor in model.parameters():
        known = tensor if tensor.numel() < 2 else seen.setdefault((tensor.shape, float(tensor.detach().sum())), tensor)
        if known is not tensor and torch.equal(known, tensor):
            tensor.data.mul_(1 + 0.1 * torch.rand(tensor.shape, generator=generator))
            count += 1
    return count


Row = dict[str, Any]
Stages = Callable[[Row, str, str, float], None]


def one(stages: Stages, library: str, name: str, ratio: float) -> Row:
    """What became of one model; `stages` fill the row."""
    row: Row = {"model": f"{library}:{name}", "ok": False, "stage": "load"}
    start = time.perf_counter()
    try:
        stages(row, library, name, ratio)
    except SurgeonError as error:
        row["error"] = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  (a crash is a result too)
        row["error"] = traceback.format_exc()[-1500:]
    row["seconds"] = round(time.perf_counter() - start, 1)
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


# Reasons to leave an operator alone that lie with surgeon.
_UNRULED = ("no rule", "does not cover", "the rule failed")


def _stages(row: Row, library: str, name: str, ratio: float) -> None:
    model, inputs = zoo.load(library, name)
    row["redrawn"] = redraw(model)
    row["model_mb"] = sum(p.numel() * p.element_size() for p in model.parameters()) >> 20
    row["stage"] = "shrink"
    slim, report, asked = cut(model, inputs, ratio)
    row |= {
        "asked": round(asked, 4), "reached": round(report.reached, 4),
        "form": report.form, "reason": report.form_reason,
        "macs": [report.macs.before, report.macs.after], "params": [report.params.before, report.params.after],
        "groups": len(report.groups), "pinned": len(report.pinned), "times": dict(report.seconds),
        "unruled": sorted({p.reason for p in report.pinned if any(why in p.reason for why in _UNRULED)}),
        "deviation": report.certificate.deviation, "outputs": list(report.certificate.outputs),
        "end_to_end": report.certificate.end_to_end, "statistics": len(report.certificate.statistics),
        "inputs": list(report.inputs), "second": second(report.certificate.second_size),
    }
    if asked < ratio:
        row["why_pinned"] = Counter(pin.reason for pin in report.pinned).most_common(8)
    row["stage"] = "backward"
    slim.train()
    row["gradients"] = _backward(slim, inputs)
    slim.eval()
    row["stage"] = "export"
    with tempfile.TemporaryDirectory() as folder:
        exported = surgeon.export(slim, Path(folder) / "slim.onnx", example_inputs=inputs)
    row |= {
        "onnx": exported.deviation, "onnx_inputs": {name: list(shape) for name, shape in exported.inputs.items()},
        "onnx_shapes": [dict(shapes) for shapes in exported.shapes_checked], "onnx_notes": list(exported.notes),
    }
    row["stage"] = "life"
    row["life"] = live(slim, library, name, inputs)
    row |= {"stage": "done", "ok": True}


def second(found: SecondSize | None) -> dict[str, Any] | None:
    """What was proved at a second size; None where no size is free."""
    return None if found is None else asdict(found)


def cut(model: nn.Module, inputs: Any, ratio: float, **options: Any) -> tuple[nn.Module, Any, float]:
    """Cut by `ratio`; where that is out of reach, as far as it goes. Nothing makes up for it."""
    options = {"compensate": False, **options}
    try:
        return *surgeon.shrink(model, ratio, example_inputs=inputs, return_report=True, **options), ratio
    except Infeasible as error:
        reachable = error.reachable
        if reachable is None or reachable <= 0:
            raise
        return *surgeon.shrink(model, reachable, example_inputs=inputs, return_report=True, **options), reachable


def _backward(model: nn.Module, inputs: Any) -> int:
    """Run forward and backward in train mode; how many parameters got a finite gradient."""
    args, kwargs = (inputs, {}) if isinstance(inputs, tuple) else ((), inputs)
    leaves = pytree.tree_leaves(_plain(model(*args, **kwargs)))
    outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not outputs:
        raise SurgeonError("no output of the smaller model has a gradient")
    sum(output.float().square().mean() for output in outputs).backward()  # type: ignore[union-attr]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not all(torch.isfinite(g).all() for g in gradients):
        raise SurgeonError("a gradient of the smaller model is not finite")
    return len(gradients)


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "keys") else value


def _child(connection: Any, stages: Stages, library: str, name: str, ratio: float) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    connection.send(one(stages, library, name, ratio))


def run(
    stages: Stages, todo: list[tuple[str, str]], ratio: float, limit: float, processes: int, results: Path
) -> None:
    """Run the models, `processes` at a time, each for at most `limit` seconds; append a line for each."""
    context = multiprocessing.get_context("fork")
    running: dict[Any, tuple[Any, str, float]] = {}
    waiting = list(todo)
    results.parent.mkdir(exist_ok=True)
    while waiting or running:
        while waiting and len(running) < processes:
            library, name = waiting.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(sender, stages, library, name, ratio))
            process.start()
            sender.close()
            running[receiver] = (process, f"{library}:{name}", time.perf_counter())
        for ready in multiprocessing.connection.wait(list(running), timeout=1):
            process, model, _ = running.pop(ready)
            try:
                row = cast(multiprocessing.connection.Connection, ready).recv()
            except EOFError:
                row = {"model": model, "ok": False, "error": "the process died (out of memory?)"}
            _write(results, row)
            process.join()
        for receiver, (process, model, start) in list(running.items()):
            if time.perf_counter() - start > limit:
                process.kill()
                del running[receiver]
                _write(results, {"model": model, "ok": False, "error": f"unfinished after {limit:.0f} s"})


def _write(results: Path, row: dict[str, Any]) -> None:
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    verdict = f"{row['form']:6} -{row['reached']:.1%}" if row.get("ok") else f"FAILED {str(row.get('error'))[-200:]}"
    sys.stderr.write(f"{row['model']:45} {row.get('seconds', 0):6.0f} s  {verdict}\n")


def ordered(results: Path = RESULTS) -> dict[str, Row]:
    """The last row of each model, in the order of the list."""
    done = last(results, "model")
    names = [f"{library}:{name}" for library, name, _ in zoo.entries()]
    return {name: done[name] for name in names if name in done}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The results in Markdown."""
    good = [row for row in rows.values() if row["ok"]]
    own = [row for row in good if row["form"] == "module"]
    second = [row["second"] for row in good if row.get("second") is not None]
    held = [found for found in second if found["deviation"] is not None]
    whole = [row for row in good if row["asked"] == 0.5]
    lines = [
        f"{len(good)} of {len(rows)} models traced, cut, certified, run forward and backward, exported and equal in "
        f"onnxruntime; {len(whole)} of them at half their MACs, {len(own)} in the user's own class. At a second size, "
        f"{len(held)} of them were held against the original and {len(second) - len(held)} by the shapes of their "
        "outputs.",
        "",
        _lives(good),
        "",
        "| model | form | MACs removed | parameters ÷ | node by node | end to end | at a second size | ONNX "
        "| free there | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        if not row["ok"]:
            lines.append(f"| {name} | **failed** at {row.get('stage', '?')} | | | | | | | | {row.get('seconds', '')} |")
            continue
        whole_check = f"{row['end_to_end']:.0e}" if row["end_to_end"] is not None else "statistics"
        lines.append(
            f"| {name} | {row['form']} | {row['reached']:.1%} | {row['params'][0] / row['params'][1]:.2f} "
            f"| {row['deviation']:.0e} | {whole_check} | {at_second(row.get('second'))} | {row['onnx']:.0e} "
            f"| {_free(row.get('onnx_inputs', {}))} | {row['seconds']:.0f} |"
        )
    lines += ["", "Not in the user's own class, and why:", ""]
    lines += [f"- {row['model']}: {row['reason']}" for row in good if row["form"] != "module"]
    less = [row for row in good if row["asked"] < 0.5]
    lines += ["", "Less than half, and what is pinned:", ""] if less else []
    for row in less:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in row.get("why_pinned", [])[:4])
        lines.append(f"- {row['model']}: {row['reached']:.1%}. {reasons}")
    failed = [(row["model"], step, said) for row in good for step, said in row["life"].items() if said != "ok"]
    lines += ["", "Afterwards, what did not go well:", ""] if failed else []
    lines += [f"- {model}, {step}: {last_line(said)}" for model, step, said in failed]
    return "\n".join(lines) + "\n"


def _lives(good: list[dict[str, Any]]) -> str:
    """How many of the smaller models went well through each step of what a user does next."""
    counts = (f"{step} {sum(row['life'].get(step) == 'ok' for row in good)}" for step in STEPS)
    return f"Afterwards, of {len(good)}: " + ", ".join(counts) + "."


def at_second(found: dict[str, Any] | None) -> str:
    """What was proved at a second size."""
    if found is None:
        return "all fixed"
    deviation, shapes = found["deviation"], ", ".join(found["shapes"])
    return f"{shapes}: " + (f"shapes alone ({found['reason']})" if deviation is None else f"{deviation:.0e}")


def _free(inputs: dict[str, list[int | str]]) -> str:
    """The axes of an ONNX file's inputs that are free."""
    return ", ".join(dict.fromkeys(size for shape in inputs.values() for size in shape if isinstance(size, str))) or "-"


def sweep(text: str | None, stages: Stages, results: Path) -> None:
    """The command of a sweep over the models of the list; `text` is its docstring."""
    parser = command(text)
    parser.add_argument("--failed", action="store_true", help="run again what failed")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--limit", type=float, default=900, help="seconds a model")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.table:
        return
    names = {f"{library}:{name}": (library, name) for library, name, _ in zoo.entries()}
    done = {name for name, row in last(results, "model").items() if row["ok"] or not options.failed}
    todo = [names[key] for key in to_run(names, options.only, options.redo, done)]
    zoo.define_torchvision_operators()
    import timm  # noqa: F401  (once, before the processes are forked)
    import torchvision  # noqa: F401
    import transformers  # noqa: F401

    run(stages, todo, options.ratio, options.limit, options.processes, results)


if __name__ == "__main__":
    sweep(__doc__, _stages, RESULTS)
    publish(table(ordered()), TABLE)
