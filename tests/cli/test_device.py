"""The commands about the device, as a user types them."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import surgeon
from surgeon.pipeline import latency_target as clock
from tests.cli.commands import call, good

NETS = '''
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 48, 3), nn.ReLU(), nn.Flatten(), nn.Linear(768, 4)
    )
    return net, torch.randn(2, 3, 8, 8)
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's network, and its profile, once for all tests of this file."""
    folder = tmp_path_factory.mktemp("device")
    (folder / "nets_here.py").write_text(NETS)
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def test_a_profile_is_taken_and_resumed_and_shrink_uses_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_SECONDS", 0.2)
    first = good("profile", "nets_here:small", "--threads", 1, "-o", "here.json")
    assert re.search(r"1 thread, CPU time, .* points \d+, .* models 1\nit answers for Sequential at 1×3×8×8$", first)
    samples = json.loads((here / "here.json").read_text())["samples"]
    good("profile", "nets_here:small", "--threads", 1, "-o", "here.json")
    assert json.loads((here / "here.json").read_text())["samples"] == samples
    text = good(
        "shrink", "nets_here:small", "--budget", "latency", "--ratio", 0.3, "--device", "here.json", "--no-bench",
        "-o", "out",
    )
    assert "latency removed" in text and "measured" in text
    report = json.loads((here / "out" / "report.json").read_text())
    assert (report["latency"]["threads"], report["latency"]["clock"]) == (1, "CPU time")
    assert report["latency"]["measured"] > 0


def test_a_profile_of_a_batch_answers_for_it(here: Path) -> None:
    text = good(
        "profile", "nets_here:small", "--threads", 1, "--shapes", "4,3,8,8:3", "--shapes", "1,3,8,8", "-o", "four.json",
        "--json",
    )
    assert json.loads(text)["answers"] == ["Sequential at 4×3×8×8", "Sequential at 1×3×8×8"]
    assert len(json.loads((here / "four.json").read_text())["models"]) == 2


def test_a_kit_runs_without_torch(here: Path) -> None:
    assert "kit.pyz" in good("kit", "nets_here:small", "-o", "kit.pyz")
    block = "import sys; sys.modules.update(torch=None, onnx=None, rich=None, typer=None); "
    run = "import runpy; sys.argv = ['kit.pyz', '-o', 'there.json']; runpy.run_path('kit.pyz', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", block + run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    there = json.loads((here / "there.json").read_text())
    assert there["format"] == "surgeon-profile"
    assert len(there["models"]) == 1


def test_a_kit_runs_on_a_host_and_its_profile_comes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = here / "bin" / "ssh"  # stands for a host that is this machine; tests/deploy/test_over_ssh.py has a server
    ssh.parent.mkdir()
    ssh.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nexec sh -c "$3"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}{os.pathsep}{os.environ['PATH']}")
    text = good(
        "kit", "nets_here:small", "--ssh", "pi@device", "--remote-python", sys.executable, "--threads", 1,
        "-o", "pi.json", "--json",
    )
    assert json.loads(text)["format"] == "surgeon-profiled"
    assert surgeon.Profile.load("pi.json").models
    assert sorted(path.name for path in here.glob("*.pyz")) in ([], ["kit.pyz"])


def test_int8_is_kept_or_not_but_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surgeon, "quantize", functools.partial(surgeon.quantize, seconds=0.3))
    good("shrink", "nets_here:small", "--ratio", 0.2, "--no-bench", "-o", "cut")
    np.save("rows.npy", np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32))
    text = good("quantize", "cut/slim.onnx", "--calibration", "rows.npy", "-o", "int8.onnx")
    assert json.loads(Path("int8.report.json").read_text())["path"] == "int8.onnx"
    assert "int8.onnx" in text
    assert (here / "int8.onnx").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("quantize", "no.onnx"), "no.onnx"),
        (("quantize", "no.onnx", "--calibration", "nets_here.py"), "names no inputs"),
        (("report", "."), "report.json"),
        (("kit", "nets_here:small", "-o", "kit.zip"), ".pyz"),
        (("kit", "nets_here:small", "-o", "kit.pyz", "--threads", "1"), "go with --ssh"),
        (("kit", "nets_here:small", "-o", "kit.json", "--ssh=-oProxyCommand=x"), "give a name that ssh knows"),
        (("kit", "nets_here:small", "-o", "kit.pyz", "--ssh", "pi"), "-o kit.pyz: this is where the profile goes"),
        (("profile", "nets_here:small", "-o", "nets_here.py"), "nets_here.py"),
        (("profile", "nets_here:small", "--shapes", "1,3,8,8:much", "-o", "x"), "'much' is no weight"),
        (("profile", "nets_here:small", "--shapes", "3,8,8", "-o", "x"), "--shapes: 3×8×8 has 3 axes"),
        (("shrink", "nets_here:small", "-o", "x"), "--latency-ms"),
        (("shrink", "nets_here:small", "--ratio", "0.5", "--device", "no.json", "-o", "x"), "for a latency"),
        (("shrink", "nets_here:small", "--latency-ms", "1", "--device", "no.json", "-o", "x"), "no.json"),
    ],
)
def test_a_mistake_ends_in_one_message(arguments: tuple[str, ...], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr
