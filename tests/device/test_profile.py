"""Profiles as values and as files, and how they come about."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from surgeon.device import take_profile as taking
from surgeon.device.layout_probes import Probe
from surgeon.device.microbenchmark import ROUNDS, Key, Point, Sample, Whole
from surgeon.device.profile import Profile
from surgeon.device.take_profile import take
from surgeon.errors import OutputError, ProfileError
from surgeon.support.arguments import cpus
from tests.device.tiny import pointwise_conv

SAMPLE = Sample(12.5, 0.02, True, 12, ends_blocked=True)
PROFILE = Profile(
    cpu="a CPU Ω",
    arch="arch",
    threads=2,
    runtime="1.0",
    block=16,
    rules={"dense": 4},
    samples={("conv", (3, 4)): SAMPLE, ("conv", ()): Sample(0.5, 0.0, False, 3), ("a", (7,)): SAMPLE},
    models={"f00": {"ms": 3.25, "predicted": 3.5}},
)
POINTS = [Point("conv", (width,), pointwise_conv(16, width)) for width in (16, 32, 48)]
PROBES = [Probe("block", {width: pointwise_conv(32, width) for width in (17, 33)}, "block")]


def test_round_trip(tmp_path: Path) -> None:
    PROFILE.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == PROFILE
    text = (tmp_path / "p.json").read_text(encoding="utf-8")
    assert json.loads(text)["format"] == "surgeon-profile"
    assert sum('"operator"' in line for line in text.splitlines()) == 3, "one sample a line"
    Profile.here().save(tmp_path / "empty.json")
    assert Profile.load(tmp_path / "empty.json") == Profile.here()


def change(**entries: Any) -> dict[str, Any]:
    head = {"format": "surgeon-profile", "version": 1, "cpu": "c", "arch": "a", "threads": 1, "runtime": "1"}
    return {**head, "block": 8, "rules": {}, "samples": [], "models": {}, **entries}


def sample(**entries: Any) -> dict[str, Any]:
    layout = {"blocked": True, "ends_blocked": True}
    entry = {"operator": "c", "widths": [1], "us": 1, "spread": 0.1, "rounds": 3, **layout, **entries}
    return change(samples=[{name: value for name, value in entry.items() if value is not None}])


MALFORMED = [
    ([], '"format" must be'),
    (change(format="surgeon-plan"), '"format" must be'),
    (change(version=3), "of version 3, this surgeon reads up to 2; update"),
    (change(clock="sundial"), "\"clock\" is 'sundial'; it is 'CPU time' or 'wall time'"),
    (change(spin=1), '"spin" must be bool'),
    (change(about={"f": 1}), 'about: "f" must be str'),
    (change(version=0), "version 0 does not exist"),
    (change(threads=True), '"threads" must be int, not bool'),
    (change(threads=0), "0 threads"),
    (change(cpu=None), '"cpu" must be str'),
    (change(rules={"dense": 1.5}), 'rules: "dense" must be int'),
    (change(models={"f": {"ms": "fast"}}), 'models: f: "ms" must be a number'),
    (change(models={"f": 3}), 'models: "f" must be dict'),
    (change(samples=[3]), r"samples\[0\]: an object is expected, not int"),
    (sample(widths=[1.0]), r'samples\[0\]: "widths" must hold only integers'),
    (sample(us=None), r'samples\[0\]: the entry "us" is missing'),
    (sample(us=-1), r'samples\[0\]: "us" must be a number of at least 0, not -1'),
    (sample(us=[1]), '"us" must be a number'),
    (sample(blocked=1), '"blocked" must be bool'),
]


@pytest.mark.parametrize("data, message", MALFORMED)
def test_malformed_files_say_where(data: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ProfileError, match=rf"p\.json: .*{message}"):
        Profile.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", json.dumps(change()).encode()[:-9], b"[" * 10**5])
def test_what_is_no_json_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(ProfileError, match="take the profile again"):
        Profile.load(tmp_path / "p.json")
    with pytest.raises(ProfileError, match="can't be read"):
        Profile.load(tmp_path / "nowhere.json")


def test_merge() -> None:
    more, less = Sample(1.0, 0.0, True, 24), Sample(9.0, 0.0, True, 3)
    other = dataclasses.replace(
        PROFILE,
        rules={"direct": 15},
        samples={("conv", (3, 4)): less, ("a", (7,)): more, ("new", (1,)): less},
        models={"f01": {"ms": 1.0}},
        about={"f01": "a net at 8×3"},
    )
    merged = PROFILE.merge(other)
    assert merged.rules == {"dense": 4, "direct": 15}
    assert merged.models.keys() == {"f00", "f01"} and merged.about == {"f01": "a net at 8×3"}
    expected = {("conv", (3, 4)): SAMPLE, ("conv", ()): PROFILE.samples["conv", ()], ("a", (7,)): more}
    assert merged.samples == {**expected, ("new", (1,)): less}


OTHERS = [("cpu", "b"), ("arch", "b"), ("threads", 4), ("runtime", "2.0"), ("clock", "wall time")]


@pytest.mark.parametrize("field, value", OTHERS)
def test_only_profiles_taken_alike_are_merged(field: str, value: object) -> None:
    other = dataclasses.replace(PROFILE, **{field: value})  # type: ignore[arg-type]
    with pytest.raises(ProfileError, match=f"{getattr(PROFILE, field)} against {value}"):
        PROFILE.merge(other)


def test_warnings() -> None:
    here = dataclasses.replace(Profile.here(), threads=3)
    assert here.warnings_here() == []
    (warning,) = here.warnings_here(threads=1)
    assert "threads 3, this is 1" in warning
    (warning,) = dataclasses.replace(here, runtime="0.1").warnings_here()
    assert "onnxruntime 0.1" in warning
    assert len(dataclasses.replace(here, cpu="x", runtime="0.1").warnings_here()) == 2


def test_a_profile_is_taken_and_joined(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    seen: list[tuple[int, int]] = []
    model = Whole(pointwise_conv(32, 32, size=8), about="a net")
    first = take(
        POINTS[:2], PROBES, models={"f00": model}, path=path, progress=lambda done, all_: seen.append((done, all_))
    )
    assert Profile.load(path).samples.keys() == first.samples.keys() == {point.key for point in POINTS[:2]}
    assert first.block == first.rules["block"] and first.models["f00"]["ms"] > 0
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)
    second = take(POINTS, models={"f00": model}, path=path)
    assert second.samples.keys() == {point.key for point in POINTS}
    assert second.models == Profile.load(path).models and second.rules == first.rules
    assert second.about == {"f00": "a net"} and second.answers == "a net" and PROFILE.answers.startswith("models that")
    before = Profile.load(path)
    assert take(POINTS, PROBES, models={"f00": model}, known=before) == before


@pytest.mark.skipif(cpus() < 2, reason="this machine has one CPU")
def test_with_several_threads_it_says_by_which_clock(tmp_path: Path) -> None:
    waking = dataclasses.replace(POINTS[1], threaded=True)
    on_wall = take([POINTS[0], waking], threads=2, path=tmp_path / "wall.json")
    assert (on_wall.threads, on_wall.clock, on_wall.spin) == (2, "wall time", True)
    assert "2 threads, wall time" in str(on_wall) and Profile.load(tmp_path / "wall.json").timed == on_wall.timed
    assert on_wall.samples.keys() == {POINTS[0].key, waking.key}
    with pytest.raises(ProfileError, match=r"wall\.json can't be resumed: .*clock CPU time against wall time"):
        take(POINTS, threads=2, cpu_time=True, path=tmp_path / "wall.json")
    one = take([POINTS[0], waking], threads=1)
    assert (one.clock, one.spin) == ("CPU time", False) and one.samples.keys() == {POINTS[0].key}


def test_earlier_files_hold_cpu_time(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(change(threads=4)))
    found = Profile.load(tmp_path / "p.json")
    assert (found.threads, found.clock, found.spin) == (4, "CPU time", False)


def test_an_interrupted_profile_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "p.json"

    def interrupt(done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    models = {"f00": Whole(pointwise_conv(32, 32))}
    with pytest.raises(KeyboardInterrupt):
        take(POINTS, PROBES, models=models, path=path, progress=interrupt)
    partial = Profile.load(path)
    assert partial.rules.keys() == {"block"} and partial.models == {}
    assert ("model f00", ()) in partial.samples and sum(s.rounds for s in partial.samples.values()) == 15
    done: list[int] = []
    profile = take(POINTS, PROBES, models=models, path=path, progress=lambda now, total: done.append(total))
    assert done[0] == 1 + 11  # the probe, and 4 turns each for 4 graphs, of which 5 were taken
    assert profile.samples.keys() == {point.key for point in POINTS} and profile.models["f00"]["ms"] > 0
    assert all(sample.rounds >= ROUNDS for sample in profile.samples.values())


def test_nothing_is_measured_if_it_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> dict[Key, Sample]:
        raise AssertionError("measured")

    monkeypatch.setattr(taking, "measure_all", never)
    with pytest.raises(OutputError, match="missing"):
        take(POINTS, path=tmp_path / "missing" / "p.json")
    PROFILE.save(tmp_path / "p.json")
    with pytest.raises(ProfileError, match=r"p\.json can't be resumed: .*remove it or name another"):
        take(POINTS, path=tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == PROFILE
