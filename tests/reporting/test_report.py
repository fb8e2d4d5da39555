"""The report of a run, the seconds of its stages, and what is shown while it runs."""

import dataclasses
import io
import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from surgeon.errors import OutputError
from surgeon.groups.coupling import Pinned
from surgeon.reporting.report import ROWS, Change, Report
from surgeon.support import progress
from surgeon.support.progress import collect, stage


@dataclasses.dataclass(frozen=True)
class Found:
    path: Path = Path("slim.onnx")
    deviation: float = float("nan")
    batches: tuple[int, ...] = (1, 2)

    def __str__(self) -> str:
        return "found by somebody"


def report(**changes: object) -> Report:
    made = Report(
        model="Net",
        form="graph",
        form_reason="forward has a literal 400 in a view",
        budget="macs",
        requested=0.5,
        reached=0.4949,
        macs=Change(2_000_000, 1_010_200),
        params=Change(1000, 600),
        groups={"conv1": Change(64, 32), "conv2": Change(64, 64)},
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_the_table() -> None:
    pinned = tuple(Pinned(name, 0, 10, "an output of the model") for name in ("fc.weight", "fc.bias"))
    text = str(report(pinned=pinned, certificate=Found(), seconds={"trace": 1.25, "verify": 0.5}))
    assert text.splitlines() == [
        "Net: 49.5 % of macs removed (50.0 % asked), graph (forward has a literal 400 in a view)",
        "           before      after  removed",
        "MACs    2,000,000  1,010,200   49.5 %",
        "params      1,000        600   40.0 %",
        "conv1          64         32   50.0 %",
        "not cut: 1 of 2 groups",
        "pinned: 2 axes (every reason, and what to do: docs/pinned.md)",
        "     2 an output of the model",
        "found by somebody",
        "seconds: trace 1.2, verify 0.5",
    ]


def test_asked_possible_and_reached_are_told_apart_near_all() -> None:
    made = report(requested=0.9999, possible=0.999953, reached=0.99992, unaligned={"conv1": 16})
    text = str(made)
    assert text.startswith("Net: 99.992 % of macs removed (99.99 % asked, 99.9953 % possible)")
    assert "in parentheses): conv1 32 (16)" in text
    found = json.loads(made.to_json())
    assert (found["requested"], found["possible"], found["reached"]) == (0.9999, 0.999953, 0.99992)


def test_a_long_table_is_cut() -> None:
    text = str(report(groups={f"layer{n}": Change(64, 32) for n in range(ROWS + 3)}))
    assert f"layer{ROWS - 1} " in text
    assert f"layer{ROWS} " not in text
    assert "and 3 more groups" in text


def test_many_reasons_are_counted() -> None:
    text = str(report(pinned=tuple(Pinned("w", 0, 2, f"reason {n}") for n in range(8))))
    assert "reason 4" in text
    assert "reason 5" not in text
    assert "3 for 3 other reasons" in text


def test_equal_reasons_at_several_operators_are_counted_as_one() -> None:
    pins = (Pinned(f"conv{n}.weight", 2, 3, f"conv2d in conv{n}: kernel axis") for n in range(4))
    assert "   4 kernel axis" in str(report(pinned=tuple(pins)))


def test_names_are_not_markup() -> None:
    assert "[red]conv" in str(report(groups={"[red]conv": Change(4, 2)}))


def test_json_has_everything(tmp_path: Path) -> None:
    made = report(
        pinned=(Pinned("fc.weight", 0, 10, "an output of the model"),),
        exports={"slim": Found()},
        seconds={"trace": 1.25},
    )
    made.save(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    assert (read["format"], read["version"]) == ("surgeon-report", 1)
    assert {field.name for field in dataclasses.fields(Report)} <= set(read)
    assert read["groups"]["conv1"] == {"before": 64, "after": 32}
    assert read["pinned"] == [{"tensor": "fc.weight", "axis": 0, "size": 10, "reason": "an output of the model"}]
    assert read["exports"]["slim"] == {"path": "slim.onnx", "deviation": None, "batches": [1, 2]}
    assert read["benchmark"] is None


def test_a_report_that_can_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        report().save(tmp_path / "missing" / "report.json")


def test_nothing_of_nothing() -> None:
    assert Change(0, 0).removed == 0


def test_stages_of_one_name_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    with collect() as seconds:
        for _ in range(2):
            with stage("trace"):
                pass
        with pytest.raises(ZeroDivisionError), stage("fail"):
            _ = 1 / 0
    assert seconds == {"trace": 2, "fail": 1}
    with stage("after"):
        pass
    assert "after" not in seconds


def test_stages_inside_one_another() -> None:
    with collect() as outer:
        with stage("a"), collect() as inner, stage("b"):
            pass
        with stage("c"):
            pass
    assert (list(outer), list(inner)) == (["a", "c"], ["b"])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def wait_for(stream: io.StringIO, text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in stream.getvalue() and time.monotonic() < deadline:
        time.sleep(0.005)


def test_a_long_stage_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "PATIENCE", 0.01)
    with stage("outer"), stage("inner"):
        wait_for(stream, "inner …")
    assert "inner …" in stream.getvalue()
    assert "outer …" not in stream.getvalue()


def test_a_short_stage_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "PATIENCE", 60)
    with stage("short"):
        pass
    assert stream.getvalue() == ""


def test_a_log_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "PATIENCE", 0)
    with stage("long"):
        time.sleep(0.05)
    assert stream.getvalue() == ""
