"""A verdict is read as it was written, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgeon.deploy.verdict_file import load_verdict
from surgeon.device.benchmark import Latency, Verdict
from surgeon.device.explain import BlockingWidth, Explanation, LostBlockedLayout
from surgeon.device.layout import Comparison, Convolution, Layout
from surgeon.device.statistics import Ratio
from surgeon.errors import BenchmarkError

LOST = Convolution("a.weight", 3, 37, 1, False)
SIDES = [Layout((Convolution("a.weight", 3, 64, 1, True),), 1, 0, 0, 1, 1), Layout((LOST,), 0, 1, 0, 0, 0)]
TIMES = Latency(1.0, 1.5, 2.0, 2.5, 3.0, 500.0)
VERDICT = Verdict(
    "slower", Ratio(0.5, 0.4, 0.6), Ratio(1.0, 0.9, 1.1), 0.1, TIMES, TIMES, 1, 30, 2,
    Comparison(SIDES[0], SIDES[1], (LOST,)),
    Explanation(
        (LostBlockedLayout(("a.weight",), LOST, (BlockingWidth("out_channels", 37, 32, None),)),), 1, (("Add", 2),)
    ),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text(VERDICT.to_json())
    found = load_verdict(tmp_path / "verdict.json")
    assert found == VERDICT and str(found) == str(VERDICT)


def changed(**entries: Any) -> str:
    return json.dumps({**json.loads(VERDICT.to_json()), **entries})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "the file is list, not an object"),
        ("{}", "'decision' is missing"),
        (changed(more=1), "'more' is no entry"),
        (changed(decision="perhaps"), "decision is 'perhaps'"),
        (changed(threads=True), "threads is True"),
        (changed(noise="0.1"), "noise is '0.1'"),
        (changed(noise=[0.1]), r"noise is \[0.1\]"),
        (changed(ratio=1.0), "ratio is float, not an object"),
        (changed(ratio={"value": 1, "low": 1}), "ratio.'high' is missing"),
        (changed(explanation={"before": [["Add", 2, 3]]}), r"explanation.before\[0\] is"),
        ('{"noise": NaN}', "it is not valid JSON: NaN is not finite"),
        ("cut", "it is not valid JSON"),
    ],
)
def test_what_is_no_verdict_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(BenchmarkError, match=rf"v\.json is not a verdict: {message}.*`bench --json`"):
        load_verdict(tmp_path / "v.json")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="No such file"):
        load_verdict(tmp_path / "none.json")
