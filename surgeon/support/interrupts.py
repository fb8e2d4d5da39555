"""What Ctrl-C, SIGTERM and SIGHUP do to the command line, and how they are held back where that would do damage.

Imports only small parts of the standard library: it is in force before torch is imported, which takes seconds.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from contextlib import contextmanager

TYPE_CHECKING = False  # not from typing, whose import takes time in which signals aren't handled yet
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import Any

#: The message for each signal; the exit code is 128 more than its number.
_WORDS = {
    getattr(signal, name): word
    for name, word in (("SIGINT", "interrupted"), ("SIGTERM", "terminated"), ("SIGHUP", "terminated"))
    if hasattr(signal, name)  # SIGHUP is missing on Windows
}
_RAISED_AGAIN = 0.05  # seconds
_came: list[int] = []  # the signals that asked the command to end
_again: list[int] = []  # those that this process itself raises a second time


class Interrupted(BaseException):
    """The command was asked to end. Neither an Exception nor a KeyboardInterrupt, which libraries catch themselves."""


def end_at_once(quiet: bool = False) -> None:
    """From here on a signal ends the process, with one line on stderr unless it is to be `quiet`.

    For code that leaves nothing to clean up: an exception in the middle of an import, or of a callback from C++, may
    be lost or end in a traceback.
    """

    def handle(number: int, _: FrameType | None) -> None:
        if not quiet and not _came:
            _say(number)
        os._exit(128 + number)

    _install(handle)


def unwind(command: Callable[[], object], quiet: bool = False) -> None:
    """Call `command`, which a signal unwinds: its files are cleaned up, one line is printed, and the process exits.

    A second signal ends the process at once. The exit code is 130 after Ctrl-C, 143 after SIGTERM.
    """
    before = sys.unraisablehook

    def handle(number: int, _: FrameType | None) -> None:
        if number in _again:
            _again.remove(number)
        elif _came:  # twice: the next run removes what is left
            _say(_came[0])
            os._exit(128 + number)
        else:
            _came.append(number)
        raise Interrupted

    def lost(unraisable: Any) -> None:
        """Raise it again where Python had to drop it, such as inside of a finalizer."""
        if not isinstance(unraisable.exc_value, Interrupted):
            before(unraisable)
            return
        _again.append(_came[0])
        timer = threading.Timer(_RAISED_AGAIN, _thread.interrupt_main, (_came[0],))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = lost
    _install(handle)
    try:
        command()
    except BaseException:
        if not _came:  # else it stems from the signal
            raise
    finally:
        end_at_once(quiet)
        sys.unraisablehook = before
    if _came:
        if not quiet:
            _say(_came[0])
        sys.exit(128 + _came[0])


@contextmanager
def held() -> Iterator[None]:
    """Hold signals back until the block is done.

    >>> done, before = [], signal.signal(signal.SIGINT, signal.default_int_handler)
    >>> try:
    ...     with held():
    ...         signal.raise_signal(signal.SIGINT)
    ...         done.append("whole")
    ... except KeyboardInterrupt:
    ...     print(done)
    ['whole']
    >>> signal.signal(signal.SIGINT, before) is signal.default_int_handler
    True
    """
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield
        return
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in _WORDS}
    before = {number: found for number, found in handlers.items() if found not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)


def _install(handle: Callable[[int, FrameType | None], None]) -> None:
    if threading.current_thread() is not threading.main_thread():  # only there can it be done
        return
    for number in _WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's background jobs have it
            signal.signal(number, handle)


def _say(number: int) -> None:
    text = f"surgeon: {_WORDS[signal.Signals(number)]}\n"
    os.write(2, text.encode())  # sys.stderr may be in the middle of a line's lock
