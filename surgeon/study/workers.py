"""Where runs are carried out: in this process, in several processes on this machine, or on a Ray cluster."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from surgeon.errors import InvalidArgument, SurgeonError
from surgeon.study.method import carry_out
from surgeon.study.runs import Run
from surgeon.study.store import Store, store
from surgeon.study.task import Task, load
from surgeon.study.training import dense
from surgeon.support import interrupts

Progress = Callable[[], object]

_WORKER = "import sys; from surgeon.study.workers import main; main(sys.argv[1:])"
PATIENCE = 10.0
"""Seconds that a worker has to clean up."""


def attempt(task: Task, run: Run, place: Store) -> None:
    """Carry out a run and write its row; if it fails, the row says why."""
    settings, _, _ = place.read()
    try:
        row = carry_out(task, run, place, settings["measure"])
    except Exception as error:  # noqa: BLE001  (the user's own code may raise anything, and other runs go on)
        row = {"error": f"{type(error).__name__}: {error}"}
    place.write(run, row)


def prepare(task: Task, run: Run, place: Store) -> None:
    dense(task, run, place.dense(run))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """A context in which torch computes on `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def here(task: Task, runs: Iterable[Run], place: Store, progress: Progress) -> None:
    for run in runs:
        attempt(task, run, place)
        progress()


def in_processes(runs: Sequence[Run], place: Store, jobs: int, progress: Progress) -> None:
    """Carry out the runs in `jobs` processes on this machine, once the dense models that they start from are trained.

    Raises:
        SurgeonError: a process ended before its work was done.
    """
    for job, part in _phases(runs, place):
        count = min(jobs, len(part))
        keys = [",".join(run.key for run in part[index::count]) for index in range(count)]
        command = [sys.executable, "-c", _WORKER, str(place.folder), job]
        environment = {**os.environ, "PYTHONPATH": _python_path()}
        # A worker ends when its standard input is closed, and so with this process, even if that is killed.
        processes = [
            subprocess.Popen(
                [*command, key], stdin=subprocess.PIPE, env=environment, stdout=subprocess.DEVNULL,
                process_group=0,  # so that Ctrl-C in a terminal reaches this process only, which ends the workers
            )
            for key in keys
        ]
        try:
            while any(process.poll() is None for process in processes):
                time.sleep(0.2)
                progress()
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
                process.kill()
                process.wait()
                assert process.stdin is not None
                process.stdin.close()
        if bad := [process.returncode for process in processes if process.returncode != 0]:
            raise SurgeonError(f"a process of the study ended with code {bad[0]}; start the study again to resume it")


def on_ray(runs: Sequence[Run], place: Store, address: str | None, progress: Progress) -> None:
    """Carry out the runs on a Ray cluster, whose machines can all access the study's folder and the task.

    Without an address, a cluster is started on this machine.

    Raises:
        InvalidArgument: ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise InvalidArgument(f'running on a cluster needs ray: pip install "model-surgeon[ray]" ({error})') from error
    own = not ray.is_initialized()
    if own:
        try:
            own_machine: dict[str, Any] = {
                "include_dashboard": False, "runtime_env": {"env_vars": {"PYTHONPATH": _python_path()}},
            }
            options = {} if address else own_machine
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InvalidArgument(f"no Ray cluster at {address!r}: {error}") from error
    try:
        for job, part in _phases(runs, place):
            remote = ray.remote(num_cpus=1)(work)
            waiting = [remote.remote(str(place.folder), job, [run.key]) for run in part]
            while waiting:
                done, waiting = ray.wait(waiting, timeout=1.0)
                ray.get(done)
                progress()
    finally:
        if own:
            ray.shutdown()


def _phases(runs: Sequence[Run], place: Store) -> tuple[tuple[str, Sequence[Run]], ...]:
    """The jobs in order: first a run for each dense model, which is trained, then all runs."""
    return ("prepare", list({place.dense(run): run for run in runs}.values())), ("attempt", runs)


def work(folder: str, job: str, keys: Iterable[str]) -> None:
    """Do a job for the runs with these keys; called in a process of its own."""
    place = store(folder)
    settings, runs, root = place.read()
    os.chdir(root)
    task = load(settings["task"])
    chosen = {run.key: run for run in runs}
    with threads(settings["threads"]):
        for key in keys:
            (prepare if job == "prepare" else attempt)(task, chosen[key], place)


def _python_path() -> str:
    """The PYTHONPATH for workers, with which they find surgeon even if it is not installed."""
    root = str(Path(__file__).parents[2])
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(1)


def main(arguments: Sequence[str]) -> None:
    """The entry point of a worker process, with arguments FOLDER JOB KEY,KEY…."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    folder, job, keys = arguments
    interrupts.unwind(lambda: work(folder, job, keys.split(",")), quiet=True)
