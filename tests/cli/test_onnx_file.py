"""An ONNX file in the place of a model."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from testbed.onnx_graphs import branching, convolutional, model, weight
from tests.cli.commands import call, good


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(convolutional(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_its_groups_are_printed(path: Path) -> None:
    found = good("inspect", path, "--shape", "2,3,8,8")
    assert "conv1.weight" in found and "fc.weight axis 0" in found


def test_shrink_reads_feeds_by_the_names_of_the_file(path: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "feeds.npz", x=weight(40, 3, 8, 8))
    good("shrink", path, "--ratio", "0.3", "--data", tmp_path / "feeds.npz", "--shape", "x=2,3,8,8", "--no-bench",
         "-o", tmp_path / "out")
    slim = onnx.load(tmp_path / "out" / "slim.onnx")
    assert [value.name for value in slim.graph.input] == ["x"]
    assert (tmp_path / "out" / "slim.onnx").stat().st_size < (tmp_path / "out" / "base.onnx").stat().st_size


def test_feeds_of_a_file_that_fixes_its_batch(tmp_path: Path) -> None:
    proto = model(
        """net (float[1,6] serving__default_x) => (float[1,4] y) {
            a = MatMul (serving__default_x, first)  b = Relu (a)  y = MatMul (b, second)
        }""", first=weight(6, 32), second=weight(32, 4),
    )
    proto.graph.input[0].name = "serving.default_x"
    onnx.save(proto, tmp_path / "net.onnx")
    feeds: dict[str, Any] = {"serving.default_x": weight(40, 6)}
    np.savez(tmp_path / "feeds.npz", **feeds)
    good("shrink", tmp_path / "net.onnx", "--ratio", "0.3", "--data", tmp_path / "feeds.npz", "--no-bench", "-o",
         tmp_path / "out")
    assert (tmp_path / "out" / "slim.onnx").exists()


def test_pictures_as_the_options_say(path: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for index in range(6):
        Image.new("RGB", (12, 9), (index * 40, 128, 255)).save(tmp_path / "pictures" / f"{index}.png")
    told = ("--mean", "0.5", "--std", "0.2,0.2,0.2", "--resize", "8,8", "--layout", "NCHW")
    given = ("--ratio", "0.3", "--data", tmp_path / "pictures", "--shape", "x=2,3,8,8", "--no-bench", "-o",
             tmp_path / "out")
    good("shrink", path, *given, *told)
    good("recover", path, tmp_path / "out", "--data", tmp_path / "pictures", "--shape", "x=2,3,8,8", *told, "-o",
         tmp_path / "again")
    assert "give --mean and --std" in call("shrink", path, *given).stderr
    assert "--resize '8': give height and width" in call("shrink", path, *given, "--resize", "8").stderr
    assert "--std 'a': give a number" in call("shrink", path, *given, "--mean", "0", "--std", "a").stderr


@pytest.mark.parametrize(("shape", "told"), [
    ("y=2,3,8,8", "give INPUT=SIZES; the file takes x (n, 3, h, w)"),
    ("x=2,4,8,8", "the file takes x (n, 3, h, w)"),
    ("x=two", "is not a shape"),
])
def test_shapes_that_the_file_does_not_take(shape: str, told: str, path: Path) -> None:
    result = call("inspect", path, "--shape", shape)
    assert result.exit_code == 1 and told in result.stderr


def test_several_inputs_are_named(tmp_path: Path) -> None:
    onnx.save(branching(), tmp_path / "net.onnx")
    result = call("inspect", tmp_path / "net.onnx", "--shape", "5,2,6")
    assert result.exit_code == 1 and "give INPUT=SIZES" in result.stderr


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"nothing")
    result = call("inspect", tmp_path / "net.onnx")
    assert result.exit_code == 1 and "is not an ONNX file, or is damaged" in result.stderr


def wide() -> onnx.ModelProto:
    """A network of which half is measurably faster."""
    proto = model(
        """net (float[n,256] x) => (float[n,8] y) {
            a = MatMul (x, w1)  b = Relu (a)  c = MatMul (b, w2)  d = Relu (c)  y = MatMul (d, w3)
        }""", w1=weight(256, 2048), w2=weight(2048, 2048), w3=weight(2048, 8),
    )
    proto.metadata_props.add(key="alphabet", value="abc")
    return proto


def test_a_file_comes_out(tmp_path: Path) -> None:
    onnx.save(wide(), tmp_path / "net.onnx")
    text = good("shrink", tmp_path / "net.onnx", "--ratio", "0.7", "--shape", "1,256", "--no-compensate", "-o",
                tmp_path / "slim.onnx")
    slim = onnx.load(tmp_path / "slim.onnx")
    assert slim.metadata_props == wide().metadata_props and slim.graph.input == wide().graph.input
    assert "net.onnx itself, less what was removed" in text and "faster" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "slim.onnx"]


def test_a_file_that_is_not_faster_is_not_written(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slower:
        decision, ratio = "slower", "0.9x"

    monkeypatch.setattr("surgeon.benchmark", lambda *_, **__: Slower())
    options = ("shrink", path, "--ratio", "0.3", "--shape", "2,3,8,8", "--no-compensate", "-o", tmp_path / "slim.onnx")
    result = call(*options)
    assert result.exit_code == 1 and "--force" in result.output and not (tmp_path / "slim.onnx").exists()


def test_the_file_that_goes_in_stays(path: Path) -> None:
    before = path.read_bytes()
    result = call("shrink", path, "--ratio", "0.3", "-o", path)
    assert result.exit_code == 1 and "give another name" in result.output and path.read_bytes() == before
    result = call("shrink", path, "--ratio", "0.3", "--force", "-o", path.parent / "folder")
    assert result.exit_code == 1 and not (path.parent / "folder").exists()
