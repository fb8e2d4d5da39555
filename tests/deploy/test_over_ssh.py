"""A kit is run over ssh: against a server of this machine's loopback, and against programs that behave badly."""

from __future__ import annotations

import ast
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from surgeon.deploy.kit import write_kit
from surgeon.deploy.over_ssh import profile_over_ssh
from surgeon.device import remote
from surgeon.device.microbenchmark import Point
from surgeon.device.profile import Profile
from surgeon.errors import BenchmarkError, InvalidArgument, OutputError, ProfileError
from tests.deploy.ssh_server import HOST, Server, lacking, server
from tests.device.tiny import pointwise_conv

POINTS = (Point("conv", (16, 32), pointwise_conv(16, 32)), Point("conv", (16, 16), pointwise_conv(16, 16)))


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kit(tmp_path_factory.mktemp("kit") / "kit.pyz", POINTS)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if reason := lacking():
        pytest.skip(reason)
    with server(tmp_path_factory.mktemp("ssh")) as running:
        yield running


def take(kit: Path, there: Server, path: Path, host: str = HOST, python: str = sys.executable) -> Profile:
    return profile_over_ssh(kit, host, path, remote_python=python, ssh_config=there.config)


def test_the_profile_comes_and_nothing_stays(kit: Path, there: Server, tmp_path: Path) -> None:
    profile = take(kit, there, tmp_path / "pi.json")
    assert profile.samples.keys() == {point.key for point in POINTS}
    assert Profile.load(tmp_path / "pi.json") == profile
    assert list(there.temporary.iterdir()) == []


def test_a_profile_that_is_there_is_resumed(kit: Path, there: Server, tmp_path: Path) -> None:
    first = take(kit, there, tmp_path / "pi.json")
    assert take(kit, there, tmp_path / "pi.json").samples == first.samples


def test_a_profile_of_another_machine_is_not_resumed(kit: Path, there: Server, tmp_path: Path) -> None:
    Profile("another CPU", "arch", 1, "1.0").save(tmp_path / "-pi.json")
    with pytest.raises(BenchmarkError, match=r"-pi\.json can't be resumed: .*CPU .* against another CPU"):
        take(kit, there, tmp_path / "-pi.json")


def test_a_python_with_an_odd_name(kit: Path, there: Server, tmp_path: Path) -> None:
    odd = tmp_path / "a b'$(touch x)"
    odd.mkdir()
    (odd / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (odd / "python").chmod(0o755)
    assert take(kit, there, tmp_path / "pi.json", python=str(odd / "python")).samples


@pytest.mark.parametrize(
    ("host", "python", "message"),
    [
        (HOST, "no-such-python", "device can't run no-such-python.*remote_python= names another"),
        (HOST, "false", "device: false ended with the status 1 before it ran the kit.*Python 3.9"),
        ("stranger", "python3", "this machine's ssh failed for stranger: .*Permission denied.*by hand"),
        ("nowhere", "python3", "this machine's ssh failed for nowhere: .*refused"),
    ],
)
def test_what_fails_is_said_with_its_side(
    kit: Path, there: Server, tmp_path: Path, host: str, python: str, message: str
) -> None:
    with pytest.raises(BenchmarkError, match=message):
        take(kit, there, tmp_path / "pi.json", host, python)
    assert list(tmp_path.iterdir()) == []
    assert list(there.temporary.iterdir()) == []


def test_an_error_of_the_kit_is_told(there: Server, tmp_path: Path) -> None:
    bad = write_kit(tmp_path / "bad.pyz", [Point("conv", (16, 32), b"no model")])
    with pytest.raises(BenchmarkError, match=r"device: the kit ended there with the status 1: .*conv at 16, 32"):
        take(bad, there, tmp_path / "pi.json")
    assert list(there.temporary.iterdir()) == []


SLOW = """
import sys
from surgeon.deploy.over_ssh import profile_over_ssh
kit, host, path, config = sys.argv[1:]
profile_over_ssh(kit, host, path, remote_python=sys.executable, ssh_config=config)
"""


def test_nothing_stays_there_when_this_side_is_killed(there: Server, tmp_path: Path) -> None:
    endless = tmp_path / "kit.pyz"
    endless.mkdir()
    (endless / "__main__.py").write_text("import time\nwhile True: time.sleep(0.1)\n")
    subprocess.run([sys.executable, "-m", "zipapp", endless, "-o", tmp_path / "endless.pyz"], check=True)
    command = [sys.executable, "-c", SLOW, tmp_path / "endless.pyz", HOST, tmp_path / "pi.json", there.config]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    wait_until(lambda: any(there.temporary.iterdir()))
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(there.temporary.iterdir()))


def wait_until(done: object, seconds: float = 60.0) -> None:
    assert callable(done)
    for _ in range(int(seconds / 0.05)):
        if done():
            return
        time.sleep(0.05)
    pytest.fail("it does not happen")


@pytest.mark.parametrize("host", ["", "-oProxyCommand=touch x", "a b", "pi\n"])
def test_a_host_that_is_none(kit: Path, tmp_path: Path, host: str) -> None:
    with pytest.raises(InvalidArgument, match="give a name that ssh knows"):
        profile_over_ssh(kit, host, tmp_path / "pi.json")


def test_places_are_checked_before_anything_is_sent(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(OutputError, match="does not exist"):
        profile_over_ssh(kit, "pi", tmp_path / "none" / "pi.json")
    with pytest.raises(InvalidArgument, match="name it otherwise than a kit"):
        profile_over_ssh(kit, "pi", tmp_path / "pi.pyz")
    with pytest.raises(InvalidArgument, match="can't be read as a kit"):
        profile_over_ssh(tmp_path / "none.pyz", "pi", tmp_path / "pi.json")
    (tmp_path / "text.json").write_text("no profile")
    with pytest.raises(ProfileError, match="is not a profile"):
        profile_over_ssh(kit, "pi", tmp_path / "text.json")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidArgument, match="no ssh on this machine"):
        profile_over_ssh(kit, "pi", tmp_path / "pi.json")


# Programs in the place of ssh, which get the order on stdin; {token} is the order's.
BAD_HOSTS = [
    ('tell({"bytes": 2}, b"{}")', 0, ProfileError, "what pi sent is no profile"),
    ('tell({"bytes": 1 << 40})', 0, BenchmarkError, "pi answered what was not asked for"),
    ('tell({"bytes": -1})', 0, BenchmarkError, "pi answered what was not asked for"),
    ('tell({"path": "/etc/passwd"})', 0, BenchmarkError, "pi answered what was not asked for"),
    ('tell("text")', 0, BenchmarkError, "pi answered what was not asked for"),
    ('tell({"status": True})', 0, BenchmarkError, "pi answered what was not asked for"),
    ('say(token + " {{\\n")', 0, BenchmarkError, "pi answered what can't be read"),
    ('tell({"status": 0})', 0, BenchmarkError, "pi: the kit ended there with the status 0"),
    ('tell({"bytes": 100}, b"cut off")', 255, BenchmarkError, "ssh failed for pi"),
    ('say("0123 {}\\n")', 3, BenchmarkError, "pi: python3 ended with the status 3"),
    ('sys.stderr.write("\\x1b]0;evil\\x07 oops\\n")', 3, BenchmarkError, r": \]0;evil oops; Python 3.9"),
]


@pytest.mark.parametrize(("answer", "status", "error", "message"), BAD_HOSTS)
def test_what_a_host_sends_is_checked(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, status: int,
    error: type[Exception], message: str,
) -> None:
    fake = tmp_path / "bin" / "ssh"
    fake.parent.mkdir()
    fake.write_text(f"""#!{sys.executable}
import json, sys
token = json.loads(sys.stdin.readline())["token"]
def say(text): sys.stdout.write(text); sys.stdout.flush()
def tell(what, content=b""):
    say("Welcome\\n" + token + " " + json.dumps(what) + "\\n"); sys.stdout.buffer.write(content)
{answer}
sys.exit({status})
""")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(error, match=message):
        profile_over_ssh(kit, "pi", tmp_path / "pi.json")
    assert not (tmp_path / "pi.json").exists()


def test_a_connection_that_ends_early_leaves_what_was_measured(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Profile.here()
    half.save(tmp_path / "half.json")
    fake = tmp_path / "bin" / "ssh"
    fake.parent.mkdir()
    fake.write_text(f"""#!{sys.executable}
import json, sys
token = json.loads(sys.stdin.readline())["token"]
content = open({str(tmp_path / "half.json")!r}, "rb").read()
sys.stdout.write(token + " " + json.dumps({{"bytes": len(content)}}) + "\\n"); sys.stdout.flush()
sys.stdout.buffer.write(content)
sys.exit(255)
""")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(BenchmarkError, match=r"connection ended before the kit was done.*the same command resumes"):
        profile_over_ssh(kit, "pi", tmp_path / "pi.json")
    assert Profile.load(tmp_path / "pi.json") == half


def test_what_is_sent_needs_the_standard_library_alone() -> None:
    tree = ast.parse(Path(remote.__file__).read_text(encoding="utf-8"), feature_version=(3, 6))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert found <= sys.stdlib_module_names
