"""An ONNX file in the place of a model."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession
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


def test_an_input_that_is_the_same_in_every_run_is_told(tmp_path: Path) -> None:
    onnx.save(branching(), tmp_path / "net.onnx")
    told = ("--fixed", "rate=16000")
    assert "pinned rnn.w axis 1" in good("inspect", tmp_path / "net.onnx", *told)
    for wrong, message in (("rate", "give INPUT=NUMBER"), ("rate=fast", "give INPUT=NUMBER"), ("none=1", "none")):
        result = call("inspect", tmp_path / "net.onnx", "--fixed", wrong)
        assert result.exit_code == 1 and message in result.stderr
    assert "is for an input of an ONNX file" in call("inspect", "models:residual", *told).stderr


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
        decision, ratio, doubt, threads = "no reliable difference", "0.9x", "too noisy here", 2

    monkeypatch.setattr("surgeon.benchmark", lambda *_, **__: Slower())
    options = ("shrink", path, "--ratio", "0.3", "--shape", "2,3,8,8", "--no-compensate", "-o", tmp_path / "slim.onnx")
    result = call(*options)
    assert result.exit_code == 1 and "--force" in result.output and not (tmp_path / "slim.onnx").exists()
    assert "too noisy here" in result.output and "--threads 1" in result.output


def test_the_file_that_goes_in_stays(path: Path) -> None:
    before = path.read_bytes()
    result = call("shrink", path, "--ratio", "0.3", "-o", path)
    assert result.exit_code == 1 and "give another name" in result.output and path.read_bytes() == before
    result = call("shrink", path, "--ratio", "0.3", "--force", "-o", path.parent / "folder")
    assert result.exit_code == 1 and not (path.parent / "folder").exists()


SCORE = """
import numpy as np

def score(feeds, outputs):
    (y,) = outputs
    return np.mean(y.argmax(1) == feeds["label"])

number = 3
"""


def test_how_good_the_file_is_at_its_job(tmp_path: Path) -> None:
    onnx.save(wide(), tmp_path / "net.onnx")
    (tmp_path / "job.py").write_text(SCORE)
    x = weight(256, 256)
    (y,) = InferenceSession(tmp_path / "net.onnx").run(None, {"x": x})
    np.savez(tmp_path / "feeds.npz", x=x)
    np.savez(tmp_path / "test.npz", x=x[:64], label=y[:64].argmax(1))
    given = ("shrink", tmp_path / "net.onnx", "--data", tmp_path / "feeds.npz", "--shape", "2,256", "--samples", "64",
             "--no-distill", "--no-bench", "-o", tmp_path / "slim.onnx", "--metric-data", tmp_path / "test.npz")
    text = good(*given, "--metric", f"{tmp_path / 'job.py'}:score", "--min-metric", "0.5")
    assert re.search(r"score: 1 \(1 to 1\) before, 0\.\d+ \(", text) and "on 64 samples" in text
    found = json.loads(good(*given, "--metric", f"{tmp_path / 'job.py'}:score", "--ratio", "0.2", "--json"))
    assert found["metric"]["before"]["value"] == 1.0 and 0 < found["metric"]["kept"]["low"] <= 1
    for name, told in (("number", "is a int, not a function"), ("no", "names no function")):
        assert told in call(*given, "--metric", f"{tmp_path / 'job.py'}:{name}", "--ratio", "0.2").stderr
    assert "can't be imported" in call(*given, "--metric", "none.py:score", "--ratio", "0.2").stderr


def test_on_another_cpu_it_is_predicted_to_be_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(wide(), tmp_path / "net.onnx")
    good("profile", tmp_path / "net.onnx", "--shape", "1,256", "-o", tmp_path / "pi.json")
    taken = json.loads((tmp_path / "pi.json").read_text())
    (tmp_path / "pi.json").write_text(json.dumps({**taken, "cpu": "a Raspberry Pi"}))
    whole = next(iter(taken["models"].values()))["ms"]
    monkeypatch.setattr("surgeon.benchmark", lambda *_, **__: pytest.fail("it was measured here"))
    with pytest.warns(UserWarning, match="a Raspberry Pi"):
        text = good("shrink", tmp_path / "net.onnx", "--latency-ms", whole / 2, "--device", tmp_path / "pi.json",
                    "--shape", "1,256", "--no-compensate", "-o", tmp_path / "slim.onnx")
    assert "verdict: predicted to be faster, " in text and "on a Raspberry Pi, by its profile, not measured" in text
    assert (tmp_path / "slim.onnx").stat().st_size < (tmp_path / "net.onnx").stat().st_size


def test_what_a_folder_of_a_file_is_good_for(path: Path, tmp_path: Path) -> None:
    good("shrink", path, "--ratio", "0.3", "--shape", "2,3,8,8", "--no-compensate", "--no-bench", "-o",
         tmp_path / "out")
    assert "end to end with zeroed parameters" in good("verify", path, tmp_path / "out", "--shape", "2,3,8,8")
    slim = tmp_path / "out" / "slim.onnx"
    assert "holds no plan; give the FOLDER" in call("verify", path, slim).stderr
    assert "give the FOLDER that `surgeon shrink" in call("report", slim).stderr
    good("kit", path, "--shape", "2,3,8,8", "-o", tmp_path / "kit.pyz")


def test_the_sizes_that_a_file_leaves_free_are_told(path: Path) -> None:
    assert "inputs    x (1, 3, 16, 8)" in good("bench", path, path, "--shape", "1,3,16,8")
    assert "inputs    x (2, 3, 224, 224)" in good("bench", path, path)
    assert "inputs" not in json.loads(good("bench", path, path, "--json"))


def test_pictures_calibrate_int8_as_the_options_say(path: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for index in range(6):
        Image.new("RGB", (12, 9), (index * 40, 128, 255)).save(tmp_path / "pictures" / f"{index}.png")
    given = ("quantize", path, "--calibration", tmp_path / "pictures", "--float16", "-o", tmp_path / "half.onnx")
    told = ("--mean", "0.5", "--std", "0.2", "--resize", "8,8")
    assert "float16" in good(*given, *told)
    assert "give --mean and --std" in call(*given, "--resize", "8,8").stderr
    assert "are for a folder of pictures" in call("quantize", path, "--mean", "0.5").stderr
