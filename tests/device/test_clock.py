"""With how many threads, and by which clock, runs are timed."""

import time

import pytest

from surgeon.device import clock
from surgeon.device.clock import Clock
from surgeon.errors import InvalidArgument
from surgeon.support import arguments

#: As it is where tests are collected: while they run, it is one thread.
ORIGINAL = clock.usual_threads


def test_threads_are_onnxruntimes_own_unless_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "cpus", lambda: 8)
    monkeypatch.setattr(clock, "usual_threads", lambda: 4)
    assert Clock.of() == Clock(4, wall=True) and Clock.of(cpu_time=True) == Clock(4)
    assert Clock.of(8) == Clock(8, wall=True) and Clock.of(1) == Clock.of(1, cpu_time=True) == Clock(1)
    with pytest.raises(InvalidArgument, match="threads=9: give an integer from 1 to 8, no more than this process has"):
        Clock.of(9)


@pytest.mark.parametrize(("cores", "cpus", "threads"), [(4, 8, 4), (0, 8, 8), (16, 2, 2), (0, 0, 1)])
def test_one_thread_a_core_of_those_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch, cores: int, cpus: int, threads: int
) -> None:
    monkeypatch.setattr(clock, "_cores", lambda: cores)
    monkeypatch.setattr(arguments, "cpus", lambda: cpus)
    assert ORIGINAL() == threads


def test_only_several_threads_on_the_wall_spin() -> None:
    assert [each.spin for each in (Clock(1), Clock(2), Clock(2, wall=True))] == [False, False, True]
    assert Clock(2, wall=True).seconds() is time.perf_counter and Clock(1).seconds() is time.thread_time
    assert Clock(2).seconds() is time.process_time and str(Clock(2)) == "2 threads, CPU time"
