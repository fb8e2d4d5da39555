"""`surgeon export` takes what `surgeon.export` does, and says which sizes are free."""

import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch

import surgeon
from tests.cli.commands import call, good
from tests.deploy_nets import output_names

NETS = '''
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 1))
'''


@pytest.fixture(autouse=True)
def _nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "export_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("export_nets", None)


def _shape(path: str) -> list[str | int]:
    (image,) = onnx.load(path).graph.input
    return [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]


SPEC = ("export", "export_nets:net", "--shape", "1,3,8,8", "-o", "net.onnx")
ASKED: list[tuple[tuple[str, ...], list[str | int]]] = [
    ((), ["batch", 3, "height", "width"]),
    (("--free", "batch"), ["batch", 3, 8, 8]),
    (("--free", "none"), [1, 3, 8, 8]),
    (("--axis", "input:2=rows", "--fix", "input:0"), [1, 3, "rows", "width"]),
    (("--fix", "input"), [1, 3, 8, 8]),
]


@pytest.mark.parametrize(("options", "shape"), ASKED, ids=[" ".join(row[0]) or "default" for row in ASKED])
def test_sizes_are_free_as_asked(options: tuple[str, ...], shape: list[str | int]) -> None:
    printed = good(*SPEC, *options)
    assert _shape("net.onnx") == shape
    assert f"input ({', '.join(map(str, shape))})" in printed


def test_names_opset_and_a_smaller_model() -> None:
    model = sys.modules.get("export_nets") or __import__("export_nets")
    slim = surgeon.shrink(model.net(), 0.5, example_inputs=torch.randn(1, 3, 8, 8))
    surgeon.save(slim, "slim")
    names = ("--input-name", "image", "--output-name", "scores")
    printed = good(*SPEC, "--slim", "slim", "--opset", "19", *names, "--tolerance", "1e-4")
    assert "opset 19" in printed and "image (batch, 3, height, width)" in printed
    assert output_names(Path("net.onnx")) == ["scores"]
    widths = {tensor.name: tensor.dims[0] for tensor in onnx.load("net.onnx").graph.initializer}
    assert widths["0.weight"] == dict(slim.named_parameters())["0.weight"].shape[0] < 32


REFUSED = [
    (("--free", "none", "--axis", "input:2=h"), "--axis and --fix name axes one by one, and don't go with --free none"),
    (("--axis", "input=h"), "--axis input=h: give INPUT:AXIS=NAME"),
    (("--axis", "input:2"), "--axis input:2: give INPUT:AXIS=NAME"),
    (("--fix", "input:2=h"), "--fix input:2=h: give INPUT:AXIS or INPUT"),
    (("--axis", "x:2=h"), "--axis and --fix: the model has no input 'x'; its inputs are input"),
    (("--opset", "11"), "--opset 11: give an integer from 18 to 23"),
    (("--input-name", "a", "--input-name", "b"), "--input-name holds 2 names for 1 tensors"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[" ".join(row[0]) for row in REFUSED])
def test_refused(options: tuple[str, ...], message: str) -> None:
    result = call(*SPEC, *options)
    assert result.exit_code == 1 and message in result.output
    assert not Path("net.onnx").exists()
