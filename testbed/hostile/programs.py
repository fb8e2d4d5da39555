"""Hostile .pt2 files, each with a word on what it tries: one for every place where torch makes objects of bytes."""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import torch

from testbed.hostile.payloads import EVIL, EXPRESSIONS, NAMES, OPERATORS, PATHS, SPECS, Runs
from testbed.hostile.targets import program

Case = tuple[str, bytes]
Members = dict[str, bytes]
MODEL, SAMPLES = "good/models/model.json", "good/data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = (f"good/data/{kind}/model_{kind}_config.json" for kind in ("weights", "constants"))


def _torch_file(code: bytes, **others: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", code)
        for name, content in others.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def _samples() -> Iterator[Case]:
    """Pickles in the place of the example inputs."""
    yield "a pickle that runs code", _torch_file(pickle.dumps(((Runs(),), {}), protocol=2))
    for name in (
        "os system",
        "builtins exec",
        "torch load",
        "builtins bytearray",
        "torch.hub load",
        "builtins getattr",
    ):
        code = f"\x80\x02(c{name.replace(' ', chr(10))}\n(K\x01tRt."
        yield f"a pickle that calls {name}", _torch_file(code.encode("latin1"))
    for name in ("NEWOBJ \x81", "BUILD b", "INST (i", "EXT1 \x82\x01", "STACK_GLOBAL \x93", "OBJ o", "PERSID P0\n"):
        yield f"the instruction {name[:6]}", _torch_file(b"\x80\x02)" + name.split(" ", 1)[1].encode("latin1") + b".")
    yield "a bare pickle", pickle.dumps(Runs(), protocol=2)
    yield "an endless mark", _torch_file(b"\x80\x02" + b"(" * 200_000 + b".")
    yield "nothing on the stack", _torch_file(b"\x80\x02.")
    yield "a pickle cut short", _torch_file(b"\x80\x02X\xff\xff\xff\x7f")
    yield "a huge number", _torch_file(b"\x80\x02\x8b\xff\xff\xff\x7f")
    yield "a list that holds itself", _torch_file(b"\x80\x02]q\x00h\x00a.")
    yield "arguments that hold themselves", _torch_file(b"\x80\x02]q\x00h\x00a\x85}\x86.")
    laughs = b"".join(b"]q%c(h%ch%ce" % (level, level - 1, level - 1) for level in range(1, 60))
    yield "a billion laughs", _torch_file(b"\x80\x02(]q\x00" + laughs + b"t}\x86.")
    yield (
        "a list of lists a million times",
        _torch_file(b"\x80\x02(]q\x00(" + b"K\x01" * 9000 + b"e]q\x01(" + b"h\x00" * 9000 + b"et}\x86."),
    )
    yield "no pair", _torch_file(b"\x80\x02K\x01.")
    good = _members()[SAMPLES]
    for what, old, new in (
        ("a storage of more values", struct.pack("<B", 12), b"\xff"),
        ("an unknown storage", b"FloatStorage", b"EvilStorage"),
        ("another type", b"torch\nTensor", b"evilx\nTensor"),
        ("another function", b"_rebuild_tensor_v2", b"_rebuild_tensor_v9"),
    ):
        inner = zipfile.ZipFile(io.BytesIO(good))
        root = inner.namelist()[0].split("/")[0]
        parts = {name.removeprefix(f"{root}/"): inner.read(name) for name in inner.namelist()}
        if old not in parts["data.pkl"]:
            continue
        yield what, _torch_file(parts.pop("data.pkl").replace(old, new), **parts)


def _members() -> Members:
    with zipfile.ZipFile(io.BytesIO(program())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _packed(members: Members, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _with(**changes: Any) -> bytes:
    """The good program with other members: bytes, a function of what is in the JSON there, or None to leave it out."""
    members = _members()
    for key, change in changes.items():
        name = {"model": MODEL, "weights": WEIGHTS, "constants": CONSTANTS, "samples": SAMPLES}.get(key, f"good/{key}")
        if change is None:
            del members[name]
        elif callable(change):
            data = json.loads(members[name])
            change(data)
            members[name] = json.dumps(data).encode()
        else:
            members[name] = change
    return _packed(members)


def _model(*place: str | int, value: Any) -> bytes:
    return _with(model=lambda data: _set(data, place, value))


def _set(data: Any, place: tuple[str | int, ...], value: Any) -> None:
    for part in place[:-1]:
        data = data[part]
    data[place[-1]] = value


_GRAPH = ("graph_module", "graph")
_NODE = (*_GRAPH, "nodes", 0)


def _symbol(data: Any, text: str) -> None:
    sizes = data["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
    sizes[0] = {"as_expr": {"expr_str": text, "hint": None}}


def _documents() -> Iterator[Case]:
    """What models/model.json holds."""
    for text in EXPRESSIONS:
        yield f"the size {text[:60]!a}", _with(model=lambda data, text=text: _symbol(data, text))
    places: dict[str, tuple[str | int, ...]] = {
        "node": (*_NODE, "name"),
        "output": (*_NODE, "outputs", 0, "as_tensor", "name"),
        "input": (*_GRAPH, "inputs", 0, "as_tensor", "name"),
        "result": (*_GRAPH, "outputs", 0, "as_tensor", "name"),
        "operand": (*_NODE, "inputs", 0, "arg", "as_tensor", "name"),
        "argument": (*_NODE, "inputs", 0, "name"),
    }
    call = ("graph_module", "module_call_graph", 0, "signature")
    for where, place in places.items():
        for text in NAMES:
            if text or where not in ("argument", "node"):
                yield f"the {where} {text[:40]!a}", _model(*place, value=text)
    for text in NAMES[:4]:
        yield f"the argument of forward {text[:40]!a}", _model(*call, "forward_arg_names", value=[text])
        yield f"the symbol {text[:40]!a}", _model("range_constraints", text, value={"min_val": 0, "max_val": 9})
    specs = ("graph_module", "signature", "input_specs", 0, "parameter", "parameter_name")
    for text in PATHS:
        yield f"the parameter {text[:40]!a}", _model(*specs, value=text)
    for text in OPERATORS:
        yield f"the operator {text!a}", _model(*_NODE, "target", value=text)
    for text in OPERATORS[:6]:
        yield f"the operator {text!a} as an argument", _model(*_NODE, "inputs", 0, "arg", value={"as_operator": text})
    for spec in SPECS:
        for side in ("in_spec", "out_spec"):
            yield f"{side} {json.dumps(spec)[:60]}", _model(*call, side, value=json.dumps([1, spec]))
    for kind, value in {
        "as_custom_obj": {"name": "x", "class_fqn": "canary_module.X"},
        "as_string_to_argument": {"x": {"as_int": 1}},
        "as_int": True,
        "as_float": "1",
        "as_ints": [1.5],
        "as_string": "a\x1b[2J",
        "as_device": {"type": "cpu:evil"},
        "as_scalar_type": 99,
        "as_layout": -1,
        "as_evil": 1,
        "as_complex": {"real": "x", "imag": 0},
        "as_tensors": [3],
        "as_tensor": {"name": "never_made"},
        "as_graph": {"name": "a.b", "graph": {}},
        "as_int_lists": [[10**30]],
    }.items():
        yield f"an argument {kind} {str(value)[:40]}", _model(*_NODE, "inputs", 0, "arg", value={kind: value})
    for what, place, value in (
        ("a custom object", (*_GRAPH, "custom_obj_values"), {"x": {"name": "x", "class_fqn": "canary_module.X"}}),
        ("a token", ("graph_module", "signature", "input_specs", 0), {"token": {"arg": {"name": "x"}}}),
        ("a symbol past all others", ("range_constraints", "u999999999"), {"min_val": 0, "max_val": 9}),
        ("a field that there is none of", ("evil",), 1),
        ("two kinds at once", (*_GRAPH, "inputs", 0), {"a": 1, "b": 2}),
        ("no graph", ("graph_module",), None),
        ("a list for a graph", _GRAPH, []),
        ("no version", ("schema_version",), {}),
        ("a version to come", ("schema_version",), {"major": 99, "minor": 0}),
        ("a shape of text", (*_GRAPH, "tensor_values"), "x"),
    ):
        yield what, _model(*place, value=value)
    raw = _members()[MODEL]
    for what, content in {
        "JSON 10,000 deep": b"[" * 10_000,
        "a deep spec": b'{"a":' * 10_000,
        "NaN": raw.replace(b"null", b"NaN", 1),
        "a name twice": b'{"graph_module": 1,' + raw[1:],
        "a number of 5000 digits": raw.replace(b'"as_int": 1', b'"as_int": 1' + b"0" * 5000, 1),
        "no UTF-8": raw[:50] + b"\xff" + raw[50:],
        "nothing": b"",
        "5 million values": b"[" + b"0," * 5_000_000 + b"0]",
        "null": b"null",
        "a text": b'"x"',
    }.items():
        yield f"model.json: {what}", _with(model=content)


def _tensors() -> Iterator[Case]:
    """What the configurations of weights and constants hold."""
    meta = ("config", "first.weight", "tensor_meta")

    def weights(*place: str | int, value: Any) -> bytes:
        return _with(weights=lambda data: _set(data, place, value))

    yield "a pickled weight", weights("config", "first.weight", "use_pickle", value=True)
    yield "a weight without a shape", weights(*meta, value=None)
    for path in (
        "../../etc/passwd",
        "/etc/passwd",
        "weight_99",
        "model_weights_config.json",
        "weight_0\x00",
        "",
        "tensor_0",
    ):
        yield f"a weight in {path!a}", weights("config", "first.weight", "path_name", value=path)
    for sizes in ([10**9, 4], [-1, 4], [6, 4, 10**12], [1 << 62], [0, 1 << 62], [2.5], [True], ["6"], [6] * 100):
        shape = [{"as_int": size} for size in sizes]
        yield f"a weight of {str(sizes)[:40]}", weights(*meta, "sizes", value=shape)
    yield (
        "a weight expanded a million times",
        _with(
            weights=lambda data: data["config"]["first.weight"]["tensor_meta"].update(
                sizes=[{"as_int": 10**6}, {"as_int": 10**6}], strides=[{"as_int": 0}, {"as_int": 0}]
            )
        ),
    )
    yield "a weight past its end", weights(*meta, "storage_offset", value={"as_int": 10**9})
    yield "a weight of an unknown size", weights(*meta, "sizes", 0, value={"as_expr": {"expr_str": EVIL, "hint": None}})
    for key, value in (
        ("dtype", 0),
        ("dtype", 99),
        ("dtype", "x"),
        ("layout", 1),
        ("layout", 6),
        ("device", {"type": "evil"}),
    ):
        yield f"a weight's {key} {value}", weights(*meta, key, value=value)
    yield "a weight on an accelerator", weights(*meta, "device", value={"type": "cuda", "index": 99})
    yield (
        "a custom object for a constant",
        _with(constants=lambda data: data["config"]["constant"].update(path_name="custom_obj_0")),
    )
    yield "a pickled constant", _with(constants=lambda data: data["config"]["constant"].update(use_pickle=True))
    yield (
        "an opaque object for a constant",
        _with(constants=lambda data: data["config"]["constant"].update(path_name="opaque_obj_0")),
    )
    for text in PATHS:
        yield (
            f"a weight named {text[:40]!a}",
            _with(weights=lambda data, text=text: data["config"].update({text: data["config"].pop("first.bias")})),
        )
    yield (
        "other shapes in the graph",
        _model(*_GRAPH, "tensor_values", "p_first_weight", "sizes", 0, value={"as_int": 10**9}),
    )


def _archives() -> Iterator[Case]:
    """The archive itself."""
    run = pickle.dumps(Runs(), protocol=2)
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(1)}, buffer)
    for name in (
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "data/weights/model.pt",
        "data/constants/model.pt",
        "data/aotinductor/model/evil.so",
        "evil.py",
        "models/other.json",
        "executorch/model.pte",
        "version2",
    ):
        yield f"the member {name}", _with(**{name: run})
    for name in (
        "../evil",
        "/evil",
        "good/../../evil",
        "evil",
        "good//evil",
        "good/./evil",
        "C:\\evil",
        "good\\evil",
        "good/extra/\x1b[2J",
    ):
        members = _members()
        members[name] = b"x"
        yield f"the member {name!a}", _packed(members)
    for name in ("archive_format", "archive_version", "byteorder"):
        yield f"another {name}", _with(**{name: b"evil"})
    for key in ("model", "weights", "constants", "archive_format"):
        yield f"no {key}", _with(**{key: None})
    yield "packed members", _packed(_members(), compression=zipfile.ZIP_DEFLATED)
    bomb = _members()
    bomb["good/extra/bomb"] = bytes(100_000_000)
    yield "a member that unpacks to 100 MB", _packed(bomb, compression=zipfile.ZIP_DEFLATED)
    good = bytearray(_packed(_members()))
    central = good.index(b"PK\x01\x02")
    for what, at, value in (
        ("encrypted", 8, b"\x01\x00"),
        ("of 4 GB", 20, b"\xfe\xff\xff\xff" * 2),
        ("elsewhere", 42, b"\xff\xff\xff\x7f"),
        ("of another method", 10, b"\x5f\x00"),
        ("with a huge name", 28, b"\xff\xff"),
    ):
        changed = bytearray(good)
        changed[central + at : central + at + len(value)] = value
        yield f"a member {what}", bytes(changed)
    second = good.index(b"PK\x01\x02", central + 4)
    overlapping = bytearray(good)
    overlapping[second + 42 : second + 46] = overlapping[central + 42 : central + 46]
    yield "members that overlap", bytes(overlapping)
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        for name, content in _members().items():
            archive.writestr(name, content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr(MODEL, b"{}")
    yield "a member twice", twice.getvalue()
    yield (
        "the format of torch 2.7",
        _packed({"version": b"8.2", "serialized_exported_program.json": b"{}", "serialized_state_dict.pt": run}),
    )
    yield "what torch.save writes", buffer.getvalue()
    yield "a pickle", run
    yield "an empty archive", _packed({})
    yield "half a file", program()[: len(program()) // 2]
    yield "nothing", b""
    yield "zeros", bytes(1_000_000)


def hostile() -> Iterator[Case]:
    """Every case: what it tries, and the file. None of them may be read."""
    groups: tuple[Callable[[], Iterator[Case]], ...] = (_archives, _documents, _tensors)
    for group in groups:
        yield from group()
    for what, content in _samples():
        yield f"example inputs: {what}", _with(samples=content)


def harmless() -> Iterator[Case]:
    """What torch would run or import, and is not looked at here: the program is read without it."""
    yield "guards that run code", _model("guards_code", value=[EVIL])
    yield "a verifier of another name", _model("verifiers", value=["canary_module"])
    for key in ("source_fn_stack", "from_node", "custom", "stack_trace", "torch_fn"):
        yield f"{key} that names a module", _model(*_NODE, "metadata", key, value=f"x,torch.hub.load;{EVIL}")
    yield "the metadata of another machine", _model("graph_module", "metadata", value={"custom": "[" * 10_000})
    yield "a file beside the program", _with(**{"extra/notes.txt": EVIL.encode()})
