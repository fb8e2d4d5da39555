"""Studies: their runs, that they resume, that processes don't matter, and what they write."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.errors import InvalidArgument
from surgeon.study import Run, Study, grid, latency
from surgeon.study.store import Row
from surgeon.study.table import markdown, points
from surgeon.study.task import load
from surgeon.training import loop
from testbed.study_tasks import Blobs, Broken

pytest.importorskip("accelerate")

TASK = f"{Path(__file__).parents[2] / 'testbed' / 'study_tasks.py'}:Blobs"
ROOT = Path(__file__).parents[2]

# One of each kind.
EVERY = (
    Run(criterion="l1"),
    Run(criterion="l1", survivors="rewound"),
    Run(criterion="l1", survivors="reinitialized"),
    Run(criterion="l2", schedule="steps:3", penalty="l2:1e-4"),
    Run(criterion="taylor", schedule="cubic:4", scope="local"),
    Run(removed="connections", ratio=0.8),
    Run(removed="connections", ratio=0.8, schedule="exponential:3", scope="local", penalty="l1:1e-4"),
    Run(removed="connections", ratio=0.8, criterion="random", survivors="rewound"),
    Run(method="scratch", criterion="l1"),
    Run(method="small"),
    Run(method="dense", ratio=0.0),
)


def told(row: Row) -> dict[str, Any]:
    """A row without what may differ from time to time."""
    return {name: value for name, value in row.items() if name not in ("seconds", "latency")}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of one run of each kind."""
    study = Study(TASK, tmp_path_factory.mktemp("study") / "new", EVERY)
    study.run()
    return study


def test_every_kind_of_run_gives_a_row(done: Study) -> None:
    rows = {row["key"]: row for row in done.rows}
    assert list(rows) == [run.key for run in EVERY]
    assert [row.get("error") for row in rows.values()] == [None] * len(EVERY)
    for run in EVERY:
        row = rows[run.key]
        assert 0.25 < row["after"] <= 1, run.key
        left = row["macs"] / row["dense_macs"]
        match run:
            case Run(removed="connections"):
                assert left == 1
                assert row["params"] / row["dense_params"] == pytest.approx(1 - run.ratio, abs=0.11)  # and biases
            case Run(method="dense"):
                assert left == 1
            case _:
                assert left == pytest.approx(1 - run.ratio, abs=0.04), run.key
        assert (row["before"] is None) == (run.iterative or run.method in ("scratch", "small")), run.key
    assert len({row["dense"] for row in rows.values() if row["run"]["penalty"] == "none"}) == 1
    assert done.pending == ()


def test_survivors_differ_in_their_weights_alone(done: Study) -> None:
    kept, rewound, anew = done.rows[:3]
    assert kept["before"] == rewound["before"] == anew["before"]
    assert kept["macs"] == rewound["macs"] == anew["macs"]


def test_a_criterion_of_gradients_has_the_same_architecture_from_scratch(tmp_path: Path) -> None:
    pruned, scratch = Study(TASK, tmp_path, [Run(criterion="taylor"), Run(method="scratch", criterion="taylor")]).run()
    assert 0.25 < scratch["after"] <= 1
    assert (scratch["macs"], scratch["params"]) == (pruned["macs"], pruned["params"])


def test_a_study_is_the_same_in_processes(done: Study, tmp_path: Path) -> None:
    other = Study(TASK, tmp_path, EVERY[:2])
    assert [told(row) for row in other.run(jobs=2)] == [told(row) for row in done.rows[:2]]


def test_a_study_is_the_same_on_a_ray_cluster(done: Study, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    other = Study(TASK, tmp_path, EVERY[2:4])
    assert [told(row) for row in other.run(ray="local")] == [told(row) for row in done.rows[2:4]]


def test_a_task_that_is_an_object_stays_in_this_process(tmp_path: Path) -> None:
    study = Study(Blobs(), tmp_path, EVERY[:1])
    options: dict[str, Any]
    for options in ({"jobs": 2}, {"ray": "local"}):
        with pytest.raises(InvalidArgument, match="other processes import the task"):
            study.run(**options)


def test_what_is_done_is_not_done_again(done: Study, tmp_path: Path) -> None:
    shutil.copytree(done._store.folder, tmp_path / "copy")
    row = tmp_path / "copy" / "rows" / f"{EVERY[0].key}.json"
    row.write_text(row.read_text().replace('"after": ', '"after": 9'))
    more = Study(TASK, tmp_path / "copy", [EVERY[0], replace(EVERY[0], ratio=0.25)])
    rows = more.run()
    assert rows[0]["after"] >= 9
    assert [row["run"]["ratio"] for row in rows] == [0.5, 0.25]


def test_a_run_goes_on_within_itself(done: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is interrupted after the first epoch of retraining, and is not trained from the start again."""
    shutil.copytree(done._store.folder / "dense", tmp_path / "dense")
    run, save, step = EVERY[3], loop._State.save, loop._step
    steps = 0

    def interrupt(state: Any, folder: Any) -> None:
        save(state, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._State, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Study(TASK, tmp_path, [run]).run()

    def counted(*given: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return step(*given)

    monkeypatch.setattr(loop._State, "save", save)
    monkeypatch.setattr(loop, "_step", counted)
    (row,) = Study(TASK, tmp_path, [run]).run()
    assert steps == 10  # an epoch of two
    assert told(row) == told(done.rows[3])
    assert list((tmp_path / "work").iterdir()) == []


def test_a_killed_study_resumes(done: Study, tmp_path: Path) -> None:
    code = (
        f"import torch; torch.set_num_threads(1)\nfrom surgeon.study import Study\n"
        f"from tests.study.test_study import EVERY, TASK\nStudy(TASK, {str(tmp_path)!r}, EVERY[:3]).run(jobs=2)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT)
    while process.poll() is None and not list(tmp_path.glob("rows/*.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    study = Study(TASK, tmp_path, EVERY[:3])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("rows/*.json")}
    assert before
    assert [told(row) for row in study.run()] == [told(row) for row in done.rows[:3]]
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())


def test_a_run_that_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    study = Study(Broken(), tmp_path, [Run(ratio=0.75), Run(ratio=0.1)])
    failed, fine = study.run()
    assert failed["error"] == "ArithmeticError: too small to tell"
    assert "after" in fine
    assert [run.ratio for run in study.pending] == [0.75]
    assert "1 of 2 runs failed" in study.table()
    assert failed["key"] in study.table()


def test_latency_is_measured_and_all_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.2)
    study = Study(TASK, tmp_path, [Run(), Run(ratio=0.75), Run(method="small")], measure=True)
    rows = study.run()
    assert all(row["latency"]["ms"] > 0 and row["latency"]["dense_ms"] > 0 for row in rows)
    assert "speed-up" in study.table()
    names = [path.name for path in study.write()]
    if importlib.util.find_spec("matplotlib"):
        assert names == ["table.md", "metric-macs.svg", "metric-latency.svg"]
        assert (tmp_path / "metric-latency.svg").read_text().startswith("<svg")
    else:
        assert names == ["table.md"]
    assert study.run() == rows  # nothing is measured again


def test_the_table_tells_means_and_spread() -> None:
    def row(ratio: float, seed: int, after: float) -> Row:
        run = asdict(Run(ratio=ratio, seed=seed))
        size = {"macs": 50.0, "dense_macs": 100.0, "params": 30, "dense_params": 60}
        return {"key": "k", "run": run, "dense": 0.9, "before": 0.5, "after": after, **size}

    rows = [row(0.5, 0, 0.8), row(0.5, 1, 0.7), row(0.75, 0, 0.6)]
    assert [len(found) for found in points(rows).values()] == [2, 1]
    assert "| pruned | 50% | 50.0% | 50.0% | 0.5000 ± 0.0000 | 0.7500 ± 0.0500 | 0.1500 ± 0.0500 |" in markdown(rows)
    assert "| pruned | 75% |" in markdown(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "best"}, "criterion='best'"),
        ({"ratio": 1.0}, "ratio"),
        ({"schedule": "steps"}, "schedule='steps'"),
        ({"schedule": "steps:0"}, "schedule='steps:0'"),
        ({"penalty": "l1"}, "penalty='l1'"),
        ({"penalty": "l1:1e"}, "penalty='l1:1e'"),
        ({"seed": -1}, "seed=-1"),
        ({"survivors": "rewound", "schedule": "cubic:3"}, "go with schedule='one-shot'"),
        ({"removed": "connections", "criterion": "taylor"}, "by magnitude or at random"),
        ({"method": "guess"}, "method='guess'"),
    ],
)
def test_a_careless_run_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Run(**options)


def test_the_grid_has_every_run_once() -> None:
    runs = grid(
        criteria=["l1", "random"], ratios=[0.5], schedules=["one-shot", "steps:3"], survivors=["kept", "rewound"],
        removed=["units"], seeds=[4], baselines=["random", "scratch", "small", "dense"],
    )
    assert len({run.key for run in runs}) == len(runs) == 6 + 2 + 1 + 1
    with pytest.raises(InvalidArgument, match="baseline 'none'"):
        grid(baselines=["none"])
    with pytest.raises(InvalidArgument, match="no run"):
        grid(seeds=0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("Blobs", "names no task"),
        ("nowhere.py:Blobs", "no such file"),
        ("no.module:Blobs", "can't be imported"),
        (TASK.replace("Blobs", "Squares"), "has no 'Squares'"),
        (TASK.replace("Blobs", "Odd"), "has no retraining, model, inputs"),
        (TASK.replace("Blobs", "torch"), "has no epochs"),
    ],
)
def test_a_task_that_is_none_is_refused(spec: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        load(spec)


def test_a_task_is_loaded_from_a_file_with_a_dataclass_whose_annotations_are_text(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from testbed.study_tasks import Blobs\n@dataclass\nclass Few(Blobs):\n    epochs: int = 2\n"
    )
    assert load(f"{tmp_path}/task.py:Few").epochs == 2


def test_a_folder_with_another_study_is_refused(done: Study) -> None:
    class Longer(Blobs):
        epochs = 9

    with pytest.raises(InvalidArgument, match="holds a study with task="):
        Study(Longer(), done._store.folder, EVERY)
    with pytest.raises(InvalidArgument, match="holds a study with measure=False"):
        Study(TASK, done._store.folder, EVERY, measure=True)
    assert json.loads(done._store.head.read_text())["settings"]["epochs"] == 3


def test_the_users_generators_and_threads_stay(tmp_path: Path) -> None:
    state, count = torch.get_rng_state(), torch.get_num_threads()
    Study(Blobs(), tmp_path, [Run()], threads=2).run()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == count
