"""Files from somebody else: what is refused, and that nothing in them runs. `benchmarks/hostile.py` has all cases."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from surgeon.errors import InvalidArgument, SurgeonError
from surgeon.frontend import model_loading as sources
from surgeon.frontend.exported.expressions import check_expression
from surgeon.frontend.exported.operators import check_operator
from surgeon.frontend.exported.text import check_name, check_path
from surgeon.support import strict_json
from surgeon.support.arrays import read_arrays
from surgeon.support.opening import Unfit, open_file, read_bytes, require_file
from testbed.hostile import arrays as hostile_arrays
from testbed.hostile import files as hostile_files
from testbed.hostile import payloads as hostile_payloads
from testbed.hostile import programs as hostile_programs
from testbed.hostile.mutations import mutate
from testbed.hostile.targets import Target, targets


@pytest.mark.parametrize("text", hostile_payloads.EXPRESSIONS)
def test_a_hostile_size_is_refused(text: str) -> None:
    with pytest.raises(Unfit, match="a symbolic size"):
        check_expression(text)


# What torch writes, and what is read
SIZES = [
    "Symbol('s77', positive=True, integer=True)",
    "Mul(Integer(8), Max(Integer(1), Add(FloorDiv(Add(Symbol('s53', positive=True, integer=True), Integer(-3)), "
    "Integer(2)), Integer(1))))",
    "Pow(Symbol('s0', integer=True), Integer(2))",
    "Mul(Rational(1, 2), Symbol('s0', integer=True))",
    "Mod(Symbol('s0'), Integer(2))",
    "Float('0.5', precision=53)",
    "Equality(Symbol('u0', integer=True), Integer(3))",
    "s0*2 + (s1 - 1)//2",
    "-s0**2 % 3 >= 1",
]


@pytest.mark.parametrize("text", SIZES)
def test_a_size_as_torch_writes_it_is_read(text: str) -> None:
    check_expression(text)


@pytest.mark.parametrize("name", hostile_payloads.OPERATORS)
def test_a_hostile_operator_is_refused(name: str) -> None:
    with pytest.raises(Unfit):
        check_operator(name)


OPERATORS = [
    "torch.ops.aten.conv2d.default", "torch.ops.aten.conv2d.padding", "torch.ops.aten.add.Tensor",
    "torch.ops.aten.div.Tensor_mode", "torch.ops.aten.einsum.default", "torch.ops.aten.__and__.Tensor",
    "torch.ops.aten._assert_scalar.default", "torch.ops.aten.dropout.default", "torch.ops.aten.lstm.input",
    "torch.ops.aten.scaled_dot_product_attention.default", "torch.ops.prims.view_of.default", "_operator.floordiv",
    "torch.ops.higher_order.wrap_with_set_grad_enabled", "torch.sym_max", "math.trunc",
]  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_on_tensors_is_taken(name: str) -> None:
    check_operator(name)


@pytest.mark.parametrize("text", hostile_payloads.NAMES)
def test_a_hostile_name_is_refused(text: str) -> None:
    with pytest.raises(Unfit, match="is not the name"):
        check_name(text)


@pytest.mark.parametrize("text", hostile_payloads.PATHS)
def test_a_hostile_path_is_refused(text: str) -> None:
    with pytest.raises(Unfit, match="is not the path"):
        check_path(text)


@pytest.fixture(scope="module")
def good() -> dict[str, list[Target]]:
    return targets()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_hostile_programs_run_nothing_and_are_refused(folder: Path) -> None:
    path = folder / "evil.pt2"
    for _, content in [*hostile_programs.hostile()][::4]:
        path.write_bytes(content)
        with pytest.raises(InvalidArgument, match=r"evil\.pt2"):
            sources.load(str(path))
    assert os.listdir(folder) == ["evil.pt2"]


def test_what_torch_would_run_is_left_out(folder: Path) -> None:
    path = folder / "evil.pt2"
    for _, content in hostile_programs.harmless():
        path.write_bytes(content)
        model, (x,) = sources.load(str(path))
        assert model(x).shape == (3, 2)
    assert os.listdir(folder) == ["evil.pt2"]


def _cases(kind: str, made: list[Target]) -> Iterator[hostile_files.Case]:
    makers: dict[str, Callable[[Target], Iterator[hostile_files.Case]]] = {
        "paths": hostile_files.paths, "networks": hostile_files.networks, "arrays": hostile_arrays.arrays,
        "safetensors": hostile_files.safetensors, "documents": hostile_files.documents, "claims": hostile_files.claims,
    }  # fmt: skip
    for target in made:
        yield from makers[kind](target)


# (the format, the kind of its cases)
KINDS = [
    ("pt2", "paths"), ("onnx", "paths"), ("npz", "paths"), ("json", "paths"), ("safetensors", "paths"),
    ("onnx", "networks"), ("npz", "arrays"), ("safetensors", "safetensors"), ("json", "claims"), ("json", "documents"),
]  # fmt: skip
#: They take long to make: a hundred megabytes each.
LARGE = ("100 MB", "200 MB", "5 million", "500,000")


@pytest.mark.parametrize(("form", "kind"), KINDS)
def test_hostile_files_end_in_an_error_of_surgeons_own(
    form: str, kind: str, good: dict[str, list[Target]], folder: Path
) -> None:
    refused = 0
    for number, case in enumerate(_cases(kind, good[form])):
        may_be_missing = case.target.name.startswith(("rows/", "checkpoint"))
        if any(word in case.word for word in LARGE) or (may_be_missing and case.word.endswith("nothing at all")):
            continue
        path = folder / str(number) / case.target.name
        for name, content in {case.target.name: b"", **case.target.beside}.items():
            (folder / str(number) / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / str(number) / name).write_bytes(content)
        path.unlink()
        case.make(path)
        message = ""
        try:
            case.target.read(path)
        except SurgeonError as error:
            message = str(error)
        assert "allow_pickle" not in message, case.word
        assert message or kind not in ("paths", "safetensors"), case.word
        refused += message != ""
    assert refused > 5
    assert not (folder / "canary").exists()


@pytest.mark.parametrize("form", ["pt2", "onnx", "npz", "json", "safetensors"])
def test_mutations_end_in_an_error_of_surgeons_own(form: str, good: dict[str, list[Target]], folder: Path) -> None:
    outcomes = set()
    for index in range(40):
        target = good[form][index % len(good[form])]
        path = folder / target.name
        path.parent.mkdir(exist_ok=True)
        for name, content in target.beside.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        path.write_bytes(mutate(target.content, Random(index)))
        try:
            target.read(path)
            outcomes.add("read")
        except SurgeonError:
            outcomes.add("refused")
    assert "refused" in outcomes


class Nested(nn.Module):
    """Takes and gives nested values, by keyword too, in a part without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, stride=2)
        self.tied = self.layer
        self.counts: Any = torch.arange(4.0)

    def forward(self, xs: list[torch.Tensor], *, scale: torch.Tensor, flag: bool = True) -> dict[str, Any]:
        with torch.no_grad():
            half = xs[1] / 2
        return {"a": self.tied(xs[0]) * scale, "b": (half + self.counts[0], [xs[1].chunk(2, 1)])}


def test_a_program_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    dynamic = torch.export.Dim.DYNAMIC
    net = Nested().eval()
    inputs = ([torch.randn(2, 3, 9, 11), torch.randn(2, 4)],)
    shapes: dict[str, Any] = {"xs": [{0: dynamic, 2: dynamic}, {0: dynamic}], "scale": {}, "flag": None}
    kwargs = {"scale": torch.tensor(2.0), "flag": False}
    program = torch.export.export(net, inputs, kwargs, dynamic_shapes=shapes, strict=False)
    torch.export.save(program, tmp_path / "net.pt2")
    model, _ = sources.load(str(tmp_path / "net.pt2"))
    more = ([torch.randn(5, 3, 7, 11), torch.randn(5, 4)],)
    expected, found = net(*more, **kwargs), model(*more, **kwargs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert {name: type(value) for name, value in model.state_dict().items()}.keys() == net.state_dict().keys()


def test_a_file_is_opened_that_is_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert read_bytes(tmp_path / "link") == b"12345"
    assert require_file(path) == 5
    with open_file(path) as file:
        assert file.read() == b"12345"
    with pytest.raises(Unfit, match="5 bytes; at most 4"):
        read_bytes(path, 4)
    with pytest.raises(Unfit, match="null"):
        read_bytes("a\0b")


# (what is read, what is said of it)
DOCUMENTS = [
    (b'{"a": 1, "a": 2}', '"a" is there twice'),
    (b"[" * 10_000, "nested more than 100 deep"),
    (b"[" * 101 + b"]" * 101, "nested more than 100 deep"),
    (b"[NaN]", "NaN is not finite"),
    (b"[1e999]", "1e999 is not finite"),
    (b"9" * 100, "a number has 100 digits"),
    (b"[" + b"0," * 4_000_000 + b"0]", "more than 3,000,000 values"),
    (b"\xff", "not valid JSON"),
]


@pytest.mark.parametrize(("content", "message"), DOCUMENTS)
def test_json_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(Unfit, match=message):
        strict_json.loads(content)


def test_json_is_read() -> None:
    assert strict_json.loads(b'{"a": [1, 2.5, {"b": null}]}') == {"a": [1, 2.5, {"b": None}]}
    assert strict_json.loads("[Infinity]", finite=False) == [float("inf")]
    assert strict_json.loads(b"[" * 100 + b"]" * 100)


def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path) -> None:
    for array in (np.arange(6.0).reshape(2, 3), np.asfortranarray(np.ones((2, 3), np.int8)), np.zeros((0, 3))):
        np.save(tmp_path / "a.npy", array)
        np.savez(tmp_path / "a.npz", b=array, c=array + 1)
        np.savez_compressed(tmp_path / "b.npz", b=array)
        np.testing.assert_array_equal(read_arrays(tmp_path / "a.npy")["array"], array, strict=True)
        np.testing.assert_array_equal(read_arrays(tmp_path / "a.npz")["c"], array + 1, strict=True)
        np.testing.assert_array_equal(read_arrays(tmp_path / "b.npz")["b"], array, strict=True)
