"""Files are whole or not there: whenever the process is killed, whatever else lies there, whoever reads meanwhile."""

import itertools
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import surgeon
from surgeon.errors import OutputError
from surgeon.support import exchange, files, interrupts, scratch
from surgeon.training import checkpoint

KILLED = 9


def in_a_child(work: Callable[[], object], dies_at: int | None = None) -> int:
    """The exit code of a forked process that does `work`, and dies before its so-and-so-many-th step on the disk."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        if dies_at is not None:
            _die(dies_at)
        work()
        code = 0
    except SystemExit as error:
        code = int(str(error.code))
    finally:
        os._exit(code)


def _die(at: int) -> None:
    steps = itertools.count()

    def step(event: str, arguments: tuple[Any, ...]) -> None:
        if changes(event, arguments) and next(steps) == at:
            os._exit(KILLED)

    swap = exchange.exchange

    def swapped(one: Path, other: Path) -> None:
        step("os.rename", ())
        swap(one, other)

    exchange.exchange = swapped
    sys.addaudithook(step)


def changes(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event (sys.addaudithook) is of what changes something on the disk."""
    if event == "open":
        return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.chmod", "os.chown")


def put(text: str) -> Callable[[Path], None]:
    """Replace two files that belong together."""

    def write(folder: Path) -> None:
        with files.replace_many(folder) as made:
            for name in ("a", "b"):
                (made / name).write_text(text)

    return write


def put_one(text: str) -> Callable[[Path], None]:
    return lambda folder: files.write_text(folder / "a", text)


def put_beside(text: str) -> Callable[[Path], None]:
    """Replace a file that names another, which holds the text."""

    def write(folder: Path) -> None:
        with files.replace_beside(folder / "a") as made:
            name = files.free_name(made / "a")
            (made / name).write_text(text)
            (made / "a").write_text(name)

    return write


def put_checkpoint(text: str) -> Callable[[Path], None]:
    return lambda folder: checkpoint.write(folder, {"text": text, "size": torch.tensor(len(text))}, step=len(text))


def pair(folder: Path) -> tuple[str, ...]:
    return tuple(files.find(folder, name).read_text() for name in ("a", "b"))


def pair_as_it_lies(folder: Path) -> tuple[str, ...]:
    return (folder / "a").read_text(), (folder / "b").read_text()


def one(folder: Path) -> tuple[str, ...]:
    return ((folder / "a").read_text(),) * 2


def referred(folder: Path) -> tuple[str, ...]:
    return ((folder / (folder / "a").read_text()).read_text(),) * 2


def checkpointed(folder: Path) -> tuple[str, ...]:
    state = checkpoint.read(folder)
    assert state is not None
    assert int(state["size"]) == len(state["text"])
    return (state["text"],) * 2


Writer = Callable[[str], Callable[[Path], None]]
Reader = Callable[[Path], tuple[str, ...]]

# what is replaced, how it is written, how it is read, what else lies there, whether paths can be exchanged
REPLACED: dict[str, tuple[Writer, Reader, tuple[str, ...], bool]] = {
    "a folder": (put, pair_as_it_lies, (), True),
    "a folder with a file of the user": (put, pair_as_it_lies, ("mine",), True),
    "a folder with a folder of the user": (put, pair, ("mine", "deep/mine"), True),
    "a folder where nothing can be exchanged": (put, pair, ("mine",), False),
    "a file": (put_one, one, ("mine",), True),
    "a file and what it refers to": (put_beside, referred, ("mine",), True),
    "a checkpoint": (put_checkpoint, checkpointed, (), True),
}


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("name", REPLACED)
def test_a_process_that_is_killed_leaves_the_old_or_the_new(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, read, others, can_exchange = REPLACED[name]
    if not can_exchange:
        monkeypatch.setattr(exchange, "_RENAMEAT2", None)
    seen = set()
    for at in itertools.count():
        folder = tmp_path / f"{at}" / "out"
        for other in others:
            (folder / other).parent.mkdir(parents=True, exist_ok=True)
            (folder / other).write_text("the user's")
        folder.mkdir(parents=True, exist_ok=True)
        write("old")(folder)
        code = in_a_child(lambda folder=folder: write("newer")(folder), dies_at=at)  # type: ignore[misc]
        text, same = read(folder)
        assert text == same
        assert text in ("old", "newer")
        seen.add(text)
        write("last")(folder)
        assert read(folder) == ("last", "last")
        assert all((folder / other).read_text() == "the user's" for other in others)
        assert not [path for path in everything(folder.parent) if ".surgeon-" in path or path.endswith(".tmp")]
        if code == 0:
            break
        assert code == KILLED
    assert seen == {"old", "newer"}
    assert at > 4  # it died at so many places


@pytest.mark.parametrize("deep", ["out", "a/b/out"])
def test_a_new_folder_is_there_as_a_whole_or_not_at_all(deep: str, tmp_path: Path) -> None:
    for at in itertools.count():
        home = tmp_path / f"{at}"
        home.mkdir()
        code = in_a_child(lambda home=home: put("new")(home / deep), dies_at=at)  # type: ignore[misc]
        assert not (home / deep).exists() or pair(home / deep) == ("new", "new")
        put("last")(home / deep)
        assert pair(home / deep) == ("last", "last")
        assert not [path for path in everything(home) if ".surgeon-" in path]
        if code == 0:
            break


def test_a_living_process_keeps_its_files(tmp_path: Path) -> None:
    with files.replace_many(tmp_path / "out") as made:
        (made / "a").write_text("a")
        assert in_a_child(lambda: put("other")(tmp_path / "out")) == 0
        assert in_a_child(lambda: scratch.sweep(tmp_path)) == 0
        assert (made / "a").is_file()
    assert pair(tmp_path / "out")[0] == "a"


def test_what_only_looks_like_a_leftover_stays(tmp_path: Path) -> None:
    for name in (".surgeon-settings", ".surgeon-1", ".surgeon-notes_of_2024", "surgeon-12345678"):
        (tmp_path / name).mkdir()
    (tmp_path / ".surgeon-12345678").write_text("a file")
    before = everything(tmp_path)
    files.write_text(tmp_path / "a", "text")
    assert everything(tmp_path) == sorted([*before, "a"])


def test_what_the_user_has_there_is_the_same_file_afterwards(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / "mine"
    mine.write_text("the user's")
    (tmp_path / "out" / "link").symlink_to("nowhere")
    (tmp_path / "out").chmod(0o750)
    with mine.open("a") as held:
        before = os.fstat(held.fileno()).st_ino
        put("new")(tmp_path / "out")
        held.write(", and more")
    assert (mine.stat().st_ino, mine.stat().st_nlink) == (before, 1)
    assert mine.read_text() == "the user's, and more"
    assert os.readlink(tmp_path / "out" / "link") == "nowhere"
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


def test_the_current_folder_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    put("old")(Path())
    put("new")(Path())
    assert (pair_as_it_lies(Path()), tmp_path.stat().st_ino) == (("new", "new"), before)


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "far").write_text("old")
    (tmp_path / "out").symlink_to("real")
    (tmp_path / "real" / "a").symlink_to(tmp_path / "far")
    put("new")(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "real" / "a").is_symlink()
    assert (tmp_path / "far").read_text() == (tmp_path / "real" / "b").read_text() == "new"


def test_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    put("old")(tmp_path / "out")
    (tmp_path / "out" / "a").chmod(0o600)
    put("new")(tmp_path / "out")
    files.write_text(tmp_path / "out" / "a", "newer")
    assert stat.S_IMODE((tmp_path / "out" / "a").stat().st_mode) == 0o600
    assert (tmp_path / "out" / "b").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_can_not_be_moved_waits_for_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    put("old")(tmp_path)
    real, moved = os.replace, itertools.count()

    def full(source: str, target: str) -> None:
        if next(moved) == 1:
            raise OSError(5, "Input/output error")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OutputError, match="Input/output error"):
            put("new")(tmp_path)
    assert pair(tmp_path) == ("new", "new")
    scratch.sweep(tmp_path)
    assert pair_as_it_lies(tmp_path) == ("new", "new")
    assert everything(tmp_path) == ["a", "b", "deep"]


def test_a_model_is_loaded_whole_while_it_is_replaced(tmp_path: Path) -> None:
    def net() -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))

    slims = [surgeon.shrink(net(), ratio, example_inputs=torch.zeros(1, 8), align=1) for ratio in (0.25, 0.5)]
    surgeon.save(slims[0], tmp_path / "out")
    sums = [sum(float(value.sum()) for value in slim.state_dict().values()) for slim in slims]

    def replacing() -> None:
        for index in range(20):
            surgeon.save(slims[index % 2], tmp_path / "out")

    child = os.fork()
    if not child:
        try:
            replacing()
        finally:
            os._exit(0)
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        found = surgeon.load(tmp_path / "out", net())
        assert sum(float(value.sum()) for value in found.state_dict().values()) in sums


SIGNALS = [(signal.SIGINT, 130, "surgeon: interrupted\n"), (signal.SIGTERM, 143, "surgeon: terminated\n")]


@pytest.mark.parametrize(("number", "code", "line"), SIGNALS)
def test_a_signal_ends_a_command_in_one_line_with_its_files_put_away(
    number: int, code: int, line: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def work() -> None:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background

        def command() -> None:
            with files.replace_many(tmp_path / "out") as made:
                (made / "a").touch()
                signal.raise_signal(number)

        interrupts.unwind(command)

    assert in_a_child(work) == code
    assert log.read_text() == line
    assert everything(tmp_path) == ["log"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_step_leaves_nothing_behind(number: int, tmp_path: Path) -> None:
    for at in itertools.count():
        folder = tmp_path / f"{at}" / "out"
        folder.parent.mkdir()
        put("old")(folder)

        def work(folder: Path = folder, at: int = at) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            steps = itertools.count()

            def step(event: str, arguments: tuple[Any, ...]) -> None:
                if changes(event, arguments) and next(steps) == at:
                    os.kill(os.getpid(), number)

            sys.addaudithook(step)
            interrupts.unwind(lambda: put("new")(folder), quiet=True)

        code = in_a_child(work)
        assert pair(folder) in (("old", "old"), ("new", "new"))
        assert everything(folder.parent) == ["out", "out/a", "out/b"]
        if code == 0:
            break
        assert code == 128 + number


IMPORTING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
sys.argv = ["surgeon", "inspect", "torchvision:resnet18"]

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            signal.raise_signal(signal.{})

sys.meta_path.insert(0, Interrupting())
from surgeon.__main__ import main
main()
"""


@pytest.mark.parametrize(("number", "code", "line"), SIGNALS)
def test_a_signal_while_torch_is_imported(number: signal.Signals, code: int, line: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(surgeon.__file__).parents[1])}
    command = [sys.executable, "-c", IMPORTING.format(number.name)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr, result.stdout) == (code, line, "")


def test_a_program_that_imports_surgeon_keeps_its_signals() -> None:
    assert signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
