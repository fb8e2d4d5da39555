"""The kit runs where torch, onnx and rich are missing, from one file, and without this repository."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from surgeon.deploy.kit import write_kit
from surgeon.deploy.verdict_file import load_verdict
from surgeon.device.clock import Clock, usual_threads
from surgeon.device.kit import Kit, read
from surgeon.device.kit_main import main
from surgeon.device.layout_probes import Probe
from surgeon.device.microbenchmark import Point, Whole
from surgeon.device.profile import Profile
from surgeon.errors import InvalidArgument, OutputError, ProfileError
from tests.device.tiny import pointwise_conv

POINTS = (
    Point("conv", (16, 32), pointwise_conv(16, 32)),
    Point("conv", (16, 16), pointwise_conv(16, 16, copies=3), copies=3),
    Point("open", (16, 16), pointwise_conv(16, 16, size="size"), {"x": (1, 16, 4, 4)}, flush=1 << 20),
)
PROBES = (Probe("block", {17: pointwise_conv(32, 17), 33: pointwise_conv(32, 33)}, "block"),)
MODELS = {
    "f00": Whole(pointwise_conv(16, 32), about="a net at 1×16×4×4"),
    "f01": Whole(pointwise_conv(16, 32, size="size"), {"x": (1, 16, 6, 6)}),
    "f02": Whole(b"", about="too large"),
}

HOST_ONLY = "torch onnx rich typer safetensors"

# Runs the kit as `python kit.pyz` does, with the packages named in the first argument missing.
RUNNER = """
import runpy, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv_missing:
            raise ImportError(f"no {name} here")

sys.argv_missing = sys.argv[1].split()
sys.meta_path.insert(0, Missing())
kit = sys.argv[2]
sys.argv = sys.argv[2:]
try:
    runpy.run_path(kit, run_name="__main__")
finally:
    if "surgeon" in sys.modules:
        assert sys.modules["surgeon"].__file__.startswith(kit), sys.modules["surgeon"].__file__
"""


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kit") / "kit.pyz"
    return write_kit(path, POINTS, PROBES, models=MODELS, name="a net")


def run(kit: Path, *arguments: str, missing: str = HOST_ONLY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUNNER, missing, str(kit), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=kit.parent, check=False)


def test_a_profile_is_taken_without_torch(kit: Path, tmp_path: Path) -> None:
    result = run(kit, "-o", str(tmp_path / "p.json"))
    assert result.returncode == 0, result.stderr
    profile = Profile.load(tmp_path / "p.json")
    assert profile.samples.keys() == {point.key for point in POINTS}
    assert profile.rules.keys() == {"block"} and profile.models.keys() == {"f00", "f01"}
    assert profile.models["f00"]["ms"] > 0 and profile.about == {"f00": "a net at 1×16×4×4", "f02": "too large"}
    assert profile.warnings_here() == [] and profile.timed == Clock.of(usual_threads())
    assert "p.json" in result.stdout and "a net: points 3, rules 1, models 3" in result.stderr
    assert "measuring" in result.stderr and "\r" not in result.stderr


def test_two_files_are_compared_without_torch(kit: Path, tmp_path: Path) -> None:
    for name, width in (("base", 64), ("slim", 16)):
        (tmp_path / f"{name}.onnx").write_bytes(pointwise_conv(32, width, size=32))
    files = [str(tmp_path / f"{name}.onnx") for name in ("base", "slim")]
    verdict = tmp_path / "verdict.json"
    result = run(
        kit, "bench", *files, "--seconds", "0.1", "--shape", "1,32,32,32", "--json", "-o", str(verdict)
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["threads"] == usual_threads()
    assert load_verdict(verdict).to_json() == result.stdout.rstrip("\n")


@pytest.mark.parametrize("package", ["numpy", "onnxruntime"])
def test_a_missing_package_is_named(kit: Path, package: str) -> None:
    result = run(kit, missing=package)
    assert result.returncode == 1 and f"kit.pyz needs {package}" in result.stderr
    assert "-m pip install numpy onnxruntime" in result.stderr and "Traceback" not in result.stderr


OLD = """
import sys, types
for name, version in zip(sys.argv[2:4], ("2.1.0", sys.argv[1])):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__version__ = version
if sys.argv[1] == "broken":
    del sys.modules["onnxruntime"]
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "onnxruntime":
                raise ImportError
    sys.meta_path.insert(0, Broken())
import runpy
sys.argv = sys.argv[4:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("1.16.3", "kit.pyz needs onnxruntime 1.17 or later, the first that reads its graphs (opset 20, IR 9); this is "
         "1.16.3; run: "),
        ("broken", "for an onnxruntime before 1.19, which knows no numpy 2: "),
    ],
)
def test_an_onnxruntime_that_does_not_fit_is_told(kit: Path, version: str, message: str) -> None:
    command = [sys.executable, "-c", OLD, version, "numpy", "onnxruntime", str(kit)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr


def test_what_is_written_is_read(kit: Path) -> None:
    assert read(kit) == Kit("a net", POINTS, PROBES, MODELS)
    with zipfile.ZipFile(kit) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    assert sum(name.endswith(".onnx") for name in names) == 7  # of eight, one is there already


def test_the_same_kit_is_the_same_file(kit: Path, tmp_path: Path) -> None:
    again = write_kit(tmp_path / "again.pyz", POINTS, PROBES, models=MODELS, name="a net")
    assert again.read_bytes() == kit.read_bytes()


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        (["-o", "missing/p.json"], 1, "missing/p.json can't be written"),
        (["bench", "no.onnx", "such.onnx"], 1, "no.onnx: there is no such file"),
        (["--threads", "0"], 2, "0 is not above 0"),
        (["bench", "one.onnx"], 2, "required: slim"),
        (["bench", "one.onnx", "two.onnx", "--shape", "1,x"], 2, "1,x is no shape, such as 1,3,224,224"),
        (["surplus"], 2, "unrecognized arguments: surplus"),
    ],
)
def test_mistakes(
    kit: Path, arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        result = main(kit, arguments)
    except SystemExit as end:
        result = int(str(end.code))
    assert result == status and message in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("surgeon.device.take_profile.measure_all", interrupted)
    assert main(kit, ["-o", str(tmp_path / "p.json")]) == 130
    assert "the same command resumes" in capsys.readouterr().err
    assert Profile.load(tmp_path / "p.json").rules.keys() == {"block"}


def test_a_damaged_kit(kit: Path, tmp_path: Path) -> None:
    for name, content in {"cut": kit.read_bytes()[:-100], "text": b"nothing", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ProfileError, match=f"{name} is not a kit, or was cut short"):
            read(tmp_path / name)


def test_a_kit_needs_points_and_a_place(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="nothing to measure"):
        write_kit(tmp_path / "kit.pyz", [])
    with pytest.raises(InvalidArgument, match=r"must end in \.pyz"):
        write_kit(tmp_path / "kit.zip", POINTS)
    with pytest.raises(OutputError, match="does not exist"):
        write_kit(tmp_path / "missing" / "kit.pyz", POINTS)
    assert list(tmp_path.iterdir()) == []
