"""Seconds and memory of `shrink(model, 0.5, data=…)` on models of real size, with 256 unlabeled inputs.

    python -m benchmarks.recovery                          # on as many threads as there are cores
    python -m benchmarks.recovery --against PATH --samples 32   # next to another checkout, one after the other
    python -m benchmarks.recovery --table

Run it on a machine where nothing else runs. A process a row; one line of JSON a row in
`benchmarks/results/recovery.jsonl`. Weights and inputs are random: they decide neither seconds nor memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import recovery_row
from benchmarks.rows import command, last, last_line, publish, to_run

RESULTS = Path(__file__).parent / "results" / "recovery.jsonl"
TABLE = RESULTS.with_suffix(".md")
HERE = Path(__file__).parents[1]
SAMPLES = 256


def _apart(name: str, samples: int, tree: Path) -> dict[str, Any]:
    """The row of one model in a process of its own, with the code of a checkout."""
    code = f"import sys; sys.path.insert(0, {str(tree)!r}); sys.path.append({str(HERE)!r})\n" + (
        "import importlib.util as u, json\n"
        f"spec = u.spec_from_file_location('row', {recovery_row.__file__!r}); row = u.module_from_spec(spec)\n"
        "sys.modules['row'] = row; spec.loader.exec_module(row)\n"
        f"print(json.dumps(row.one({name!r}, {samples})))"
    )
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd="/")
    if ran.returncode:
        return {"error": last_line(ran.stderr)}
    found: dict[str, Any] = json.loads(last_line(ran.stdout))
    return found


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = [
        "| model | inputs | threads | seconds | of CPU | peak memory beyond model and inputs | slowest stages |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, row in rows.items():
        if "error" in row:
            lines.append(f"| {key} | | | **failed**: {row['error']} | | | |")
            continue
        slowest = sorted(row["stages"].items(), key=lambda stage: -stage[1])[:4]
        spent = ", ".join(f"{name} {seconds:.0f}" for name, seconds in slowest)
        lines.append(
            f"| {key.rpartition(':')[0]} | {row['samples']} | {row['threads']} | {row['seconds']:.0f} "
            f"| {row['cpu']:.0f} | {row['peak_mb'] / 1024:.1f} GiB | {spent} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    parser = command(__doc__)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--against", type=Path, help="another checkout, run before each row; printed, not written")
    options = parser.parse_args()
    if not options.table:
        done = {key.rpartition(":")[0] for key in last(RESULTS, "key")}
        for name in to_run(recovery_row.MODELS, options.only, options.redo, done):
            if options.against is not None:
                sys.stderr.write(f"{name}, {options.against}: {_apart(name, options.samples, options.against)}\n")
            row = {"key": f"{name}:{options.samples}", **_apart(name, options.samples, HERE)}
            sys.stderr.write(f"{name}: {row}\n")
            if options.against is None:
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    publish(table(last(RESULTS, "key")), TABLE)


if __name__ == "__main__":
    main()
