"""Taking a device profile: measures probes and points on this CPU; it can be interrupted and resumed."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from surgeon.device.clock import Clock
from surgeon.device.layout_probes import Probe, answer
from surgeon.device.microbenchmark import Key, Point, Sample, Whole, count_turns, measure_all, whole_point
from surgeon.device.profile import Profile
from surgeon.errors import ProfileError

SAVE_SECONDS = 2.0
"""The time between saves: the most that is lost if the process is killed."""

_MODEL = "model "  # prefix of the operator of a whole model's sample while the profile is taken

Progress = Callable[[int, int], None]


def take(
    points: Sequence[Point],
    probes: Sequence[Probe] = (),
    *,
    models: Mapping[str, Whole] | None = None,
    threads: int | None = None,
    cpu_time: bool = False,
    path: str | os.PathLike[str] | None = None,
    known: Profile | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Profile:
    """The profile of this CPU: the answers to the probes and the samples of the points.

    `threads` are onnxruntime's, by default as many as it takes by itself; times are by the clock for so many, or with
    `cpu_time` the CPU time of all of them: see `surgeon.device.clock.Clock`. `models` are whole models, by their
    fingerprints; they are timed between the points, and their milliseconds are `Profile.models[fingerprint]["ms"]`.
    With `path` the profile is written there, also while it is taken. What a profile at `path`, or `known`, already
    holds isn't measured again: an interrupted profile is resumed, and the profile of a second model is added to the
    first's. `progress` is called with how much is done and how much there is to do.

    Raises `ProfileError` if the profile at `path` is malformed or of another CPU, thread count, clock or version
    of onnxruntime, `OutputError` if `path` can't be written, and what `measure_all` and `answer` raise.
    """
    clock = Clock.of(threads, cpu_time)
    profile = _before(Profile.here(clock.threads, cpu_time), path, known)
    if path is not None:
        profile.save(path)  # to fail early if it can't be written
    about = {mark: each.about for mark, each in (models or {}).items() if each.about}
    profile = dataclasses.replace(profile, about={**profile.about, **about})
    whole = {
        (_MODEL + mark, ()): dataclasses.replace(whole_point(_MODEL + mark, (), each.model), inputs=each.inputs)
        for mark, each in (models or {}).items()
        if each.model and "ms" not in profile.models.get(mark, {})
    }
    points = [*(point for point in points if clock.threads > 1 or not point.threaded), *whole.values()]
    rules, block, saved = dict(profile.rules), profile.block, time.monotonic()
    samples: dict[Key, Sample] = dict(profile.samples)
    turns = count_turns(points, samples)
    finished = len(probes)

    def current() -> Profile:
        return dataclasses.replace(profile, rules=dict(rules), block=block, samples=dict(samples))

    def on_sample(key: Key, sample: Sample, done: int, total: int) -> None:
        nonlocal saved, finished
        samples[key], finished = sample, len(probes) + done
        if progress is not None:
            progress(finished, len(probes) + total)
        if path is not None and time.monotonic() - saved > SAVE_SECONDS:
            current().save(path)
            saved = time.monotonic()

    try:
        for index, probe in enumerate(probes):
            if probe.name not in rules:
                rules[probe.name] = answer(probe, clock.threads)
            if probe.question == "block":
                block = rules[probe.name]
            if progress is not None:
                progress(index + 1, len(probes) + turns)
        samples |= measure_all(points, clock, known=profile.samples, on_sample=on_sample, seed=seed)
        if progress is not None:
            progress(finished, finished)  # points that scattered may have needed fewer turns than were counted
        rows = {name: dict(row) for name, row in profile.models.items()}
        for key in whole:
            fingerprint = key[0].removeprefix(_MODEL)
            rows[fingerprint] = {**rows.get(fingerprint, {}), "ms": samples.pop(key).us / 1e3}
        profile = dataclasses.replace(profile, models=rows)
    finally:
        if path is not None:
            current().save(path)
    return current()


def _before(here: Profile, path: str | os.PathLike[str] | None, known: Profile | None) -> Profile:
    """The profile that measuring starts from."""
    profile = here if known is None else here.merge(known)
    if path is None or not Path(path).exists():
        return profile
    try:
        return profile.merge(Profile.load(path))
    except ProfileError as error:
        raise ProfileError(f"{path} can't be resumed: {error}; remove it or name another file") from error
