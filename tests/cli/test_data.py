"""Unlabeled inputs on the command line: where they come from, what is made of them, and what is refused."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from surgeon.cli import data as batches
from surgeon.errors import InvalidArgument
from surgeon.frontend import parameters
from tests.cli.commands import call

NETS = '''
import torch
from torch import nn
from torch.utils.data import DataLoader

torch.manual_seed(0)
ready = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 4))

normed = nn.Sequential(nn.Linear(5, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 32)
        self.b = nn.Linear(32, 4)

    def forward(self, x, y):
        return self.b(torch.relu(self.a(x + y)))

class Within:
    loader = DataLoader(torch.randn(64, 5), batch_size=16)

def load():
    return DataLoader(torch.randn(64, 5), batch_size=16)

def broken():
    raise RuntimeError("no disk")

number = 3
'''


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a user's networks and inputs, as the current one."""
    (tmp_path / "own_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).standard_normal((100, 5)).astype(np.float32)
    np.save("rows.npy", rows)
    np.save("wrong.npy", rows[:, :4])
    np.save("nan.npy", np.where(rows > 2, np.nan, rows))
    np.save("none.npy", rows[:0])
    np.save("objects.npy", np.array([{}, {}]), allow_pickle=True)
    np.savez("rows.npz", rows)
    np.savez("both.npz", x=rows, y=rows)
    np.savez("uneven.npz", x=rows, y=rows[:3])
    save_file({"x": rows, "y": rows}, "both.safetensors")
    os.makedirs("several")
    os.makedirs("pictures")
    os.makedirs("texts")
    np.save("several/b.npy", rows[:40])
    np.save("several/a.npy", rows[40:])
    Path("pictures/cat.png").write_bytes(b"no array")
    Path("cut.npy").write_bytes(Path("rows.npy").read_bytes()[:300])
    yield tmp_path
    sys.modules.pop("own_nets", None)


def read(spec: str) -> Any:
    """The batches that `--data` names."""
    return parameters.data("data", batches.read(spec))


def shrunk(spec: str, data: str, *options: object) -> dict[str, object]:
    """The report of a network that was shrunk with data."""
    result = call("shrink", spec, "--ratio", 0.5, "--align", 1, "--no-bench", "-o", "out", "--data", data, *options)
    assert result.exit_code == 0, result.output
    return json.loads(Path("out/report.json").read_text())


SOURCES = [
    ("rows.npy", 100), ("rows.npz", 100), ("several", 100), ("own_nets:load", 64), ("own_nets:Within.loader", 64),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "samples"), SOURCES)
def test_sources(spec: str, samples: int) -> None:
    assert sum(len(batch) for batch in read(spec)) == samples


def test_data_guide_the_cut() -> None:
    recovery = shrunk("own_nets:ready", "rows.npy")["recovery"]
    assert isinstance(recovery, dict)
    assert recovery["samples"] == 100
    assert recovery["after"] < recovery["before"]
    assert json.loads(Path("out/plan.json").read_text())["settings"]["importance"] == "reconstruction"


def test_several_inputs_go_by_name() -> None:
    report = shrunk("own_nets:Two", "both.npz", "--shape", "2,5", "--shape", "2,5", "--samples", 50)
    assert isinstance(report["recovery"], dict)
    arrays, tensors = (next(iter(read(f"both.{suffix}"))) for suffix in ("npz", "safetensors"))
    assert all(np.array_equal(arrays[name], tensors[name]) for name in ("x", "y"))
    assert report["recovery"]["samples"] == 50


def test_inputs_made_from_the_model_alone() -> None:
    recovery = shrunk("own_nets:normed", "synthetic", "--samples", 32)["recovery"]
    assert isinstance(recovery, dict)
    assert recovery["samples"] == 32


def test_without_compensation_there_is_no_recovery() -> None:
    assert shrunk("own_nets:ready", "rows.npy", "--no-compensate")["recovery"] is None


def test_recover_fits_what_apply_wrote() -> None:
    net = "own_nets:ready"
    call("shrink", net, "--ratio", 0.5, "--align", 1, "--no-bench", "-o", "out")
    result = call("recover", net, "out", "--data", "rows.npy", "-o", "better")
    assert result.exit_code == 0, result.output
    match = re.search(r"deviate by ([\d.]+) instead of ([\d.]+)", result.stdout)
    assert match is not None
    assert float(match[1]) < float(match[2])
    assert Path("better/plan.json").read_bytes() == Path("out/plan.json").read_bytes()
    assert Path("better/weights.safetensors").read_bytes() != Path("out/weights.safetensors").read_bytes()
    assert sorted(os.listdir("better")) == [
        "model.json", "plan.json", "report.json", "slim.onnx", "weights.safetensors",
    ]  # fmt: skip
    assert call("recover", net, "out", "-o", "again").exit_code == 2  # data are needed


# the data, what the message says
REFUSED = [
    ("nothing", "'nothing' names no inputs; give FILE.npy"),
    ("own_nets.py", "'own_nets.py' names no inputs; give FILE.npy"),
    ("missing.npy", "missing.npy can't be read: .*No such file"),
    ("cut.npy", "cut.npy can't be read"),
    ("objects.npy", "objects.npy can't be read: .*Python objects"),
    ("none.npy", "none.npy holds no rows"),
    ("uneven.npz", r"arrays of different lengths: x \(100, 5\), y \(3, 5\)"),
    ("pictures", "pictures holds pictures, and the model takes inputs of shape .*package.module:loader"),
    ("texts", "texts holds no .npy, .npz, .safetensors file, and no picture. Texts and sounds"),
    ("wrong.npy", r"has shape \(32, 4\); expected \(batch, 5\)"),
    ("nan.npy", "holds NaN or infinity"),
    ("own_nets:broken", "own_nets:broken could not be called: RuntimeError: no disk"),
    ("own_nets:lod", "own_nets:lod does not exist"),
    ("own_nets:number", "data is a int; give a tensor of samples"),
    ("nowhere:load", "nowhere can't be imported"),
]


@pytest.mark.parametrize(("data", "message"), REFUSED)
def test_what_is_no_data_is_told(data: str, message: str) -> None:
    result = call("shrink", "own_nets:ready", "--ratio", 0.5, "--no-bench", "-o", "out", "--data", data)
    assert result.exit_code == 1
    assert result.stderr.startswith("surgeon: ")
    assert re.search(message, result.stderr), result.stderr
    assert not Path("out").exists()


def test_files_are_read_in_order_and_in_batches() -> None:
    found = list(read("several"))
    assert [len(batch) for batch in found] == [32, 28, 32, 8]
    rows = np.load("rows.npy")
    assert np.array_equal(np.concatenate(found), np.concatenate([rows[40:], rows[:40]]))


def test_an_array_of_one_number_holds_no_rows() -> None:
    np.save("one.npy", np.float32(1.0))
    with pytest.raises(InvalidArgument, match="holds no rows"):
        read("one.npy")
    assert torch.is_tensor(next(iter(read("own_nets:load"))))
