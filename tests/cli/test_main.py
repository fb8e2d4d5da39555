"""The command line, and where it takes its models from."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import surgeon
from surgeon.cli import demo
from surgeon.errors import ExportError, InvalidArgument
from surgeon.frontend import model_loading as sources
from surgeon.reference import data
from tests.cli.commands import call, good

NETS = '''
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.conv2 = nn.Conv2d(32, 32, 3)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3)))

def small():
    return Net(), torch.randn(2, 3, 8, 8)

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 32)
        self.b = nn.Linear(32, 4)

    def forward(self, x, y):
        return self.b(torch.relu(self.a(x + y)))

ready = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 4))
number = 3

def broken():
    raise RuntimeError("no weights\\nsecond line")

def nothing():
    return None
'''


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, but for a user's own networks, as the current one."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "bad_nets.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("nets", "bad_nets"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `surgeon shrink` writes, once for all tests of this file."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "nets.py").write_text(NETS)
    before = os.getcwd()
    os.chdir(folder)
    try:
        good(
            "shrink", "nets:small", "--ratio", 0.5, "--no-bench", "--align", 1, "--no-compensate", "-o", folder / "out"
        )
    finally:
        os.chdir(before)
        sys.modules.pop("nets", None)
    return folder / "out"


def test_shrink_writes_everything(made: Path) -> None:
    assert sorted(os.listdir(made)) == [
        "base.onnx", "model.json", "plan.json", "report.json", "slim.onnx", "weights.safetensors",
    ]  # fmt: skip
    report = json.loads((made / "report.json").read_text())
    assert abs(report["reached"] - 0.5) <= 0.02
    assert report["form"] == "module"
    assert report["exports"]["slim"]["bytes"] < report["exports"]["base"]["bytes"]
    assert report["exports"]["slim"]["path"] == str(made / "slim.onnx")
    assert report["benchmark"] is None
    assert report["certificate"]["deviation"] <= 1e-9


def test_what_was_written_loads(made: Path) -> None:
    torch.manual_seed(0)
    model, inputs = sources.load("nets:small")
    slim = surgeon.load(made, model)
    assert slim.get_parameter("conv1.weight").shape[0] < 32
    assert slim(inputs).shape == (2, 4)


def test_verify(made: Path) -> None:
    assert "node by node" in good("verify", "nets:small", made)


def test_verify_tells_other_weights(made: Path) -> None:
    result = call("verify", "nets:small", made, "--seed", 1)
    assert result.exit_code == 1
    assert result.stderr.startswith("surgeon: ")
    assert re.search(r"None of its tensors is the model's .* another seed or checkpoint", result.stderr)
    assert "compensation" not in result.stderr


def test_apply(made: Path, here: Path) -> None:
    out = here / "several" / "new" / "folders"
    assert "slim.onnx" in good("apply", "nets:small", made / "plan.json", "-o", out)
    assert (out / "plan.json").read_bytes() == (made / "plan.json").read_bytes()
    assert (out / "weights.safetensors").read_bytes() == (made / "weights.safetensors").read_bytes()
    report = json.loads((out / "report.json").read_text())
    assert report["certificate"]["operators"] > 0
    assert report["exports"]["slim"]["path"] == str(out / "slim.onnx")


def test_recover_leaves_its_report(made: Path, here: Path) -> None:
    out = here / "better"
    good("recover", "nets:small", made, "--data", "synthetic", "--samples", 16, "-o", out)
    report = json.loads((out / "report.json").read_text())
    assert (report["format"], report["recovery"]["samples"]) == ("surgeon-recovery", 16)
    assert surgeon.load(out, sources.load("nets:small")[0]) is not None


def test_inspect() -> None:
    text = good("inspect", "nets:ready")
    assert "group 0: 32 units" in text
    assert "2.weight axis 0 (4): an output of the model" in text


def test_inspect_ignores() -> None:
    assert "left alone, as asked by ignore" in good("inspect", "nets:ready", "--ignore", "0")


def test_bench(made: Path) -> None:
    text = good("bench", made / "base.onnx", made / "slim.onnx", "--json")
    verdict = json.loads(text)
    assert verdict["threads"] == 1
    assert verdict["ratio"]["low"] <= verdict["ratio"]["value"] <= verdict["ratio"]["high"]


def test_shrink_takes_every_option(here: Path) -> None:
    good(
        "shrink", "nets:Two", "--shape", "2,5", "--shape", "2x5", "--ratio", 0.4, "--budget", "params", "--align", 1,
        "--min-width", 4, "--min-width", "a=0.5", "--importance", "l1", "--scope", "local", "--seed", 3, "--no-bench",
        "-o", here / "out",
    )  # fmt: skip
    plan = surgeon.Plan.load(here / "out" / "plan.json")
    assert {cut.tensor for cut in plan.cuts} == {"a.weight", "a.bias", "b.weight"}
    assert all(len(cut.keep) >= 16 for cut in plan.cuts)


def test_demo_is_honest(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = data.load_test(300)
    monkeypatch.setattr(data, "load_test", lambda: (images, labels))
    monkeypatch.setattr(demo, "SECONDS", 0.1)
    text = good("demo", "--network", "residual", "-o", here / "out")
    assert "accuracy, 300 images" in text
    assert all(way in text for way in ("original", "plain cut", "default", "512 images"))
    assert "Nothing was trained with labels" in text
    assert "node by node" in text
    assert {"base.onnx", "slim.onnx", "plan.json", "report.json"} <= set(os.listdir(here / "out"))


SHRINK = ("shrink", "nets:ready", "--ratio", "0.5", "--no-bench", "-o", "out")

# the arguments, what the message says
REFUSED = [
    ("an unknown source", ("inspect", "resnet18"), "'resnet18' names no model; give timm:NAME"),
    ("a package that is not there", ("inspect", "nowhere:net"), "nowhere can't be imported"),
    ("a package that does not import", ("inspect", "bad_nets:net"), "No module named 'a_library_that_is_not_there'"),
    ("a name that is not there", ("inspect", "nets:smal"), "nets:smal is nothing, .* did you mean small"),
    ("a name that is no model", ("inspect", "nets:number"), "nets:number is a int, neither a torch.nn.Module"),
    ("a factory that fails", ("inspect", "nets:broken"), "could not be built: RuntimeError: no weights$"),
    ("a factory of nothing", ("inspect", "nets:nothing"), "gives a NoneType, not a torch.nn.Module"),
    ("a program that is not there", ("inspect", "net.pt2"), "net.pt2: there is no such file"),
    ("a program that is none", ("inspect", "nets.py.pt2"), "is not a program that torch.export.save wrote"),
    ("an unknown timm model", ("inspect", "timm:resnet18x"), "timm has no model 'resnet18x'; did you mean resnet18"),
    ("an unknown torchvision model", ("inspect", "torchvision:resnet19"), "did you mean resnet18"),
    ("inputs that can't be inferred", ("inspect", "nets:Two"), "Two could not be inferred"),
    ("inputs that don't fit", ("inspect", "nets:ready", "--shape", "2,6"), r"shapes \[\(2, 6\)\]"),
    ("no shape", ("inspect", "nets:ready", "--shape", "2,x,3"), "'2,x,3' is not a shape"),
    ("a shape of nothing", ("inspect", "nets:ready", "--shape", "0,5"), "'0,5' is not a shape"),
    ("a least width is no number", (*SHRINK, "--min-width", "0=half"), "--min-width '0=half' is neither a width"),
    ("a ratio out of range", ("shrink", "nets:ready", "--ratio", "1.5", "-o", "out"), "1.5"),
    ("an unknown criterion", (*SHRINK, "--importance", "magic"), "magic"),
    ("ignore names nothing", (*SHRINK, "--ignore", "conv9"), "conv9"),
    ("a file where the folder goes", (*SHRINK[:-1], "nets.py"), "the folder nets.py can't be written"),
    ("a plan that is none", ("apply", "nets:ready", "nets.py", "-o", "out"), "nets.py is not a plan"),
    ("a folder without a model", ("verify", "nets:ready", "."), "plan.json"),
    ("a benchmark of no file", ("bench", "no.onnx", "no.onnx"), "no.onnx: there is no such file"),
    ("a benchmark of no ONNX", ("bench", "nets.py", "nets.py"), "nets.py: not an ONNX model"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
def test_a_mistake_ends_in_one_message(arguments: tuple[str, ...], message: str, here: Path) -> None:
    (here / "nets.py.pt2").write_text("no zip file")
    result = call(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("surgeon: ")
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert re.search(message, result.stderr, re.MULTILINE), result.stderr
    assert set(os.listdir(here)) - {"__pycache__"} == {"nets.py", "bad_nets.py", "nets.py.pt2"}


@pytest.mark.parametrize("folder", ["nets.py", "nets.py/out", "nowhere", "nowhere/out", "/proc/out"])
def test_the_output_folder_is_checked_before_the_work(
    folder: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def working(*_: object, **__: object) -> None:
        pytest.fail("the model was built before the folder was checked")

    (here / "nowhere").symlink_to("missing")
    monkeypatch.setattr(sources, "load", working)
    assert "can't be written" in call("shrink", "nets:ready", "--ratio", 0.5, "-o", folder).stderr
    assert "can't be written" in call("apply", "nets:ready", "plan.json", "-o", folder).stderr


@pytest.mark.parametrize("folder", ["new", "new/deep"])
def test_a_failed_run_leaves_no_folder(
    folder: str, made: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        assert not (here / "new").exists()
        raise ExportError("no such operator in ONNX")

    monkeypatch.setattr(surgeon, "export", failing)
    shrinking = call("shrink", "nets:small", "--ratio", 0.5, "--align", 1, "-o", folder)
    applying = call("apply", "nets:small", made / "plan.json", "-o", folder)
    assert shrinking.stderr == applying.stderr == "surgeon: no such operator in ONNX\n"
    assert set(os.listdir(here)) - {"__pycache__"} == {"nets.py", "bad_nets.py"}


def test_a_failed_run_leaves_the_files_of_the_one_before(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ExportError("no such operator in ONNX")

    before = {path.name: path.read_bytes() for path in made.iterdir()}
    monkeypatch.setattr(surgeon, "export", failing)
    result = call("shrink", "nets:Two", "--shape", "2,5", "--shape", "2,5", "--ratio", 0.5, "--align", 1, "-o", made)
    assert (result.exit_code, result.stderr) == (1, "surgeon: no such operator in ONNX\n")
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


def test_python_runs_the_package() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(surgeon.__file__).parents[1])}
    command = [sys.executable, "-m", "surgeon", "bench", "no.onnx", "no.onnx"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("surgeon: no.onnx: there is no such file")


def test_version() -> None:
    assert good("--version") == f"{surgeon.__version__}\n"


def test_help_names_the_commands() -> None:
    text = good("--help")
    assert all(name in text for name in ("demo", "shrink", "inspect", "apply", "verify", "bench", "profile", "kit"))


# the spec, the class of the model, the shapes of the inputs that the source knows
SOURCES = [
    ("nets:Net", "Net", None),
    ("nets:small", "Net", (2, 3, 8, 8)),
    ("nets:ready", "Sequential", None),
    ("nets:ready.0", "Linear", None),
    ("models:residual", "Residual", None),
    ("torchvision:resnet18", "ResNet", (2, 3, 224, 224)),
    ("timm:resnet18", "ResNet", None),
]


@pytest.mark.parametrize(("spec", "kind", "shape"), SOURCES)
def test_sources(spec: str, kind: str, shape: tuple[int, ...] | None) -> None:
    path, state = list(sys.path), torch.random.get_rng_state()
    model, inputs = sources.load(spec)
    assert type(model).__name__ == kind
    assert not model.training
    assert (None if inputs is None else tuple(inputs.shape)) == shape
    assert sys.path == path
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_seed_gives_the_same_weights() -> None:
    first, again, other = (sources.load("nets:Net", seed=seed)[0].get_parameter("head.weight") for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.fixture
def program(here: Path) -> Path:
    net = nn.Sequential(nn.Linear(5, 32), nn.Dropout(), nn.Linear(32, 4)).eval()
    torch.export.save(torch.export.export(net, (torch.randn(2, 5),), strict=False), here / "net.pt2")
    return here / "net.pt2"


def test_a_program(program: Path) -> None:
    model, (x,) = sources.load(str(program))
    assert sorted(model.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert x.shape == (2, 5)
    slim = surgeon.shrink(model, 0.5, example_inputs=(x,), align=1)
    assert slim(x).shape == (2, 4)
    assert slim.get_parameter("0.weight").shape == (16, 5)


def test_a_program_with_a_pickled_object_is_refused(program: Path) -> None:
    with zipfile.ZipFile(program, "a") as archive:
        archive.writestr("net/data/constants/opaque_obj_0", b"a pickle")
    with pytest.raises(InvalidArgument, match="holds a pickled Python object"):
        sources.load(str(program))


def test_a_program_of_other_bytes(program: Path) -> None:
    program.write_bytes(program.read_bytes()[:2000])
    with pytest.raises(InvalidArgument, match="is not a program"):
        sources.load(str(program))


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    told = r"timm is not installed; it comes with: pip install 'model-surgeon\[zoo\]'"
    with pytest.raises(InvalidArgument, match=told):
        sources.load("timm:resnet18")


def test_a_torchvision_of_another_build_is_explained(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "operator torchvision::nms does not exist"
    (here / "timm.py").write_text(f"raise RuntimeError({reason!r})")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(here)
    with pytest.raises(InvalidArgument, match=f"{reason}.*don't fit torch .*pip install .* torchvision --index-url"):
        sources.load("timm:resnet18")
