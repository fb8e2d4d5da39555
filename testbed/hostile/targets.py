"""Good files of every format, and how each is read: what hostile files are made from, and what they are given to."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save
from torch import nn

import surgeon
from surgeon.device.onnx_protobuf import read as read_graph
from surgeon.device.ort_session import ORT_ERRORS, make_feeds, open_session
from surgeon.errors import BenchmarkError
from surgeon.frontend import model_loading as sources
from surgeon.frontend.data_files import DataFiles
from surgeon.plans.plan import Plan
from surgeon.reporting import page
from surgeon.study.runs import Run
from surgeon.study.store import store
from surgeon.training import checkpoint
from testbed.onnx_graphs import branching, convolutional, gathered, of_integers, rounded, strided


class Net(nn.Module):
    """A layer, a buffer and an output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 6)
        self.last = nn.Linear(6, 2)
        self.register_buffer("scale", torch.ones(6))
        self.constant = torch.arange(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu() * self.scale) + self.constant


@dataclass(frozen=True)
class Target:
    """A good file (`name`, `content`, and others beside it) and what reads it, given its path."""

    name: str
    content: bytes
    read: Callable[[Path], Any]
    beside: Mapping[str, bytes]


def _written(write: Callable[[Path], Any], name: str) -> dict[str, bytes]:
    """All that `write` leaves in a folder, by relative path; `name` is the file to write, if it takes one."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name if name else Path(folder))
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@cache
def program() -> bytes:
    """A program with a symbolic batch."""
    batch = torch.export.Dim("batch", min=2, max=64)
    made = torch.export.export(Net().eval(), (torch.randn(3, 4),), dynamic_shapes=({0: batch},), strict=False)
    return _written(lambda path: torch.export.save(made, path), "good.pt2")["good.pt2"]


@cache
def network() -> bytes:
    """An ONNX file: a product, a sum and an activation."""
    weights = [
        numpy_helper.from_array(np.ones((4, 6), np.float32), "weight"),
        numpy_helper.from_array(np.zeros(6, np.float32), "bias"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", 4), ("y", 6))]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


@cache
def _saved() -> dict[str, bytes]:
    slim = surgeon.shrink(Net().eval(), 0.5, example_inputs=torch.zeros(2, 4), align=1, compensate=False)
    return _written(lambda path: surgeon.save(slim, path), "")


@cache
def _study() -> dict[str, bytes]:
    def write(folder: Path) -> None:
        runs = (Run(), Run(seed=1))
        made = store(folder)
        made.begin({"task": "tasks:task", "threads": 1}, runs, "/tmp")
        row = {
            "dense": 0.9,
            "before": 0.5,
            "after": 0.8,
            "macs": 10,
            "params": 10,
            "dense_macs": 20,
            "dense_params": 20,
        }
        for run in runs:
            made.write(run, row)

    return _written(write, "")


@cache
def _report() -> bytes:
    pair = {"before": 20, "after": 10}
    report = {
        "format": "surgeon-report",
        "version": 1,
        "model": "net",
        "macs": pair,
        "params": pair,
        "groups": {"a": pair},
        "budget": "macs",
        "requested": 0.5,
        "reached": 0.5,
        "form": "module",
        "seconds": {"trace": 0.1},
        "pinned": [{"tensor": "a", "axis": 0, "reason": "an input"}],
        "certificate": {"operators": 3, "deviation": 1e-16, "worst": "a", "end_to_end": 1e-16, "statistics": []},
    }
    return json.dumps(report).encode()


@cache
def _profile() -> bytes:
    sample = {"operator": "Conv", "widths": [8, 8], "us": 1.5, "spread": 0.1, "blocked": True, "ends_blocked": True}
    head = {
        "format": "surgeon-profile",
        "version": 1,
        "cpu": "a",
        "arch": "b",
        "threads": 1,
        "runtime": "1",
        "block": 8,
    }
    rest = {"rules": {"dense": 8}, "models": {"f": {"ms": 1.0}}, "samples": [{**sample, "rounds": 3}]}
    return json.dumps({**head, **rest}).encode()


@cache
def _checkpoint() -> dict[str, bytes]:
    state = {"rates": (0.1, 0.2), "moments": {0: torch.ones(2)}, "step": 3}
    return _written(lambda path: checkpoint.write(path, state, 3), "")


def _arrays(**arrays: np.ndarray) -> bytes:
    return _written(lambda path: np.savez(path, allow_pickle=False, **arrays), "a.npz")["a.npz"]


def read_program(path: Path) -> None:
    sources.load(str(path))


def read_network(path: Path) -> None:
    read_graph(path)
    session = open_session(path)
    feeds = make_feeds(session)
    try:  # as the commands do
        session.run(None, feeds)
    except ORT_ERRORS as error:
        raise BenchmarkError(f"{path}: onnxruntime can't run it: {error}") from error


def read_module(path: Path) -> None:
    net = surgeon.load_onnx(path)
    net.sizes.update(n=2, h=8, w=8, steps=3)  # small, where the axes still have these names
    net(**net.dummy_inputs)


def read_data(path: Path) -> None:
    for batch in DataFiles("data", path):
        assert batch is not None


def read_plan(path: Path) -> None:
    plan = Plan.load(path)
    str(plan)
    plan.check(Net())
    plan.example_inputs()


def read_report(path: Path) -> None:
    with page._understood(path.parent):
        page._page(page._read(path), {}, {})


def read_study(path: Path) -> None:
    folder = path.parent if path.name == "study.json" else path.parent.parent
    made = store(folder)
    _, runs, _ = made.read()
    made.rows(runs)


def read_model(path: Path) -> None:
    surgeon.load(path.parent, Net().eval())


def read_checkpoint(path: Path) -> None:
    checkpoint.read(path.parent)


def targets() -> dict[str, list[Target]]:
    """What is read, by format."""
    saved, study, state = _saved(), _study(), _checkpoint()
    data = np.arange(48, dtype=np.float32).reshape(4, 3, 4)
    tensors = save({"a": torch.from_numpy(data), "b": torch.zeros(4, 2)})
    row = next(name for name in study if name.startswith("rows/"))
    held = next(name for name in state if name.endswith(".safetensors"))
    return {
        "pt2": [Target("good.pt2", program(), read_program, {})],
        "onnx": [
            Target("good.onnx", network(), read_network, {}),
            Target("net.onnx", convolutional().SerializeToString(), read_module, {}),
            Target("branch.onnx", branching().SerializeToString(), read_module, {}),
            Target("rounded.onnx", rounded().SerializeToString(), read_module, {}),
            Target("gathered.onnx", gathered().SerializeToString(), read_module, {}),
            Target("integers.onnx", of_integers().SerializeToString(), read_module, {}),
            Target("strided.onnx", strided().SerializeToString(), read_module, {}),
        ],
        "npz": [
            Target("good.npz", _arrays(a=data, b=np.zeros((4, 2))), read_data, {}),
            Target("good.npy", _written(lambda path: np.save(path, data), "a.npy")["a.npy"], read_data, {}),
        ],
        "json": [
            Target("plan.json", saved["plan.json"], read_plan, {}),
            Target("profile.json", _profile(), lambda path: surgeon.Profile.load(path), {}),
            Target("report.json", _report(), read_report, {}),
            Target("study.json", study["study.json"], read_study, study),
            Target(row, study[row], read_study, study),
            Target("checkpoint.json", state["checkpoint.json"], read_checkpoint, state),
        ],
        "safetensors": [
            Target("good.safetensors", tensors, read_data, {}),
            Target(held, state[held], read_checkpoint, state),
        ],
        "model": [
            Target("model.json", saved["model.json"], read_model, saved),
            Target("weights.safetensors", saved["weights.safetensors"], read_model, saved),
        ],
    }
