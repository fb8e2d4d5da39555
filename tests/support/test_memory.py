"""What may be held at one time is a share of the memory that there is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from surgeon.support import memory


@pytest.mark.parametrize(
    ("limit", "expected"), [("max\n", 1 << 33), (str(1 << 30), 1 << 29), (str(1 << 60), 1 << 33), (None, 1 << 33)]
)
def test_a_container_may_have_less_than_the_machine(
    limit: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "memory.max"
    if limit is not None:
        path.write_text(limit)
    monkeypatch.setattr(memory, "_LIMITS", (str(path),))
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 22}.__getitem__)
    assert memory.share_of_memory(0.5) == expected


def test_a_machine_that_does_not_say_is_taken_to_have_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LIMITS", ())
    monkeypatch.delattr(os, "sysconf")
    assert memory.share_of_memory(0.25) == memory.UNKNOWN // 4
    monkeypatch.setattr(os, "sysconf", lambda name: -1, raising=False)
    assert memory.share_of_memory(0.25) == memory.UNKNOWN // 4


def test_work_takes_a_part_of_the_share_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LIMITS", ())
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 22}.__getitem__)  # 16 GiB
    assert memory.working_memory() == memory.MOST
    with memory.using_memory(0.5), memory.using_memory(None):
        assert memory.working_memory(0.5) == 1 << 32
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 18}.__getitem__)  # 1 GiB
    assert memory.working_memory() == 1 << 27
