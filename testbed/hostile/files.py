"""Hostile JSON, safetensors and ONNX files, each with a word on what it tries, and what stands where a file should."""

from __future__ import annotations

import json
import os
import pickle
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from testbed import onnx_graphs
from testbed.hostile.payloads import Runs
from testbed.hostile.targets import Target, network

HUGE = 10**9


@dataclass(frozen=True)
class Case:
    """What a file tries, and how it is made: `make` puts it at a path, beside the target's other files."""

    word: str
    target: Target
    make: Callable[[Path], Any] = field(repr=False)


def content_of(content: bytes) -> Callable[[Path], Any]:
    """A maker of a file that holds these bytes."""
    return lambda path: path.write_bytes(content)


def paths(target: Target) -> Iterator[Case]:
    """What stands where a file should."""

    def listening(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(path))

    def endless(path: Path) -> None:
        path.write_bytes(target.content)
        with path.open("r+b") as file:
            file.truncate(1 << 40)  # a terabyte of nothing, which takes no room

    makers: dict[str, Callable[[Path], Any]] = {
        "a named pipe": os.mkfifo,
        "a folder": Path.mkdir,
        "a broken link": lambda path: path.symlink_to("nowhere"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a device": lambda path: path.symlink_to("/dev/zero"),
        "a terminal": lambda path: path.symlink_to("/dev/ptmx"),
        "nothing at all": lambda path: None,
        "an empty file": lambda path: path.touch(),
        "a file of a terabyte": endless,
        "a socket": listening,
    }
    for word, make in makers.items():
        yield Case(f"{target.name} is {word}", target, make)


def documents(target: Target) -> Iterator[Case]:
    """JSON files."""
    good = json.loads(target.content)
    rows = ",".join(["0"] * 100_000)
    contents = {
        "10,000 lists deep": b"[" * 10_000 + b"]" * 10_000,
        "10,000 objects deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        "200 deep in a good file": json.dumps({**good, "evil": json.loads("[" * 200 + "]" * 200)}).encode(),
        "a name twice": target.content.rstrip()[:-1] + b', "format": "x"}',
        "two documents": target.content * 2,
        "NaN": json.dumps({**good, "evil": float("nan")}).encode(),
        "a number of 100,000 digits": b"9" * 100_000,
        "an infinite number": b'{"format": 1e999}',
        "no UTF-8": target.content[:10] + b"\xff\xfe" + target.content[10:],
        "half of it": target.content[: len(target.content) // 2],
        "null": b"null",
        "a text": b'"x"',
        "a list": b"[]",
        "a lone surrogate": json.dumps({**good, "format": "\ud800"}).encode(),
        "a pickle": pickle.dumps(Runs(), protocol=2),
        "5 million values": b"[" + b",".join([rows.encode()] * 50) + b"]",
        "UTF-16": json.dumps(good).encode("utf-16"),
        "a file of 100 MB": b'"' + b"x" * 100_000_000 + b'"',
    }
    for word, content in contents.items():
        if not (target.name in ("study.json", "checkpoint.json") or target.name.startswith("rows")) or word != "NaN":
            yield Case(f"{target.name}: {word}", target, content_of(content))
    values: list[Any] = [None, [], {}, "x", -1, 1.5, True, 10**50, [[]] * 3, [HUGE], {"x": [1]}]
    for key in good:
        for value in values:
            if value != good[key]:
                changed = json.dumps({**good, key: value}).encode()
                yield Case(f"{target.name}: {key} is {str(value)[:30]}", target, content_of(changed))


def claims(target: Target) -> Iterator[Case]:
    """Plans and profiles that claim more than a model has."""
    good = json.loads(target.content)
    if target.name == "plan.json":
        cut = good["cuts"][0]
        changes: dict[str, dict[str, Any]] = {
            "10^9 channels": {"size": HUGE},
            "10^30 channels": {"size": 10**30},
            "an axis of 10^9": {"axis": HUGE},
            "a position of 10^9": {"keep": [HUGE]},
            "10^5 positions": {"keep": list(range(10**5)), "size": HUGE},
        }
        for word, change in changes.items():
            yield Case(
                f"a plan of {word}", target, content_of(json.dumps({**good, "cuts": [{**cut, **change}]}).encode())
            )
        for shape in ([HUGE] * 3, [HUGE], [10**30], [-1], [1 << 62, 4]):
            inputs = {"args": [{"dtype": "float64", "shape": shape}], "kwargs": {}}
            yield Case(
                f"a plan for inputs of {shape}", target, content_of(json.dumps({**good, "inputs": inputs}).encode())
            )
        for name in ("Tensor", "os", "load", "hub", "__class__"):
            inputs = {"args": [{"dtype": name, "shape": [1]}], "kwargs": {}}
            yield Case(
                f"a plan for inputs of {name}", target, content_of(json.dumps({**good, "inputs": inputs}).encode())
            )
    if target.name == "profile.json":
        samples = json.dumps(good["samples"][0]).encode()
        many = target.content.replace(samples, b",".join([samples] * 500_000))
        yield Case("a profile of 500,000 samples of 140 bytes", target, content_of(many))
    if target.name == "checkpoint.json":
        for name in ("../../../etc/passwd", "/etc/passwd", "nowhere", "", ".", "checkpoint.json", "a/../b"):
            yield Case(f"a checkpoint in {name!r}", target, content_of(json.dumps({**good, "tensors": name}).encode()))
        for state in ({"tensor": "none"}, {"dict": [[[], 1]]}, {"dict": 3}, {"tuple": {"a": 1}}, {"dict": [[1]]}):
            yield Case(f"a checkpoint of {state}", target, content_of(json.dumps({**good, "state": state}).encode()))


def safetensors(target: Target) -> Iterator[Case]:
    """safetensors files."""

    def header(text: bytes, data: bytes = b"", size: int | None = None) -> bytes:
        return struct.pack("<Q", len(text) if size is None else size) + text + data

    def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> bytes:
        return json.dumps({"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}}).encode()

    data = bytes(8)
    for word, content in {
        "a header of an exabyte": header(b"{}", size=1 << 60),
        "a header of 2^64 - 1": header(b"{}", size=(1 << 64) - 1),
        "a header past the end": header(b"{}", size=1000),
        "no header": b"",
        "a short header": b"\x01\x00",
        "a header that is no JSON": header(b"evil"),
        "a header 10,000 deep": header(b'{"a":' * 10_000),
        "offsets past the end": header(entry(offsets=(0, 800)), data),
        "offsets reversed": header(entry(offsets=(8, 0)), data),
        "a shape of 10^9": header(entry(shape=(HUGE,)), data),
        "a shape that overflows": header(entry(shape=(1 << 32, 1 << 32)), data),
        "a negative shape": header(entry(shape=(-2,)), data),
        "an unknown type": header(entry("EVIL"), data),
        "a hole": header(entry(offsets=(8, 16)), bytes(16)),
        "what is left over": header(entry(), bytes(100)),
        "offsets of text": header(entry(offsets=("0", "8")), data),
        "a type of bfloat16": header(entry("BF16", (4,)), data),
        "metadata that is a list": header(b'{"__metadata__": [1]}'),
        "no tensors": header(b"{}"),
        "a name twice": header(entry()[:-1] + b"," + entry()[1:], data),
        "a pickle": pickle.dumps(Runs(), protocol=2),
        "a header of 200 MB": header(b" " * 200_000_000),
    }.items():
        yield Case(f"{target.name}: {word}", target, content_of(content))


def networks(target: Target) -> Iterator[Case]:
    """ONNX files."""

    def changed(change: Callable[[onnx.ModelProto], Any]) -> Callable[[Path], Any]:
        model = onnx.load_from_string(network())
        change(model)
        return content_of(model.SerializeToString())

    def external(location: str, **more: int) -> Callable[[Path], Any]:
        return changed(onnx_graphs.external(location, **more))

    def linked(path: Path) -> None:
        (path.parent / "linked.data").symlink_to("/etc/passwd")
        external("linked.data")(path)

    def piped(path: Path) -> None:
        os.mkfifo(path.parent / "piped.data")
        external("piped.data")(path)

    def short(path: Path) -> None:
        (path.parent / "short.data").write_bytes(bytes(8))
        external("short.data", length=96)(path)

    def add(op: str, inputs: list[str], domain: str = "", **attributes: Any) -> Callable[[Path], Any]:
        def change(model: onnx.ModelProto) -> None:
            model.graph.node.append(helper.make_node(op, inputs, ["evil"], domain=domain, **attributes))
            model.graph.output.append(helper.make_tensor_value_info("evil", TensorProto.FLOAT, None))
            if domain:
                model.opset_import.append(helper.make_opsetid(domain, 1))

        return changed(change)

    def inner(path: Path) -> None:
        tensor = TensorProto(name="t", dims=[4], data_type=1, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="/etc/passwd")
        add("Constant", [], value=tensor)(path)

    def dims(*sizes: int) -> Callable[[onnx.ModelProto], None]:
        def change(model: onnx.ModelProto) -> None:
            model.graph.initializer[0].ClearField("dims")
            model.graph.initializer[0].dims.extend(sizes)

        return change

    def input_of(size: int) -> Callable[[onnx.ModelProto], None]:
        def change(model: onnx.ModelProto) -> None:
            del model.graph.node[:], model.graph.output[:]
            model.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))
            model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
            model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size

        return change

    def large(op: str, inputs: list[str], size: int) -> Callable[[Path], Any]:
        def change(model: onnx.ModelProto) -> None:
            shape = [size, 6] if inputs else [size]
            model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [len(shape)], shape))
            model.graph.node.append(helper.make_node(op, [*inputs, "shape"], ["evil"]))
            model.graph.output.append(helper.make_tensor_value_info("evil", TensorProto.FLOAT, None))

        return changed(change)

    def deep(path: Path) -> None:
        graph = b""
        for _ in range(500):
            attribute = b"\x32" + _varint(len(graph)) + graph
            node = b"\x2a" + _varint(len(attribute)) + attribute
            graph = b"\x0a" + _varint(len(node)) + node
        path.write_bytes(b"\x3a" + _varint(len(graph)) + graph)

    for place in (
        "/etc/passwd",
        "../../etc/passwd",
        "a/../../b",
        "nowhere.data",
        "",
        ".",
        "..\\evil",
        "file:///etc/passwd",
        "*/_ORT_MEM_ADDR_/*",
        "good.onnx\x00",
        "a" * 5000,
    ):
        yield Case(f"weights in {place[:30]!r}", target, external(place))
    yield Case("weights in a link to elsewhere", target, linked)
    yield Case("weights in a pipe", target, piped)
    yield Case("weights in a file that is too short", target, short)
    yield Case("weights past the end", target, external("good.onnx", offset=1 << 40, length=96))
    yield Case("weights before the beginning", target, external("good.onnx", offset=-8, length=96))
    yield Case("weights of a constant elsewhere", target, inner)
    for op, inputs, domain in (
        ("Evil", ["y"], ""),
        ("Evil", ["y"], "evil"),
        ("PythonOp", ["y"], "com.microsoft"),
        ("ATen", ["y"], "org.pytorch.aten"),
        ("EPContext", ["y"], "com.microsoft"),
        ("Relu", ["never_made"], ""),
        ("Relu", ["evil"], ""),
    ):
        yield Case(f"the operator {domain}.{op} of {inputs}", target, add(op, inputs, domain))
    for sizes in ((HUGE, 6), (1 << 40, 1 << 40), (-4, 6), (0, 6), (1 << 62,), (4,) * 99):
        yield Case(f"a weight of {str(sizes)[:30]}", target, changed(dims(*sizes)))
    for op, more in (("ConstantOfShape", []), ("Expand", ["bias"]), ("Tile", ["weight"])):
        for value in (HUGE, 1 << 40):
            yield Case(f"a constant that {op} makes {value} large", target, large(op, more, value))
    for size in (HUGE, 1 << 62, -5):
        yield Case(f"an input of {size}", target, changed(input_of(size)))
    for word, content in {
        "no protobuf": b"evil",
        "an endless number": b"\xff" * 100,
        "a length past the end": b"\x3a\xff\xff\xff\xff\x0f",
        "a pickle": pickle.dumps(Runs(), protocol=2),
        "no graph": b"\x08\x08",
        "an empty graph": b"\x3a\x00",
        "an ort file": b"\x18\x00\x00\x00ORTM" + bytes(100),
        "zeros": bytes(100_000),
        "half a file": network()[:150],
        "a graph twice": network() * 2,
        "names that are no UTF-8": network().replace(b"sum", b"\xff\xfe\xff"),
        "a version to come": network().replace(b"\x08\x08", b"\x08\x7f", 1),
    }.items():
        yield Case(word, target, content_of(content))
    yield Case("graphs 500 deep", target, deep)


def _varint(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
