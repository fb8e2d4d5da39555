"""The README and the page of benchmarks print what was measured."""

from pathlib import Path

import pytest

from benchmarks.picture import PICTURE, RESULTS, draw
from benchmarks.readme import README, TABLES, jobs, render
from benchmarks.rows import last


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_tables_are_those_of_the_rows(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == render(path), "run python -m benchmarks.readme"


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120
    assert len(jobs().splitlines()) <= 2 + 8


def test_the_picture_is_that_of_the_rows() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(last(RESULTS, "row")), "run python -m benchmarks.picture --table"
