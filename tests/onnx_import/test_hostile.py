"""Files that are damaged, or made to do harm: each is refused as such."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

import surgeon
from surgeon.errors import InvalidArgument, InvalidModel, SurgeonError
from testbed.hostile.mutations import mutate
from testbed.onnx_graphs import branching, convolutional, external, gathered, model, of_integers


def cyclic(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = proto.graph.node[2].output[0]


def calls_itself(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("own", 1))
    node = helper.make_node("again", ["a"], ["b"], domain="own")
    proto.functions.append(
        helper.make_function("own", "again", ["a"], ["b"], [node], [helper.make_opsetid("own", 1)])
    )
    proto.graph.node.append(helper.make_node("again", ["x"], ["z"], domain="own"))
    proto.graph.output.append(helper.make_tensor_value_info("z", 1, None))


def sizes(*dims: int) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        del proto.graph.initializer[0].dims[:]
        proto.graph.initializer[0].dims.extend(dims)

    return change


def typed(code: int) -> Callable[[onnx.ModelProto], None]:
    return lambda proto: setattr(proto.graph.initializer[0], "data_type", code)


def twice(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(proto.graph.node[0])


CHANGES: dict[str, tuple[Callable[[onnx.ModelProto], Any], str]] = {
    "weights of another folder": (external("../secret"), "does not lie below the folder"),
    "weights at the root": (external("/etc/passwd"), "does not lie below the folder"),
    "weights through a link": (external("link"), "does not lie below the folder"),
    "weights that are missing": (external("nothing"), "can't be read: No such file"),
    "weights of another length": (external("short", length=8), "8 bytes from 0, and its sizes make"),
    "weights that end early": (external("short"), "it ends before byte"),
    "weights before the start": (external("short", offset=-4), "the file is damaged"),
    "a circle": (cyclic, "needs what is made of its own output"),
    "a function that calls itself": (calls_itself, "functions call one another more than"),
    "more than it holds": (sizes(1 << 20, 3, 3, 3), "and holds 432"),
    "a size below zero": (sizes(-16, 3, 3, 3), "which no tensor has"),
    "a size beyond all": (sizes(1 << 40, 1 << 40), "which no tensor has"),
    "text": (typed(TensorProto.STRING), "of type STRING, which torch has no tensors of"),
    "no type": (typed(99), "of type 99"),
    "a value made twice": (twice, "made elsewhere too"),
    "no graph": (lambda proto: proto.ClearField("graph"), "holds no graph"),
    "a far opset": (lambda proto: setattr(proto.opset_import[0], "version", 999), "is of opset 999"),
    "nothing's output": (lambda proto: setattr(proto.graph.output[0], "name", "no"), "is read, and nothing makes it"),
}


@pytest.mark.parametrize("word", CHANGES)
def test_it_is_refused(word: str, tmp_path: Path) -> None:
    change, told = CHANGES[word]
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(4 * 432))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "short").write_bytes(bytes(8))
    proto = convolutional()
    change(proto)
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidModel, match=told):
        surgeon.load_onnx(folder / "net.onnx")


def test_no_file_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="there is no such file"):
        surgeon.load_onnx(tmp_path / "net.onnx")
    with pytest.raises(InvalidModel, match="it is a folder"):
        surgeon.load_onnx(tmp_path)


@pytest.mark.parametrize("shape", [[1 << 40], [1 << 20, 1 << 20], [-5], [10**9]])
def test_a_huge_tensor_is_not_made(shape: list[int], tmp_path: Path) -> None:
    text = f"net (float[n] x) => (y) {{ s = Constant <value_ints = {shape}> ()  y = ConstantOfShape (s) }}"
    onnx.save(model(text), tmp_path / "net.onnx")
    with pytest.raises(SurgeonError, match=r"a tensor of|negative"):
        surgeon.load_onnx(tmp_path / "net.onnx")(torch.ones(1))


def test_numbers_that_are_missing(tmp_path: Path) -> None:
    text = "net (float[n] x) => (y) { s = Constant <value_float = 0.5> ()  t = Mul (, s)  y = Add (x, t) }"
    onnx.save(model(text), tmp_path / "net.onnx")
    with pytest.raises(SurgeonError, match=r"the node 1 \(Mul\) can't run on nothing, 0.5"):
        surgeon.load_onnx(tmp_path / "net.onnx")(torch.ones(1))


@pytest.mark.parametrize("make", [convolutional, branching, gathered, of_integers])
def test_mutations_end_well(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    rng, good = random.Random(0), make().SerializeToString()
    refused = 0
    for _ in range(150):
        (tmp_path / "net.onnx").write_bytes(mutate(good, rng))
        try:
            surgeon.load_onnx(tmp_path / "net.onnx", sizes={})
        except SurgeonError:
            refused += 1
    assert 0 < refused < 150
