"""Random networks under random plans, held against an oracle that shares nothing with the code that slices.

    python -m benchmarks.fuzz --networks 1000 --seed 0

Each network is pruned by a plan that keeps a random part of every group, run in float64 at another batch size than it
was traced with, and compared with the original in which everything that was removed is ignored. One line is printed a
failure, and a summary at the end, which goes to `benchmarks/results/fuzz.json` too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.errors import SurgeonError
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Groups, couple
from surgeon.surgery import operate
from testbed import oracle
from testbed.networks import random_network, tensors

RESULTS = Path(__file__).parent / "results" / "fuzz.json"

#: The largest relative deviation in float64 that rounding explains.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Outcome:
    """What became of one random plan of one network.

    `verdict` is "right", "wrong" (it runs and computes something else), "refused" (surgeon says that it can't, and
    why), "crashed" (any other error) or "nothing" (the network has no group). `deviation` is relative; nan where
    nothing was compared.
    """

    seed: int
    plan: int
    network: str
    verdict: str
    form: str = ""
    groups: int = 0
    removed: int = 0
    deviation: float = float("nan")
    message: str = ""


def random_plan(groups: Groups, rng: Random) -> dict[int, list[int]]:
    """For each group a random part of its units, at least one; now and then all of them, or a single one."""
    keep: dict[int, list[int]] = {}
    for group in groups:
        count = rng.choice([group.size, 1, *(rng.randint(1, group.size) for _ in range(6))])
        keep[group.leaf.id] = sorted(rng.sample(range(group.size), count))
    return keep


def cuts_of(groups: Groups, keep: dict[int, list[int]]) -> dict[tuple[str, int], list[int]]:
    """What a plan leaves of each tensor: name and axis -> kept positions."""
    kept = groups.kept(keep)
    return {
        (name, index): kept.positions(axis).tolist()
        for name, axes in groups.tensors.items()
        for index, axis in enumerate(axes)
        if kept.changed(axis)
    }


def examine(seed: int, plans: int = 1) -> Iterator[Outcome]:
    """Prune the network of this seed by `plans` random plans, and compare each result with the oracle's."""
    network, inputs = random_network(seed)
    network, inputs = network.double(), oracle.double(inputs)  # before tracing, which writes types into the graph
    name = type(network).__name__
    before = {key: value.clone() for key, value in network.state_dict().items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            groups = couple(trace(network, inputs))
    except Exception as error:  # noqa: BLE001  (whatever goes wrong is what the fuzz is after)
        yield Outcome(seed, 0, name, _kind(error), message=_message(error))
        return
    if not len(groups):
        yield Outcome(seed, 0, name, "nothing")
        return
    for plan in range(plans):
        keep = random_plan(groups, Random(f"{seed}/{plan}"))
        about = partial(Outcome, seed, plan, name, groups=len(groups),
                        removed=sum(group.size - len(keep[group.leaf.id]) for group in groups))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield _compare(network, groups, keep, inputs, about)
        except Exception as error:  # noqa: BLE001
            yield about(_kind(error), message=_message(error))
    after = network.state_dict()
    if not all(torch.equal(value, after[key]) for key, value in before.items()):
        yield Outcome(seed, 0, name, "wrong", message="the original network was changed")


def _compare(
    network: nn.Module, groups: Groups, keep: dict[int, list[int]], inputs: tuple[Tensor, ...],
    about: partial[Outcome],
) -> Outcome:
    operation = operate(network, groups, keep)
    slim = operation.module
    if groups.graph.dynamic:  # another batch size finds one that was written into a reshape
        inputs = pytree.tree_map(lambda x: x[[0, 1, 0]], inputs)
    expected = oracle.masked(network, cuts_of(groups, keep), inputs)
    with torch.no_grad():
        found = tensors(slim(*inputs))
    deviation = oracle.deviation(list(found), expected)
    unknown = set(slim.state_dict()) - set(network.state_dict())
    if unknown:
        return about("wrong", operation.form, deviation=deviation, message=f"new names in the state_dict: {unknown}")
    right = deviation <= TOLERANCE
    return about("right" if right else "wrong", operation.form, deviation=deviation, message=operation.reason)


def _kind(error: Exception) -> str:
    return "refused" if isinstance(error, SurgeonError) else "crashed"


def _message(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {error}"


def _until_interrupted(batches: Iterator[list[Outcome]]) -> Iterator[list[Outcome]]:
    """What is done by the time of Ctrl-C is reported as well."""
    try:
        yield from batches
    except KeyboardInterrupt:
        print("interrupted", flush=True)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _worker(seed: int, plans: int) -> list[Outcome]:
    return list(examine(seed, plans))


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


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; 1 where any plan went wrong or crashed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", type=int, default=1000, help="how many networks (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="the first network's seed (default 0)")
    parser.add_argument("--plans", type=int, default=1, help="random plans a network (default 1)")
    parser.add_argument("--processes", type=int, default=2, help="default 2")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    outcomes: list[Outcome] = []
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.processes, initializer=_ignore_interrupts) as pool:
        seeds = range(options.seed, options.seed + options.networks)
        work = partial(_worker, plans=options.plans)
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
    failures = sorted((o for o in outcomes if o.verdict not in ("right", "nothing")), key=lambda o: (o.seed, o.plan))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.output.with_name(options.output.name + ".part")
    content = {"first seed": options.seed, "torch": torch.__version__, **report}
    content["failures"] = [asdict(outcome) for outcome in failures]
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, options.output)
    return 1 if report["wrong"] or report["crashed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
