"""The commands of a kit on the device: take the profile, or compare two files."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

from surgeon.device.benchmark import benchmark
from surgeon.device.kit import read
from surgeon.device.ort_session import feeds_at
from surgeon.device.take_profile import take
from surgeon.errors import SurgeonError
from surgeon.support.files import write_text

_BENCH = "bench"


def main(archive: str | os.PathLike[str], arguments: Sequence[str] | None = None) -> int:
    """Run the kit in `archive` with the arguments of the command line; returns the exit status.

    Error messages go to stderr; the status is 1 then, and 130 after an interruption.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    name = os.path.basename(os.fspath(archive))
    try:
        if given[:1] == [_BENCH]:
            return _bench(name, given[1:])
        return _profile(archive, name, given)
    except SurgeonError as error:
        print(f"\n{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted; the same command resumes from here", file=sys.stderr)
        return 130


def _profile(archive: str | os.PathLike[str], name: str, arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=f"python {name}",
        description="Measure what this CPU takes for a model's operators, and write the profile.",
        epilog=f"python {name} {_BENCH} base.onnx slim.onnx compares two files; see {_BENCH} --help.",
    )
    parser.add_argument("-o", "--output", default="profile.json", help="the profile; an existing one is resumed")
    _add_clock(parser)
    options = parser.parse_args(arguments)
    kit = read(archive)
    contents = f"points {len(kit.points)}, rules {len(kit.probes)}, models {len(kit.models)}"
    print(f"{kit.name}: {contents}", file=sys.stderr)
    profile = take(
        kit.points, kit.probes, models=kit.models, threads=options.threads, cpu_time=options.cpu_time,
        path=options.output, progress=_Progress(),
    )
    print(f"{options.output}: {profile}")
    return 0


def _bench(name: str, arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=f"python {name} {_BENCH}", description="Is slim.onnx faster than base.onnx on this CPU?"
    )
    parser.add_argument("base")
    parser.add_argument("slim")
    _add_clock(parser)
    parser.add_argument(
        "--shape", action="append", default=[], type=_shape, metavar="[INPUT=]8,3,224,224",
        help="the shape of an input, batch included, where the file leaves it free",
    )
    parser.add_argument("--seconds", type=_positive(float), default=5.0, help="how long to measure (default 5)")
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")
    parser.add_argument("-o", "--output", metavar="FILE", help="also write it as JSON, for surgeon.load_verdict")
    options = parser.parse_args(arguments)
    verdict = benchmark(
        options.base, options.slim, threads=options.threads, seconds=options.seconds, progress=_Progress(),
        cpu_time=options.cpu_time, feeds=feeds_at(options.base, dict(options.shape)),
    )
    if options.output:
        write_text(options.output, verdict.to_json() + "\n")
    print(verdict.to_json() if options.json else verdict)
    return 0


def _add_clock(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=_positive(int),
        help="threads inside an operator (default: as many as onnxruntime takes, one a physical core)",
    )
    parser.add_argument("--cpu-time", action="store_true", help="with several threads: CPU time, not that on the wall")


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """An input's name, if one is given, and its sizes."""
    name, _, sizes = text.rpartition("=")
    try:
        found = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no shape, such as 1,3,224,224 or INPUT=1,3,224,224")
    return name, found


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = kind.__name__  # argparse names it in its message
    return parse


class _Progress:
    """A line on stderr, redrawn on a terminal, else printed after every tenth of the work."""

    def __init__(self) -> None:
        self._start = self._drawn = time.monotonic()
        self._tenth = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        left = (now - self._start) / done * (total - done)
        text = f"measuring {done}/{total}, about {left:.0f} s left"
        if sys.stderr.isatty():
            if now - self._drawn > 0.2 or done == total:
                self._drawn = now
                print(f"\r\033[K{text}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif done * 10 // total > self._tenth:
            self._tenth = done * 10 // total
            print(text, file=sys.stderr, flush=True)
