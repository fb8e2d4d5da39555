"""Random networks under random plans, held against an oracle that shares nothing with the code that slices.

    python -m benchmarks.fuzz --networks 1000 --seed 0
    python -m benchmarks.fuzz --networks 2000 --sizes

Each network is pruned by a plan that keeps a random part of every group, run in float64 at another batch size than it
was traced with, and compared with the original in which everything that was removed is ignored. With `--sizes` the
networks take several sizes, and are run at three of them and in bfloat16, in the user's own class and as a graph. One
line is printed a failure, and a summary at the end; it goes to `benchmarks/results/fuzz.json`, or `fuzz_sizes.json`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from testbed.sized_trial import examine_sizes
from testbed.trial import Outcome, examine

RESULTS = Path(__file__).parent / "results"


def _until_interrupted(batches: Iterator[list[Outcome]]) -> Iterator[list[Outcome]]:
    """What is done by the time of Ctrl-C is reported as well."""
    try:
        yield from batches
    except KeyboardInterrupt:
        print("interrupted", flush=True)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _worker(seed: int, plans: int, sizes: bool) -> list[Outcome]:
    return list(examine_sizes(seed) if sizes else examine(seed, plans))


def _report(outcomes: list[Outcome], seconds: float) -> dict[str, object]:
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    compared = [o.deviation for o in outcomes if o.verdict == "right"]
    return {
        "networks": len({o.seed for o in outcomes}),
        "plans": sum(o.verdict != "nothing" for o in outcomes),
        "units removed": sum(o.removed for o in outcomes if o.verdict == "right"),
        **{verdict: verdicts[verdict] for verdict in ("right", "wrong", "refused", "crashed", "nothing")},
        "in the user's own class": sum(o.form == "module" for o in outcomes),
        "median deviation": statistics.median(compared) if compared else None,
        "largest deviation": max(compared, default=None),
        "seconds": round(seconds, 1),
    }


def _reasons(outcomes: list[Outcome]) -> Counter[str]:
    """How often each reason was given for refusing a size that the original takes; N stands for its numbers."""
    told = (o.message.partition("this graph takes ")[2] or o.message for o in outcomes if o.verdict == "refused")
    return Counter(re.sub(r"\d+", "N", each).removeprefix("N: ") for each in told)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; 1 where any plan went wrong or crashed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", type=int, default=1000, help="how many networks (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="the first network's seed (default 0)")
    parser.add_argument("--plans", type=int, default=1, help="random plans a network (default 1)")
    parser.add_argument("--processes", type=int, default=2, help="default 2")
    parser.add_argument("--sizes", action="store_true", help="networks of several sizes, each at three of them")
    parser.add_argument("--output", type=Path, help="where the summary goes")
    options = parser.parse_args(arguments)
    output: Path = options.output or RESULTS / ("fuzz_sizes.json" if options.sizes else "fuzz.json")
    started = time.perf_counter()
    outcomes: list[Outcome] = []
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.processes, initializer=_ignore_interrupts) as pool:
        seeds = range(options.seed, options.seed + options.networks)
        work = partial(_worker, plans=options.plans, sizes=options.sizes)
        for done, batch in enumerate(_until_interrupted(pool.imap_unordered(work, seeds, chunksize=4)), start=1):
            outcomes += batch
            for o in batch:
                if o.verdict not in ("right", "nothing"):
                    print(f"{o.verdict}: seed {o.seed} plan {o.plan} ({o.network} {o.form}) "
                          f"deviation {o.deviation:.2g}: {o.message}", flush=True)
            if done % 100 == 0:
                print(f"{done} networks", flush=True)
    report = _report(outcomes, time.perf_counter() - started)
    for key, value in report.items():
        print(f"{key:26} {value}")
    failures = sorted((o for o in outcomes if o.verdict in ("wrong", "crashed")), key=lambda o: (o.seed, o.plan))
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(output.name + ".part")
    content = {"first seed": options.seed, "torch": torch.__version__, **report}
    content["refused because"] = dict(_reasons(outcomes).most_common())
    content["failures"] = [asdict(outcome) for outcome in failures]
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, output)
    return 1 if report["wrong"] or report["crashed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
