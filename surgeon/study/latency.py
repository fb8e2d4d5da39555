"""The latency of the models that a study's runs produced, each against the dense model."""

from __future__ import annotations

from collections.abc import Iterable

from surgeon.device.benchmark import benchmark
from surgeon.study.runs import Run
from surgeon.study.store import Store
from surgeon.support.progress import counter

SECONDS = 2.0


def measure(runs: Iterable[Run], store: Store) -> None:
    """Add to each row the milliseconds of its model and of the dense one, measured one after another in this process.

    This comes after all runs have been trained, so that nothing else of the study is running.
    """
    todo = [
        (run, row) for run in runs
        if (row := store.row(run)) is not None and "error" not in row and "latency" not in row
        and store.onnx(run).is_file()
    ]  # fmt: skip
    with counter("measure") as progress:
        for done, (run, row) in enumerate(todo):
            progress(done, len(todo))
            verdict = benchmark(store.base, store.onnx(run), threads=1, seconds=SECONDS, peak_memory=False)
            found = {
                "ms": verdict.slim.low, "dense_ms": verdict.base.low, "speedup": verdict.ratio.value,
                "low": verdict.ratio.low, "high": verdict.ratio.high,
            }
            kept = {key: value for key, value in row.items() if key not in ("key", "run")}
            store.write(run, {**kept, "latency": found})
