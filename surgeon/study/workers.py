"""Where runs are carried out: in this process, in several of this machine, or on a Ray cluster."""

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
"""Seconds that a worker has to put its files away."""


def attempt(task: Task, run: Run, place: Store) -> None:
    """Carry out a run and write its row; where it fails, the row says why."""
    settings, _, _ = place.read()
    try:
        row = carry_out(task, run, place, settings["measure"])
    except Exception as error:  # noqa: BLE001  (the user's own code may raise anything, and other runs go on)
        row = {"error": f"{type(error).__name__}: {error}"}
    place.write(run, row)


def prepare(task: Task, run: Run, place: Store) -> None:
    """Train the model that a run starts from."""
    dense(task, run, place.dense(run))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside of this torch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def here(task: Task, runs: Iterable[Run], place: Store, progress: Progress) -> None:
    """In this process, one after the other."""
    for run in runs:
        attempt(task, run, place)
        progress()


def in_processes(runs: Sequence[Run], place: Store, jobs: int, progress: Progress) -> None:
    """In `jobs` processes of this machine; each takes every so many-th run, after the models that they start from.

    Raises:
        SurgeonError: a process ended before its work was done.
    """
    starts = list({place.dense(run): run for run in runs}.values())
    for job, part in (("prepare", starts), ("attempt", runs)):
        count = min(jobs, len(part))
        keys = [",".join(run.key for run in part[index::count]) for index in range(count)]
        command = [sys.executable, "-c", _WORKER, str(place.folder), job]
        environment = {**os.environ, "PYTHONPATH": _python_path()}
        # A worker ends when its standard input does, that is, with this process, however that ends.
        processes = [
            subprocess.Popen(
                [*command, key], stdin=subprocess.PIPE, env=environment, stdout=subprocess.DEVNULL,
                process_group=0,  # a terminal's Ctrl-C goes to this process alone, which ends them
            )
            for key in keys
        ]
        try:
            while any(process.poll() is None for process in processes):
                time.sleep(0.2)
                progress()
        finally:
            for process in processes:
                if process.poll() is None:
                    process.terminate()
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
                process.kill()
                process.wait()
                assert process.stdin is not None
                process.stdin.close()
        if bad := [process.returncode for process in processes if process.returncode != 0]:
            raise SurgeonError(f"a process of the study ended with code {bad[0]}; start it again to go on")


def on_ray(runs: Sequence[Run], place: Store, address: str | None, progress: Progress) -> None:
    """On a Ray cluster, whose machines all see the study's folder and the task; without an address, on this machine.

    Raises:
        InvalidArgument: ray is missing, or no cluster is found at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise InvalidArgument(f'a cluster is reached by ray: pip install "surgeon[ray]" ({error})') from error
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
        starts = list({place.dense(run): run for run in runs}.values())
        for job, part in (("prepare", starts), ("attempt", runs)):
            remote = ray.remote(num_cpus=1)(work)
            waiting = [remote.remote(str(place.folder), job, [run.key]) for run in part]
            while waiting:
                done, waiting = ray.wait(waiting, timeout=1.0)
                ray.get(done)
                progress()
    finally:
        if own:
            ray.shutdown()


def work(folder: str, job: str, keys: Iterable[str]) -> None:
    """In a process of its own: prepare or attempt the runs of these keys."""
    place = store(folder)
    settings, runs, root = place.read()
    os.chdir(root)
    task = load(settings["task"])
    chosen = {run.key: run for run in runs}
    with threads(settings["threads"]):
        for key in keys:
            (prepare if job == "prepare" else attempt)(task, chosen[key], place)


def _python_path() -> str:
    """Where other processes of this machine find surgeon, installed or not."""
    root = str(Path(__file__).parents[2])
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(1)


def main(arguments: Sequence[str]) -> None:
    """In a process that was started for it, with arguments FOLDER JOB KEY,KEY…."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    folder, job, keys = arguments
    interrupts.unwind(lambda: work(folder, job, keys.split(",")), quiet=True)
