"""Runs a kit on another machine over the system's ssh, and fetches the profile that it writes."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from surgeon.device import remote
from surgeon.device.profile import Profile
from surgeon.errors import BenchmarkError, InvalidArgument, OutputError, ProfileError
from surgeon.support.files import replace
from surgeon.support.opening import MIB, Unfit, read_bytes
from surgeon.support.progress import relay
from surgeon.support.scratch import temporary_folder
from surgeon.support.strict_json import loads

_MOST_BYTES: Final = 64 * MIB
_MOST_KIT: Final = 1 << 32
_LONGEST_LINE: Final = 4096
#: Exit statuses of ssh where it fails itself, and of a shell that does not find or can't run a command.
_SSH_FAILED, _NOT_FOUND, _NOT_RUN = 255, 127, 126


def profile_over_ssh(
    kit: str | os.PathLike[str],
    host: str,
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    remote_python: str = "python3",
    ssh_config: str | os.PathLike[str] | None = None,
) -> Profile:
    """Run a kit on `host`, and write the profile that it takes there to `path`, also while it is taken.

    `host` is what ssh takes: a name of its configuration, `user@name` or `ssh://user@name:port`; ports, keys and jump
    hosts stand in that configuration, or in the file `ssh_config`. The host needs Python, numpy and onnxruntime; its
    Python is `remote_python`. The kit, and the profile at `path` if there is one, which is resumed, are copied into a
    temporary folder there that is removed afterwards, whatever happens. What the host sends must be a profile;
    nothing of it is run. What it prints is shown as progress.

    Raises:
        InvalidArgument: `host` is no host, or this machine has no ssh.
        BenchmarkError: the host can't be reached, the connection ends too early, or the kit fails there.
        ProfileError: what is at `path`, or what the host sends, is no profile.
        OutputError: `path` can't be written.

    >>> profile_over_ssh("kit.pyz", "pi@raspberrypi", "pi.json")    # doctest: +SKIP
    """
    program = require_ssh(host)
    if not remote_python or not remote_python.isprintable():
        raise InvalidArgument(f"remote_python={remote_python!r}: give the name or path of a Python on {host}")
    target = Path(path)
    if target.suffix == ".pyz":
        raise InvalidArgument(f"path={str(path)!r}: this is where the profile goes; name it otherwise than a kit")
    if not target.parent.is_dir():
        raise OutputError(f"{target} can't be written: the folder {target.parent} does not exist")
    try:
        files = {remote.KIT: read_bytes(kit, _MOST_KIT)}
    except Unfit as error:
        raise InvalidArgument(f"{os.fspath(kit)} can't be read as a kit: {error}") from error
    if target.exists():
        Profile.load(target)  # to fail before anything is sent
        files[target.name] = read_bytes(target)
    arguments = [f"--output={target.name}", *([] if threads is None else [f"--threads={threads}"])]
    code = Path(remote.__file__).read_text(encoding="utf-8")
    command = [program, "-T", *(["-F", os.fspath(ssh_config)] if ssh_config is not None else []), "--", host]
    command.append(f"{shlex.quote(remote_python)} -c {shlex.quote(code)}")
    with _running(command) as (process, last):
        status, got = _exchange(process, files, arguments, target, host)
    _judge(status, got, process.returncode, last(), host, remote_python, target)
    return Profile.load(target)


def require_ssh(host: str) -> str:
    """The path of ssh. Raises `InvalidArgument` if there is none on this machine, or `host` is nothing to give it."""
    program = shutil.which("ssh")
    if program is None:
        raise InvalidArgument("there is no ssh on this machine: install OpenSSH's client, or copy the kit by hand")
    if not host or host.startswith("-") or any(not letter.isprintable() or letter.isspace() for letter in host):
        raise InvalidArgument(f"host {host!r}: give a name that ssh knows, user@name, or ssh://user@name:port")
    return program


@contextmanager
def _running(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """ssh, and a function that tells the last line that came over its stderr; it has ended after the block."""
    lines: deque[str] = deque(maxlen=1)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def listen() -> None:
        assert process.stderr is not None
        while content := process.stderr.readline(_LONGEST_LINE):
            line = _plain(content)
            if line:
                lines.append(line)
                relay(line)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield process, lambda: lines[-1] if lines else ""
        assert process.stdin is not None
        _quietly(process.stdin.close)  # the other side ends when its stdin does
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()
        listener.join(1)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                _quietly(pipe.close)


def _exchange(
    process: subprocess.Popen[bytes], files: dict[str, bytes], arguments: Sequence[str], target: Path, host: str
) -> tuple[int | None, bool]:
    """Send the files, and take what comes back: the kit's exit status there, if it ended, and whether a profile came.

    stdin stays open meanwhile: its end is how the other side learns that this one is gone.
    """
    assert process.stdin is not None and process.stdout is not None
    token = secrets.token_hex(16)
    sizes = {name: len(content) for name, content in files.items()}
    order = {"token": token, "files": sizes, "arguments": list(arguments), "result": target.name}
    parts = [json.dumps(order).encode() + b"\n", *files.values()]
    sender = threading.Thread(target=_send, args=(process.stdin, parts), daemon=True)
    sender.start()
    status, got = None, False
    while status is None and (line := process.stdout.readline(_LONGEST_LINE)):
        if not line.startswith(token.encode() + b" "):
            continue  # what a login script prints
        told = _told(line[len(token) + 1 :], host)
        status = told.get("status")
        if "bytes" in told:
            content = process.stdout.read(told["bytes"])
            if len(content) == told["bytes"]:
                _keep(content, target, host)
                got = True
    return status, got


def _send(pipe: IO[bytes], parts: Sequence[bytes]) -> None:
    def send() -> None:
        for part in parts:
            pipe.write(part)
        pipe.flush()

    _quietly(send)


def _quietly(step: Callable[[], object]) -> None:
    """A step on a pipe that the other side may have closed: what went wrong there is told by its status."""
    try:
        step()
    except (BrokenPipeError, ConnectionResetError, ValueError):
        return


def _told(text: bytes, host: str) -> dict[str, int]:
    """What a line with the token says: {"bytes"} or {"status"}."""
    try:
        found: Any = loads(text)
    except Unfit as error:
        raise BenchmarkError(f"{host} answered what can't be read: {error}") from error
    fits = isinstance(found, dict) and len(found) == 1 and all(type(value) is int for value in found.values())
    if not fits or not found.keys() <= {"bytes", "status"} or not 0 <= found.get("bytes", 0) <= _MOST_BYTES:
        raise BenchmarkError(f"{host} answered what was not asked for: {_plain(text)[:80]}")
    return found


def _keep(content: bytes, target: Path, host: str) -> None:
    """Put a profile that came in place, once it is known to be one."""
    with temporary_folder() as folder:
        candidate = folder / target.name
        candidate.write_bytes(content)
        try:
            Profile.load(candidate)
        except ProfileError as error:
            raise ProfileError(f"what {host} sent is no profile: {error}") from error
    with replace(target) as temporary:
        temporary.write_bytes(content)


def _judge(status: int | None, got: bool, code: int, last: str, host: str, python: str, target: Path) -> None:
    """Raise an error that says what failed on which side, if anything did."""
    said = f": {last}" if last else ""
    if status == 0 and got:
        return
    if status is not None:
        raise BenchmarkError(f"{host}: the kit ended there with the status {status}{said}")
    if got:
        raise BenchmarkError(
            f"{host}: the connection ended before the kit was done{said}; {target} holds what was measured until then, "
            "and the same command resumes"
        )
    if code == _SSH_FAILED:
        raise BenchmarkError(f"this machine's ssh failed for {host}{said}; try `ssh {shlex.quote(host)}` by hand")
    if code in (_NOT_FOUND, _NOT_RUN):
        raise BenchmarkError(f"{host} can't run {python}{said}; remote_python= names another Python there")
    raise BenchmarkError(
        f"{host}: {python} ended with the status {code} before it ran the kit{said}; Python 3.9 or later is needed "
        "there, with numpy and onnxruntime; remote_python= names another"
    )


def _plain(content: bytes) -> str:
    """A line without what could control a terminal."""
    return "".join(letter for letter in content.decode("utf-8", "replace") if letter.isprintable()).rstrip()
