"""Runs a kit on a device at the other end of an ssh connection. This file alone is sent, as the text of `python -c`.

It reads a line of JSON from stdin, {"token", "files": {name: bytes}, "arguments", "result"}, and then the files'
contents. It runs `python kit.pyz` with the arguments in a temporary folder that holds them, and writes to stdout a line
of the token and {"bytes"}, and its content, each time that the file `result` has changed; and at the end a line of the
token and {"status"}. What the kit prints goes to stderr. When stdin ends, which it does with the connection, the kit is
interrupted. The folder is removed in any case.

Python 3.6 can run it, so that the kit itself can say which one it needs.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from typing import IO, Any

KIT = "kit.pyz"
_OFTEN = 0.2  # seconds between looks at the kit
_SEND = 5.0  # seconds between copies of a result that grows
_PATIENCE = 20.0  # seconds for an interrupted kit to end


def main() -> int:
    """The command: returns its exit status."""
    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    order = json.loads(source.readline().decode())
    folder = tempfile.mkdtemp(prefix="surgeon-kit-")
    try:
        for name, size in order["files"].items():
            _receive(source, os.path.join(folder, os.path.basename(name)), size)
        command = [sys.executable, KIT, *order["arguments"]]
        inside = {**os.environ, "TMPDIR": folder}  # what it leaves there goes too
        child = subprocess.Popen(
            command, cwd=folder, env=inside, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno()
        )
        try:
            threading.Thread(target=_stop_at_end, args=(source, child), daemon=True).start()
            _follow(child, os.path.join(folder, order["result"]), order["token"], sink)
        finally:
            _stop(child)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _receive(source: IO[bytes], path: str, size: int) -> None:
    with open(path, "wb") as file:
        while size > 0:
            content = source.read(min(size, 1 << 20))
            if not content:
                sys.exit("the connection ended while files were sent")
            file.write(content)
            size -= len(content)


def _stop_at_end(source: IO[bytes], child: "subprocess.Popen[bytes]") -> None:
    while os.read(source.fileno(), 4096):  # not its own read, whose lock Python can't end with
        pass
    _stop(child)


def _stop(child: "subprocess.Popen[bytes]") -> None:
    """End the kit, if it runs: by an interruption, after which it cleans up."""
    if child.poll() is not None:
        return
    if os.name == "nt":
        child.terminate()
    else:
        child.send_signal(signal.SIGINT)
    try:
        child.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _follow(child: "subprocess.Popen[bytes]", path: str, token: str, sink: IO[bytes]) -> None:
    """Send the result whenever it has changed, until the kit is done, and then the kit's status."""
    sent, waited, status = -1, 0.0, None
    while status is None:
        try:
            status = child.wait(_OFTEN)
        except subprocess.TimeoutExpired:
            waited += _OFTEN
        if (status is not None or waited >= _SEND) and os.path.exists(path):
            changed, waited = os.stat(path).st_mtime_ns, 0.0
            if changed != sent:
                sent = changed
                with open(path, "rb") as file:
                    content = file.read()
                _tell(sink, token, {"bytes": len(content)}, content)
    _tell(sink, token, {"status": status})


def _tell(sink: IO[bytes], token: str, what: "dict[str, Any]", content: bytes = b"") -> None:
    sink.write(f"\n{token} {json.dumps(what)}\n".encode() + content)
    sink.flush()


if __name__ == "__main__":
    sys.exit(main())
