"""The command `surgeon study`, as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.commands import call

pytest.importorskip("accelerate")
TASK = f"{Path(__file__).parents[2] / 'testbed' / 'study_tasks.py'}:Blobs"


def test_one_command_runs_a_study_and_goes_on(tmp_path: Path) -> None:
    command = ["study", TASK, "-o", tmp_path, "--ratio", 0.5, "--criterion", "l2", "--seeds", 1]
    command += ["--baseline", "random", "--baseline", "small"]
    result = call(*command)
    assert result.exit_code == 0, result.output
    assert "| l2 | 50% |" in result.stdout
    assert "| random | 50% |" in result.stdout
    assert "| small, from scratch | 50% |" in result.stdout
    assert str(tmp_path / "table.md") in result.stdout
    rows = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    assert len(rows) == 3
    assert call(*command).stdout == result.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()} == rows


def test_runs_are_listed(tmp_path: Path) -> None:
    result = call("study", TASK, "-o", tmp_path / "no", "--ratio", 0.5, "--baseline", "none", "--seeds", 2, "--list")
    assert result.stdout.splitlines() == [
        f"prune-magnitude-0.5-global-one-shot-kept-none-units-s{seed}" for seed in (0, 1)
    ]
    assert not (tmp_path / "no").exists()


def test_a_failure_is_told(tmp_path: Path) -> None:
    task = TASK.replace("Blobs", "Broken")
    result = call("study", task, "-o", tmp_path, "--ratio", 0.8, "--seeds", 1, "--baseline", "none")
    assert result.exit_code == 1
    assert "ArithmeticError: too small to tell" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py:Task", "--ratio", 0.5], "no such file"),
        ([TASK, "--ratio", 2], "ratio"),
        ([TASK, "--ratio", 0.5, "--schedule", "often"], "--schedule 'often'"),
        ([TASK, "--ratio", 0.5, "--baseline", "all"], "baseline 'all'"),
    ],
)
def test_a_mistake_ends_in_one_message(tmp_path: Path, arguments: list[object], message: str) -> None:
    result = call("study", *arguments, "-o", tmp_path / "out")
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr
