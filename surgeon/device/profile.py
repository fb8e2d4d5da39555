"""The device profile: how long a CPU takes for a model's operators. It is saved as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from typing import Any, Final

import onnxruntime as ort

from surgeon.device.clock import CLOCKS, CPU_TIME, Clock
from surgeon.device.cpu import cpu_name
from surgeon.device.microbenchmark import Key, Sample
from surgeon.errors import ProfileError
from surgeon.support import arguments
from surgeon.support.arguments import COMMON, NATURAL, OBJECT, POSITIVE, checked, choice, flag, instance, mapping, text
from surgeon.support.documents import Document
from surgeon.support.files import write_text

FORMAT: Final = "surgeon-profile"
VERSION: Final = 2

_LARGEST: Final = 1 << 48
_DOCUMENT = Document("profile", FORMAT, VERSION, ProfileError, "take the profile again")
_TAKEN = {
    **COMMON, **dict.fromkeys(("cpu", "arch", "runtime"), text), "block": NATURAL, "cpus": NATURAL,
    **{name: mapping(f"a mapping, as {name} of a profile are") for name in ("rules", "samples", "models", "about")},
    "threads": POSITIVE, "other": OBJECT, "clock": choice(*CLOCKS), "spin": flag,
}


@checked(_TAKEN)
@dataclasses.dataclass(frozen=True)
class Profile:
    """Measurements of one CPU, with `threads` threads, by one clock and one version of onnxruntime.

    - `cpu`, `arch`: the CPU's name and architecture, as the system gives them.
    - `threads`: the number of onnxruntime's threads.
    - `runtime`: the version of onnxruntime.
    - `block`: the channels in a block of the NCHWc layout; 0 if onnxruntime doesn't have it on this CPU.
    - `rules`: the answers of the probes, by their names: see `surgeon.device.layout_probes.Probe`.
    - `samples`: what operators cost at given widths, in microseconds, by (operator, widths).
    - `models`: whole models by their fingerprints, with numbers such as `ms`, the measured latency in milliseconds.
    - `cpus`: how many CPUs the machine has, as a limit on threads; 0 if that is not known.
    - `about`: what whole models it was taken for, by their fingerprints: a name, and the shapes of the inputs.
    - `clock`: what the times are: "CPU time" of one thread, or of all, or "wall time". `spin` says whether threads
      that waited for one another span meanwhile, as onnxruntime has it by default.

    Raises:
        InvalidArgument: an argument is of another type, or out of range.

    >>> import tempfile
    >>> taken = Profile("Cortex-A76", "aarch64", threads=1, runtime="1.32.0")
    >>> print(taken)
    Cortex-A76 (aarch64), 1 thread, CPU time, onnxruntime 1.32.0: points 0, rules 0, models 0
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     taken.save(f"{folder}/a76.json")
    ...     Profile.load(f"{folder}/a76.json").merge(taken) == taken
    True
    >>> str(taken.timed), taken.answers
    ('1 thread, CPU time', 'models that it does not name')
    >>> len(taken.warnings_here()) > 0                         # this CPU is another one
    True
    """

    cpu: str
    arch: str
    threads: int
    runtime: str
    block: int = 0
    rules: Mapping[str, int] = dataclasses.field(default_factory=dict)
    samples: Mapping[Key, Sample] = dataclasses.field(default_factory=dict)
    models: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    cpus: int = 0
    clock: str = CPU_TIME
    spin: bool = False
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def here(cls, threads: int | None = None, cpu_time: bool = False) -> Profile:
        """An empty profile of this CPU.

        Args:
            threads: the number of onnxruntime's threads, by default as many as it takes by itself.
            cpu_time: with several threads, of their CPU time, and not of the time on the wall.

        Raises:
            InvalidArgument: this process has fewer CPUs than threads.

        >>> Profile.here().samples
        {}
        """
        clock = Clock.of(threads, cpu_time)
        return cls(
            cpu_name(), platform.machine(), clock.threads, ort.__version__, cpus=arguments.cpus(), clock=clock.name,
            spin=clock.spin,
        )

    @property
    def answers(self) -> str:
        """What it can tell the latency of, any widths of these models at these shapes, as text for messages."""
        return "; ".join(dict.fromkeys(self.about.values())) or "models that it does not name"

    @property
    def timed(self) -> Clock:
        """The clock of its times, with their number of threads."""
        return Clock(self.threads, self.clock != CPU_TIME)

    def __str__(self) -> str:
        return (
            f"{self.cpu} ({self.arch}), {self.timed}, onnxruntime {self.runtime}: "
            f"points {len(self.samples)}, rules {len(self.rules)}, models {len(self.models)}"
        )

    def merge(self, other: Profile) -> Profile:
        """Both profiles in one. Of a point in both, the sample with more rounds is taken, of equals `other`'s.

        Raises:
            InvalidArgument: `other` is not a profile.
            ProfileError: they are of different CPUs, thread counts, clocks or versions of onnxruntime.
        """
        PROFILE("other", other)
        differences = [f"{name} {mine} against {theirs}" for name, mine, theirs in _differences(self, other)]
        if differences:
            raise ProfileError(f"profiles can only be merged if taken alike; these differ in {', '.join(differences)}")
        samples = dict(self.samples)
        for key, sample in other.samples.items():
            if key not in samples or sample.rounds >= samples[key].rounds:
                samples[key] = sample
        return dataclasses.replace(
            self,
            block=other.block or self.block,
            rules={**self.rules, **other.rules},
            samples=samples,
            models={**self.models, **other.models},
            about={**self.about, **other.about},
            cpus=other.cpus or self.cpus,
        )

    def warnings_here(self, threads: int | None = None) -> list[str]:
        """Why this profile may be wrong for this CPU, and for this number of `threads` where it is given.

        Raises:
            InvalidArgument: `threads` is out of range.
        """
        here = dataclasses.replace(
            Profile.here(1), threads=self.threads if threads is None else threads, clock=self.clock, spin=self.spin
        )
        return [
            f"the profile was taken with {name} {mine}, this is {theirs}: its milliseconds may be wrong here; "
            "take a profile where the model will run"
            for name, mine, theirs in _differences(self, here)
        ]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile to `path` as JSON, atomically. The format is described in docs/profile-format.md.

        Raises:
            InvalidArgument: `path` is not a path.
            OutputError: the file can't be written.
        """
        head = {"format": FORMAT, "version": VERSION}
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data["rules"], data["models"] = dict(self.rules), {name: dict(row) for name, row in self.models.items()}
        data["about"] = dict(self.about)
        data["samples"] = [
            {
                "operator": operator,
                "widths": list(widths),
                "us": round(sample.us, 4),
                "spread": round(sample.spread, 4),
                "blocked": sample.blocked,
                "ends_blocked": sample.ends_blocked,
                "rounds": sample.rounds,
            }
            for (operator, widths), sample in sorted(self.samples.items())
        ]
        lines = [f"  {json.dumps(name)}: {_lines(value)}" for name, value in {**head, **data}.items()]
        write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a profile that `save` wrote to `path`.

        Raises:
            InvalidArgument: `path` is not a path.
            ProfileError: the file is missing, not a profile, of a newer version or malformed.
        """
        return _DOCUMENT.read(path, _parse)


PROFILE: Final = instance(Profile, "a surgeon.Profile", "surgeon.Profile.load reads a file")


def _differences(one: Profile, other: Profile) -> Iterator[tuple[str, object, object]]:
    names = {
        "cpu": "CPU", "arch": "architecture", "threads": "threads", "clock": "clock", "spin": "spinning",
        "runtime": "onnxruntime",
    }
    for field, name in names.items():
        mine, theirs = getattr(one, field), getattr(other, field)
        if mine != theirs:
            yield name, mine, theirs


def _lines(value: object) -> str:
    """JSON with one sample per line, so that profiles can be compared line by line."""
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"    {json.dumps(item, ensure_ascii=False)}" for item in value) + "\n  ]"
    return json.dumps(value, ensure_ascii=False)


def _parse(data: dict[str, Any]) -> Profile:
    rules = _DOCUMENT.entry(data, "rules", dict)
    for name in rules:
        _DOCUMENT.entry(rules, name, int, "rules: ")
    models = _DOCUMENT.entry(data, "models", dict)
    for name in models:
        place = f"models: {name}: "
        row = _DOCUMENT.entry(models, name, dict, "models: ")
        models[name] = {number: _number(row, number, place) for number in row}
    samples: dict[Key, Sample] = {}
    for index, entry in enumerate(_DOCUMENT.entry(data, "samples", list)):
        place = f"samples[{index}]: "
        if not isinstance(entry, dict):
            raise ProfileError(f"{place}an object is expected, not {type(entry).__name__}")
        widths = _DOCUMENT.entry(entry, "widths", list, place)
        if not all(type(width) is int and abs(width) < _LARGEST for width in widths):
            raise ProfileError(f'{place}"widths" must hold only integers, of at most 48 bits')
        samples[_DOCUMENT.entry(entry, "operator", str, place), tuple(widths)] = Sample(
            us=_number(entry, "us", place),
            spread=_number(entry, "spread", place),
            blocked=_DOCUMENT.entry(entry, "blocked", bool, place),
            rounds=_DOCUMENT.entry(entry, "rounds", int, place),
            ends_blocked=_DOCUMENT.entry(entry, "ends_blocked", bool, place),
        )
    threads, block = _DOCUMENT.entry(data, "threads", int), _DOCUMENT.entry(data, "block", int)
    cpus = _DOCUMENT.entry(data, "cpus", int) if "cpus" in data else 0
    if threads < 1 or min(block, cpus) < 0 or max(threads, block, cpus) >= _LARGEST:
        raise ProfileError(f"{threads} threads, {cpus} CPUs and blocks of {block} channels are out of range")
    cpu, arch, runtime = (_DOCUMENT.entry(data, name, str) for name in ("cpu", "arch", "runtime"))
    # Before there was a choice, it was CPU time, without spinning.
    clock = _DOCUMENT.entry(data, "clock", str) if "clock" in data else CPU_TIME
    spin = _DOCUMENT.entry(data, "spin", bool) if "spin" in data else False
    if clock not in CLOCKS:
        raise ProfileError(f'"clock" is {clock!r}; it is {" or ".join(map(repr, CLOCKS))}')
    about = _DOCUMENT.entry(data, "about", dict) if "about" in data else {}
    for name in about:
        _DOCUMENT.entry(about, name, str, "about: ")
    return Profile(cpu, arch, threads, runtime, block, rules, samples, models, cpus, clock, spin, about)


def _number(data: Mapping[str, Any], name: str, place: str) -> float:
    value = data[name] if name in data else _DOCUMENT.entry(data, name, float, place)
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise ProfileError(f'{place}"{name}" must be a number of at least 0, not {value!r}')
    return float(value)
