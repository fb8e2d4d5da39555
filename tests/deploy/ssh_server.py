"""An ssh server of this machine's loopback, with keys of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HOST = "device"


@dataclass(frozen=True)
class Server:
    """A running server: ssh's configuration that leads to `HOST`, and the folder for temporary files there."""

    config: Path
    temporary: Path


def lacking() -> str | None:
    """Why no server can be run here; None if one can."""
    for program in ("ssh", "ssh-keygen", "sshd"):
        if _program(program) is None:
            return f"there is no {program} here"
    if os.geteuid() == 0 and not any(entry.pw_name == "sshd" for entry in pwd.getpwall()):
        return "root's sshd needs a user sshd, which openssh-server makes"
    return None


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """A server of the current user's own, which takes one key and listens on the loopback alone."""
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    temporary = folder / "there"
    temporary.mkdir()
    port = _free_port()
    log = folder / "log"
    (folder / "sshd_config").write_text(f"""
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
SetEnv TMPDIR={temporary}
""")
    key = (folder / "host.pub").read_text()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {key}")
    config = folder / "ssh_config"
    config.write_text(f"""
Host {HOST}
    HostName 127.0.0.1
    Port {port}
    User {pwd.getpwuid(os.geteuid()).pw_name}
    IdentityFile {folder}/user
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known
    BatchMode yes
Host stranger
    HostName 127.0.0.1
    Port {port}
    IdentityFile {folder}/none
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known
    BatchMode yes
Host nowhere
    HostName 127.0.0.1
    Port 1
    BatchMode yes
""")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where root's sshd locks parts of itself up
    program = _program("sshd")
    assert program is not None
    process = subprocess.Popen([program, "-D", "-f", str(folder / "sshd_config"), "-E", str(log)])
    try:
        _wait(process, port, log)
        yield Server(config, temporary)
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise RuntimeError(f"sshd ended: {log.read_text()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("sshd does not listen")
