"""The time to a plan of a file against that of a plan of the module that it was exported from.

    python -m benchmarks.onnx_plan                      # all, resuming where a run was broken off
    python -m benchmarks.onnx_plan --only resnet50 --redo
    python -m benchmarks.onnx_plan --table              # print the table of the results so far

A file is loaded, traced and planned; a module, which is there, is traced and planned, both by the weights alone. It is
CPU time of one thread, the two taking turns in one process. One line of JSON a model in
`benchmarks/results/onnx_plan.jsonl`, and the table in `onnx_plan.md`.
"""

from __future__ import annotations

import statistics
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import surgeon
from benchmarks.onnx_listed import feeds
from benchmarks.rows import over_names
from benchmarks.speed import load, took
from surgeon.deploy.inputs import read_call

RESULTS = Path(__file__).parent / "results"
ROWS, TABLE = RESULTS / "onnx_plan.jsonl", RESULTS / "onnx_plan.md"
MODELS = ("resnet18", "resnet50", "mobilenet_v2", "vit_b_32")
ROUNDS = 5
#: The floor for ResNet-50: how many times the time of the module.
FLOOR = 2.0


def measure(name: str) -> dict[str, Any]:
    """The seconds of each round, and by how much the file takes longer, as the median of the rounds' ratios."""
    model, inputs = load(name)
    rounds: dict[str, list[float]] = {"import": [], "plan": [], "module": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        surgeon.export(model, path, example_inputs=inputs)
        example = feeds(surgeon.load_onnx(path), read_call(model, inputs).tensors)
        for index in range(ROUNDS + 1):
            module, _ = took(lambda: surgeon.plan(model, 0.5, example_inputs=inputs, importance="magnitude"))
            read, net = took(lambda: surgeon.load_onnx(path))
            plan, _ = took(lambda: surgeon.plan(net, 0.5, example_inputs=example, importance="magnitude"))  # noqa: B023
            if index:  # the first round loads what both need
                for key, value in zip(rounds, (read, plan, module), strict=True):
                    rounds[key].append(round(value, 3))
    ratios = [(a + b) / c for a, b, c in zip(*rounds.values(), strict=True)]
    return {"operators": len(net.operators.steps), "rounds": rounds, "ratio": round(statistics.median(ratios), 3),
            "worst": round(max(ratios), 3)}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The results in Markdown."""
    lines = []
    if "resnet50" in rows:
        found = rows["resnet50"]
        lines += [
            f"`python -m benchmarks.onnx_plan`: import and plan of ResNet-50's file take {found['ratio']:.2f} times as "
            f"long as a plan of the module, at worst {found['worst']:.2f} times in {ROUNDS} rounds; "
            f"{'at most' if found['ratio'] <= FLOOR else 'MORE than'} {FLOOR:g} times are allowed.\n",
        ]
    lines += [
        "| model | operators | import, s | plan of the file, s | plan of the module, s | ratio | at worst |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in [each for each in MODELS if each in rows]:
        row = rows[name]
        seconds = " | ".join(f"{statistics.median(row['rounds'][key]):.2f}" for key in ("import", "plan", "module"))
        lines.append(f"| {name} | {row['operators']} | {seconds} | {row['ratio']:.2f} | {row['worst']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    warnings.simplefilter("ignore")
    over_names(__doc__, MODELS, ROWS, TABLE, table, measure)


if __name__ == "__main__":
    main()
