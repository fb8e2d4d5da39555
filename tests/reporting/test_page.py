"""The page and the pictures of a run: what they show, that they stand alone, and what is refused."""

import builtins
import dataclasses
import importlib.util
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import surgeon
from surgeon.device.explain import BlockingWidth, Explanation, LostBlockedLayout
from surgeon.device.layout import Convolution
from surgeon.device.operator_times import shares
from surgeon.errors import InvalidArgument, OutputError
from surgeon.reporting import milliseconds
from surgeon.reporting.page import write_page
from tests.deploy_nets import conv_net

needs_plot = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="the extra plot is missing")

EXPLAINED = Explanation(
    (LostBlockedLayout(("3.weight",), Convolution("", 33, 33, 33, False), (BlockingWidth("channels", 33, 32, 36),)),),
    2,
    (("Concat", 2),),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `surgeon shrink -o` leaves of a small network."""
    folder = tmp_path_factory.mktemp("run")
    net, x = conv_net(32, 64), torch.randn(2, 3, 16, 16)
    slim, report = surgeon.shrink(net, 0.5, example_inputs=x, return_report=True)
    exports = {
        name: surgeon.export(each, folder / f"{name}.onnx", example_inputs=x)
        for name, each in (("base", net), ("slim", slim))
    }
    verdict = surgeon.benchmark(folder / "base.onnx", folder / "slim.onnx", runs=30)
    dataclasses.replace(report, exports=exports, benchmark=verdict).save(folder / "report.json")
    return folder


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    for file in run.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change(folder: Path, **entries: Any) -> dict[str, Any]:
    """Change entries of the report, take those out that are None, and return it."""
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    report.update(entries)
    report = {key: value for key, value in report.items() if value is not None}
    (folder / "report.json").write_text(json.dumps(report))
    return report


class Reader(HTMLParser):
    """The text of a page, the elements left open, and everything that it refers to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta",):
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@needs_plot
def test_page_and_pictures(folder: Path) -> None:
    before = {file.name for file in folder.iterdir()}
    written = write_page(folder, accuracy={"base": 0.918, "slim": 0.901}, runs=3)
    assert [file.name for file in written] == ["report.html", "latency.png", "widths.png"]
    assert {file.name for file in folder.iterdir()} - before == {file.name for file in written}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in written[1:])
    report = change(folder)
    page = Reader(written[0].read_text(encoding="utf-8"))
    assert page.open == []
    measured, certificate = report["benchmark"], report["certificate"]
    for shown in (
        report["model"],
        f"{measured['ratio']['value']:.2f}×",
        f"{measured['slim']['low']:.3g} ms",
        f"from {measured['base']['low']:.3g} ms",
        measured["decision"],
        f"{certificate['deviation']:.1e}",
        str(certificate["operators"]),
        "accuracy, slim",
        "90.1 %",
        "an output of the model",
        f"Pinned: {len(report['pinned'])} axes",
    ):
        assert shown in page.text, shown


@needs_plot
def test_the_job_and_the_recovery_are_told(folder: Path) -> None:
    job = {
        "name": "top-1", "before": {"value": 0.9234, "low": 0.91, "high": 0.93}, "count": 500, "by": "samples",
        "after": {"value": 0.9187, "low": None, "high": None}, "kept": None, "notes": ["on few samples"],
    }
    recovery = {
        "layers": [], "before": 0.5, "after": 0.1, "samples": 64, "notes": ["labels were not used"],
        "distilled": {"steps": 300, "before": 0.2, "after": 0.1},
    }
    change(folder, metric=job, recovery=recovery)
    page = Reader(write_page(folder, runs=3)[0].read_text())
    assert page.open == []
    for shown in ("top-1, from 0.9234", "By top-1, on 500 samples", "on few samples", "300 steps", "labels were not"):
        assert shown in page.text, shown


@needs_plot
def test_the_page_stands_alone(folder: Path) -> None:
    page = write_page(folder, runs=3)[0].read_text(encoding="utf-8")
    assert all(link.startswith("#") for link in Reader(page).links)
    assert "<script" not in page and "@import" not in page and "url(http" not in page
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 2
    for drawing in drawings:
        names = [element.tag.rpartition("}")[2] for element in ElementTree.fromstring(drawing).iter()]
        assert "path" in names and "metadata" not in names


@needs_plot
def test_latency_against_the_budget(folder: Path, tmp_path: Path) -> None:
    change(folder, latency={"requested": 2.0, "measured": 2.1, "predicted": 1.9})
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    change(other, latency={"requested": 1.0, "measured": 0.9, "predicted": 1.0})
    written = write_page(folder, others=[other], runs=3)
    assert written[-1].name == "budget.png" and written[-1].read_bytes().startswith(b"\x89PNG")
    assert "Latency against the budget" in Reader(written[0].read_text()).text


def timed(**entries: Any) -> dict[str, Any]:
    """A report's latency: three operators, of which changes of layout are two."""
    operators = [
        {"label": "stem$1", "before": 4.0, "after": 1.0, "least": 0.25},
        {"label": "layout of stem$1", "before": 0.5, "after": 0.5, "least": 0.1},
        {"label": "layout of head", "before": 0.5, "after": 0.25, "least": 0.15},
        {"label": "onnxruntime itself", "before": 0.5, "after": 0.5, "least": 0.5},
    ]
    parts = [{"shapes": "8×3×16×16", "weight": 1.0, "base": 5.5, "predicted": 2.25, "measured": None}]
    return {
        "device": "a CPU", "threads": 2, "clock": "wall time", "requested": 2.5, "base": 5.5, "predicted": 2.25,
        "measured": None, "operators": operators, "parts": parts, **entries,
    }


@needs_plot
def test_milliseconds_by_operator_and_what_no_widths_touch(folder: Path) -> None:
    change(folder, latency=timed())
    written = write_page(folder, runs=3)
    assert [file.name for file in written] == ["report.html", "latency.png", "operators.png", "widths.png"]
    page = Reader(written[0].read_text())
    assert "Of 2.25 ms, 1 ms stay at whatever widths: 0.5 ms in onnxruntime itself, 0.25 ms in" in page.text
    assert "2 threads, wall time" in page.text and "8×3×16×16, 100% of all runs" in page.text and page.open == []
    change(folder, latency=timed(operators=[{"label": "stem", "before": -1.0, "after": 1.0, "least": 0.0}]))
    with pytest.raises(InvalidArgument, match="holds an entry of another kind"):
        write_page(folder, runs=3)


def test_operators_add_up_to_what_was_measured() -> None:
    found = milliseconds.rows(timed(measured=4.5, base=11.0))
    assert [row.label for row in found] == ["stem$1", "changes of layout", "onnxruntime itself"]
    assert sum(row.before for row in found) == pytest.approx(11.0)
    assert sum(row.after for row in found) == pytest.approx(4.5)
    assert sum(row.least for row in found) == pytest.approx(2.0)
    assert milliseconds.rows({"requested": 2.0}) == []


@needs_plot
def test_a_slowdown_is_explained_on_the_page(folder: Path) -> None:
    report = change(folder)
    measured = {**report["benchmark"], "decision": "slower", "explanation": dataclasses.asdict(EXPLAINED)}
    change(folder, benchmark=measured)
    text = Reader(write_page(folder, runs=3)[0].read_text()).text
    assert "The slim model is slower." in text and str(EXPLAINED) in text


@needs_plot
def test_a_report_without_measurements(folder: Path) -> None:
    change(folder, benchmark=None, certificate=None, exports={}, seconds={}, pinned=[])
    (folder / "base.onnx").unlink()
    written = write_page(folder)
    assert [file.name for file in written] == ["report.html", "widths.png"]
    text = Reader(written[0].read_text()).text
    assert "MACs" in text and "Verdict" not in text and "Certificate" not in text


@needs_plot
def test_names_are_escaped(folder: Path) -> None:
    change(folder, model="<b>Net & Co</b>")
    page = write_page(folder, runs=3)[0].read_text()
    assert "&lt;b&gt;Net &amp; Co&lt;/b&gt;" in page and "<b>Net" not in page


BAD: dict[str, tuple[str, str]] = {
    "cut short": ('{"format": "surg', "is not a report"),
    "a list": ("[]", "is not a report"),
    "a plan": ('{"format": "surgeon-plan", "version": 1}', 'must be "surgeon-report"'),
    "newer": ('{"format": "surgeon-report", "version": 99}', "version 99, this surgeon reads up to 1"),
    "bare": ('{"format": "surgeon-report", "version": 1}', "lacks budget, groups, macs"),
}


@needs_plot
@pytest.mark.parametrize("name", BAD)
def test_no_report(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(InvalidArgument, match=message):
        write_page(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


@needs_plot
def test_a_folder_without_a_report(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="name a folder of surgeon shrink -o"):
        write_page(tmp_path)


def test_the_extra_is_named_where_matplotlib_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InvalidArgument, match=r'pip install "model-surgeon\[plot\]"'):
        write_page(folder)


@needs_plot
def test_what_was_there_survives_a_failure(folder: Path) -> None:
    (folder / "report.html").mkdir()
    before = sorted(file.name for file in folder.iterdir())
    with pytest.raises(OutputError, match="it is a folder"):
        write_page(folder, runs=3)
    assert sorted(file.name for file in folder.iterdir()) == before


def test_operators_by_the_names_of_their_weights(run: Path) -> None:
    found = shares(run / "base.onnx", runs=3)
    kinds = {share.name: share.kind for share in found}
    assert kinds["0"].endswith("3×3") and kinds["3"].endswith("3×3 depthwise") and kinds["6"].endswith("1×1")
    assert kinds["10"] == "Gemm" and all(share.us >= 0 for share in found)
    # base and slim are compared by these names
    assert {"0", "3", "6", "10"} <= {share.name for share in shares(run / "slim.onnx", runs=3)}
