"""The kit in an environment of its own, with only numpy and onnxruntime; and what its profile leads to."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import surgeon
from benchmarks.latency_subject import Subject
from surgeon.device.profile import Profile

NEEDED = ("numpy", "onnxruntime")
LEFT = 0.5

Row = dict[str, Any]


def kit(subject: Subject) -> Row:
    """A profile from the kit and two from here: how alike are the plans that they lead to?

    `same` is the share of groups that get the same width by the kit's profile as by the one from here, `control` that
    by two profiles from here: what is measured twice is never quite the same. `plans_same` is the same of two whole
    runs of `surgeon.plan`, which measure and correct. `off` is the largest relative difference in milliseconds that
    the kit's profile and the one from here predict for the model and for either plan.
    """
    with tempfile.TemporaryDirectory() as folder:
        python, installed, packages = _environment(Path(folder))
        archive, written = subject.files / f"{subject.name}.pyz", subject.files / f"{subject.name}.kit.json"
        written.unlink(missing_ok=True)  # the kit would resume it
        surgeon.kit(subject.model, archive, subject.inputs)
        start = time.perf_counter()
        threads = ("--threads", str(subject.threads))
        _run(python, str(archive), "-o", str(written), *threads)
        taken = time.perf_counter() - start
        _run(python, str(archive), "bench", str(subject.base), str(subject.base), "--seconds", "1", "--json", *threads)
    profiles = {"kit": Profile.load(written)}
    for name in ("here", "again"):
        subject.take_profile()
        profiles[name] = subject.profile
    models = {name: subject.latency(profile) for name, profile in profiles.items()}
    widths = {name: subject.at_ms(LEFT * latency.ms({}), latency) for name, latency in models.items()}
    both = [
        (models["kit"].ms(at) / models["kit"].ms({}), models["here"].ms(at) / models["here"].ms({}))
        for at in (widths["kit"], widths["here"])
    ]
    plans = [
        surgeon.plan(
            subject.model, LEFT, example_inputs=subject.inputs, budget="latency", device=profiles[name],
            importance="magnitude",
        )
        for name in ("kit", "here")
    ]
    kept = [plan.keep(subject.groups) for plan in plans]
    made = [{leaf: len(keep.get(leaf, range(size))) for leaf, size in subject.cost.sizes.items()} for keep in kept]
    ms = [models[name].ms({}) for name in ("kit", "here")]
    return {
        "ratio": _same(widths["kit"], widths["here"]), "same": _same(widths["kit"], widths["here"]),
        "control": _same(widths["here"], widths["again"]), "plans_same": _same(*made),
        "units": [sum(widths[name].values()) for name in ("kit", "here", "again")],
        "off": max(abs(one / other - 1) for one, other in both), "ms": ms, "off_ms": ms[0] / ms[1] - 1,
        "macs": [subject.cost.macs(widths[name]) / subject.macs for name in ("kit", "here", "again")],
        "seconds": taken, "install_seconds": installed, "packages": packages,
        "warnings": profiles["kit"].warnings_here(subject.threads), "kilobytes": archive.stat().st_size // 1024,
    }


def _environment(folder: Path) -> tuple[Path, float, list[str]]:
    """A fresh environment's Python, the seconds to make it, and all that is installed there; torch is not."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    python = folder / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in NEEDED]
    _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted)
    packages = _run(python, "-m", "pip", "list", "--format", "freeze", "--disable-pip-version-check").split()
    named = {package.partition("==")[0] for package in packages}
    assert not named & {"torch", "onnx", "surgeon"}, named
    return python, time.perf_counter() - start, packages


def _run(python: Path, *arguments: str) -> str:
    """What it prints; in a folder and a mode that see nothing of the packages here."""
    command = [str(python), *(("-I", *arguments) if arguments[0] != "-m" else arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=python.parent)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _same(one: dict[int, int], other: dict[int, int]) -> float:
    return sum(width == other[leaf] for leaf, width in one.items()) / len(one)
