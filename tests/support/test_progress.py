"""The seconds that are left: right within a third, at whatever pace, where work is counted by what it takes."""

from __future__ import annotations

import threading

import pytest

from surgeon.support import progress
from surgeon.support.progress import _line
from surgeon.support.remaining import Remaining

# The seconds of each step, and the share of the stage at which the estimate has to be right.
PACES = {
    "even": ([1.0] * 40, 0.1),
    "a slow start": ([30.0, *[1.0] * 60], 0.4),
    "slower and slower": ([1.0 + step / 40 for step in range(40)], 0.6),
    "in turns": ([1.0, 3.0] * 20, 0.2),
}


@pytest.mark.parametrize("name", PACES)
def test_seconds_left_are_right_within_a_third(name: str) -> None:
    steps, since = PACES[name]
    remaining, seconds = Remaining(), 0.0
    remaining.add(0.0, 0.0)
    for done, step in enumerate(steps, 1):
        seconds += step
        remaining.add(seconds, done / len(steps))
        left, true = remaining.left(seconds), sum(steps[done:])
        if since <= done / len(steps) < 0.95:
            assert left is not None
            assert 2 / 3 * true <= left <= 4 / 3 * true, (done, left, true)
    assert remaining.left(seconds) == 0.0


def test_time_passes_while_a_step_lasts() -> None:
    remaining = Remaining()
    remaining.add(0.0, 0.0)
    remaining.add(10.0, 0.5)
    assert [remaining.left(seconds) for seconds in (10.0, 14.0, 30.0)] == [10.0, 6.0, 0.0]


def test_what_was_done_before_the_start_tells_no_pace() -> None:
    remaining = Remaining()
    remaining.add(0.1, 0.5)
    assert remaining.left(1.0) is None
    remaining.add(5.1, 0.75)
    assert remaining.left(5.1) == pytest.approx(5.0)


def test_what_is_shown() -> None:
    remaining = Remaining()
    assert _line("recover", 2.0, remaining) == "recover … 0%, 2 s"
    remaining.add(0.0, 0.0)
    remaining.add(10.0, 0.25)
    assert _line("recover", 10.0, remaining) == "recover … 25%, 10 s, about 30 s left"
    assert _line("trace", 3.2, None) == "trace … 3 s"


@pytest.mark.parametrize(
    ("piped", "silent", "shown"), [(False, False, False), (True, False, True), (True, True, False)]
)
def test_a_pipe_gets_lines_where_it_is_asked_for(
    piped: bool, silent: bool, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = threading.Event()

    def line(*_: object) -> str:
        drawn.set()
        return "halfway"

    monkeypatch.setattr(progress, "BETWEEN", 0.01)
    monkeypatch.setattr(progress, "_line", line)
    progress.report_progress(piped=piped, silent=silent)
    try:
        with progress.stage("trace"):
            assert not shown or drawn.wait(10)
    finally:
        progress.report_progress()
    written = capsys.readouterr().err
    assert written.startswith("halfway\n") if shown else written == ""
    assert "\r" not in written
