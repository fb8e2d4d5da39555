"""The writers that `benchmarks.kills` kills: what they find, what they write, and how the two are told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

import surgeon
from surgeon.cli.main import app
from surgeon.deploy import conversion
from surgeon.pipeline import storage
from surgeon.reporting.page import write_page
from surgeon.support import exchange
from testbed.study_tasks import Blobs

SINGLE_FILE_BYTES = conversion.SINGLE_FILE_BYTES
X = torch.zeros(1, 8)


def net(seed: int = 0) -> nn.Sequential:
    """A network that everything is quick for."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


class Short(Blobs):
    """The tests' task, of one epoch, with the network that all is quick for."""

    epochs, retraining = 1, 1

    def model(self) -> nn.Module:
        return net()


@dataclass(frozen=True)
class Trial:
    """`old` makes the files of before, `write` is what is killed, `read` says which of the two a folder holds."""

    old: Callable[[Path], object]
    write: Callable[[Path], object]
    read: Callable[[Path], str]


@cache
def slim(ratio: float) -> nn.Module:
    """A model to save."""
    return surgeon.shrink(net(), ratio, example_inputs=X, align=1, compensate=False)


def save(ratio: float, *others: str) -> Callable[[Path], object]:
    """Save a model, cut by `ratio`; `others` are the user's own files beside it."""

    def run(home: Path) -> None:
        for name in others:
            (home / "out" / name).parent.mkdir(parents=True, exist_ok=True)
            (home / "out" / name).write_text("the user's")
        surgeon.save(slim(ratio), home / "out")

    return run


def without_exchange(run: Callable[[Path], object]) -> Callable[[Path], object]:
    """As on a system that can't exchange paths."""

    def other(home: Path) -> None:
        exchange._RENAMEAT2, known = None, exchange._RENAMEAT2
        run(home)
        exchange._RENAMEAT2 = known

    return other


def loaded(home: Path) -> str:
    """Which model `load` finds; the user's files must be there."""
    assert all(path.read_text() == "the user's" for path in home.rglob("mine"))
    return {24: "old", 16: "new"}[surgeon.load(home / "out", net()).get_parameter("0.bias").numel()]


def alike(home: Path) -> str:
    """The same, and the three files as they lie belong together."""
    with safe_open(home / "out" / storage.WEIGHTS, framework="pt") as file:
        assert file.metadata()["plan"] == hashlib.sha256((home / "out" / storage.PLAN).read_bytes()).hexdigest()
    return loaded(home)


def there(home: Path) -> str:
    """The same of a folder that may not be there yet."""
    return alike(home) if (home / "out").exists() else "old"


def export(seed: int, beside: bool = False) -> Callable[[Path], object]:
    """Export a network, with its weights in a file beside it."""

    def run(home: Path) -> None:
        conversion.SINGLE_FILE_BYTES = 100 if beside else SINGLE_FILE_BYTES
        (home / "out").mkdir(exist_ok=True)
        surgeon.export(net(seed), home / "out" / "net.onnx", example_inputs=X)

    return run


def exported(home: Path) -> str:
    """Which network the ONNX file computes."""
    import onnxruntime

    x = torch.ones(1, 8)
    session = onnxruntime.InferenceSession(home / "out" / "net.onnx")
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    return next(name for name, seed in (("old", 0), ("new", 1)) if torch.allclose(net(seed)(x), found, atol=1e-5))


def command(*arguments: str) -> Callable[[Path], object]:
    """A command as a user types it; HOME is the trial's folder."""

    def run(home: Path) -> None:
        given = [text.replace("HOME", str(home)) for text in arguments]
        try:
            app(given)
        except SystemExit as error:
            if error.code:
                raise

    return run


def shrunk(home: Path) -> str:
    """Which model, with its report and ONNX file."""
    found = loaded(home)
    groups = json.loads((home / "out" / "report.json").read_text())["groups"]
    assert {each["after"] for each in groups.values()} == {{"old": 24, "new": 16}[found]}
    return found


def old_profile(home: Path) -> None:
    """A profile of which some has not been measured yet."""
    path = home / "out" / "p.json"
    path.parent.mkdir(exist_ok=True)
    surgeon.profile(net(), X, threads=1, path=path)
    whole = json.loads(path.read_text())
    whole["samples"] = whole["samples"][:-1]
    path.write_text(json.dumps(whole))


def profiled(home: Path) -> str:
    """Whether the profile, which must load, is the whole one."""
    found = surgeon.Profile.load(home / "out" / "p.json")
    text = json.loads((home / "out" / "p.json").read_text())
    assert len(found.samples) == len(text["samples"])
    return "new" if (home / "size").exists() and len(found.samples) > int((home / "size").read_text()) else "old"


def count_samples(home: Path) -> None:
    """The old profile, and how much it holds."""
    old_profile(home)
    (home / "size").write_text(str(len(json.loads((home / "out" / "p.json").read_text())["samples"])))


def studied(home: Path) -> str:
    """Whether the study has its row; whatever is there must be whole."""
    for path in (home / "out").rglob("*.json"):
        if ".surgeon-" not in str(path):
            json.loads(path.read_text())
    for row in (home / "out").glob("rows/*.json"):
        assert "error" not in json.loads(row.read_text()), row.read_text()
    return "new" if list((home / "out").glob("rows/*.json")) else "old"


def old_page(home: Path) -> None:
    """A folder that was shrunk and reported on."""
    command(*SHRINK, "0.5")(home)
    write_page(home / "out", accuracy={"old": 0.5})


def page(home: Path) -> str:
    """Which page, with which pictures: those are written by the same run."""
    text = (home / "out" / "report.html").read_text()
    pictures = list((home / "out").glob("*.png"))
    made = {path.stat().st_mtime > (home / "old-until").stat().st_mtime for path in pictures}
    assert made == {"accuracy, fresh" in text}, "a page beside pictures of another run"
    return "new" if made == {True} else "old"


SHRINK = ("shrink", f"{__name__}:net", "--shape", "1,8", "--no-bench", "--align", "1", "-o", "HOME/out", "--ratio")
STUDY = ("study", f"{__file__}:Short", "-o", "HOME/out", "--ratio", "0.5", "--criterion", "l2", "--seeds", "1",
         "--baseline", "none")  # fmt: skip
TRIALS = {
    "save": Trial(save(0.25), save(0.5), alike),
    "save, to a new folder": Trial(lambda home: None, save(0.5), there),
    "save, beside a file of the user": Trial(save(0.25, "mine"), save(0.5), alike),
    "save, beside a folder of the user": Trial(save(0.25, "deep/mine"), save(0.5), loaded),
    "save, where paths can't be exchanged": Trial(save(0.25, "mine"), without_exchange(save(0.5)), loaded),
    "export": Trial(export(0), export(1), exported),
    "export, weights in a second file": Trial(export(0, True), export(1, True), exported),
    "shrink -o": Trial(command(*SHRINK, "0.25"), command(*SHRINK, "0.5"), shrunk),
    "report": Trial(old_page, lambda home: write_page(home / "out", accuracy={"fresh": 0.5}, runs=2), page),
    "profile": Trial(
        count_samples, command("profile", f"{__name__}:net", "--shape", "1,8", "-o", "HOME/out/p.json"), profiled
    ),
    "study": Trial(lambda home: None, command(*STUDY), studied),
}
