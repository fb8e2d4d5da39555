"""Checks of the arguments of public functions: one for each kind of argument, with the error for a wrong one.

A check takes the name and the value of an argument. It returns the value to use, in a plain type, or raises
`InvalidArgument`, which names the argument, what was given and what is accepted. A bool does not count as a number,
nor a float as an integer; NumPy's integers and floats are accepted as Python's.

`checked` applies a table of checks, by name, to the arguments of a function, or of all methods of a class, before
anything runs. An argument that is its default is not checked, so that a default of None makes it optional. The
checks in `COMMON` don't need torch.

>>> @checked(COMMON)
... def wait(seconds=1.0, *, seed=0):
...     return seconds, seed
>>> wait(2)
(2.0, 0)
>>> wait(seconds=-1)
Traceback (most recent call last):
    ...
surgeon.errors.InvalidArgument: seconds=-1: give a number above 0
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, Final, TypeVar, Union

from surgeon.errors import InvalidArgument

Check = Callable[[str, Any], Any]
MinWidth = Union[float, int, Mapping[str, Union[float, int]], None]
_T = TypeVar("_T", bound=Callable[..., Any])

#: The largest integer that torch and onnxruntime read.
LARGEST: Final = 2**63 - 1
_LONGEST = 60

#: The budgets that a ratio can refer to.
BUDGETS: Final = ("macs", "params", "channels")
SCOPES: Final = ("global", "local", "isomorphic")

#: Arguments that were renamed: the old name and the new one.
RENAMED: Final[Mapping[str, str]] = {"keep": "min_width", "distil": "distill"}


def shown(value: object) -> str:
    """A value as messages show it: short and on one line, even if its own `repr` fails.

    >>> import numpy as np
    >>> shown("a\\nb"), shown(0.5), shown([1, 2]), shown(np.zeros((2, 3)))
    ("'a\\\\nb'", '0.5', 'a list', 'a ndarray of shape (2, 3)')
    """
    kind, shape = type(value).__name__, getattr(type(value), "shape", None) and value.shape  # type: ignore[attr-defined]
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if not isinstance(value, (str, bytes, Real, complex, type(None))) and shape != ():
        if isinstance(value, os.PathLike):
            return repr(os.fspath(value))
        return f"a {kind} of shape {tuple(shape)}" if isinstance(shape, tuple) else f"a {kind}"
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  (a user's class may raise anything; an integer may have too many digits to print)
        return f"a {kind}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def refusal(name: str, value: object, wanted: str) -> InvalidArgument:
    """The error for a value that is not `wanted`."""
    return InvalidArgument(f"{name}={shown(value)}: give {wanted}")


def is_integer(value: object) -> bool:
    """Whether a value is an integer, of Python or NumPy, and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a real number, of Python or NumPy, and not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def listed(value: Any) -> tuple[Any, ...] | None:
    """The items of an iterable, read once; None for a string, a mapping, or a value that can't be iterated over.

    >>> listed([1, 2]), listed("ab"), listed(3)
    ((1, 2), None, None)
    """
    if isinstance(value, (str, bytes, Mapping, type)):
        return None
    try:
        return tuple(value)
    except (TypeError, ValueError):  # ValueError: a closed file
        return None


def integer(least: int, most: int = LARGEST, remedy: str = "") -> Check:
    """An integer from `least` to `most`.

    >>> import numpy as np
    >>> integer(1)("align", np.int64(8))
    8
    """

    def check(name: str, value: Any) -> int:
        if is_integer(value) and least <= value <= most:
            return int(value)
        bounded = most < LARGEST or (is_integer(value) and value > most)
        limits = f"from {least} to {most}" if bounded else f"of at least {least}"
        raise refusal(name, value, f"an integer {limits}{remedy}")

    return check


def number(wanted: str, fits: Callable[[float], bool]) -> Check:
    """A finite number that `fits`; `wanted` describes those for messages.

    >>> number("a number above 0", lambda value: value > 0)("ms", 5)
    5.0
    """

    def check(name: str, value: Any) -> float:
        if is_number(value):
            with contextlib.suppress(OverflowError):
                plain = float(value)
                if math.isfinite(plain) and fits(plain):
                    return plain
        raise refusal(name, value, wanted)

    return check


def choice(*names: str) -> Check:
    """One of a few names.

    >>> choice("x", "yes")("key", "yess")
    Traceback (most recent call last):
        ...
    surgeon.errors.InvalidArgument: key='yess' is unknown; choose one of x, yes; did you mean yes?
    """

    def check(name: str, value: Any) -> str:
        if isinstance(value, str) and value in names:
            return value
        raise InvalidArgument(
            f"{name}={shown(value)} is unknown; choose one of {', '.join(names)}{meant(value, names)}"
        )

    return check


def meant(given: object, known: Any) -> str:
    """A suggestion of what may have been meant, as the end of a message.

    >>> meant("frist", ["first", "last"]), meant("x", ["first"])
    ('; did you mean first?', '')
    """
    close = difflib.get_close_matches(given, list(known)) if isinstance(given, str) and len(given) < 200 else []
    return f"; did you mean {' or '.join(close)}?" if close else ""


def fitting(wanted: str, fits: Callable[[Any], bool], plain: Callable[[Any], Any] | None = None) -> Check:
    """A value that `fits`, converted by `plain`; `wanted` describes those for messages.

    >>> fitting("a name", str.isidentifier)("x", "conv1")
    'conv1'
    """

    def check(name: str, value: Any) -> Any:
        if not fits(value):
            raise refusal(name, value, wanted)
        return value if plain is None else plain(value)

    return check


def a_path(wanted: str) -> Check:
    """The path of a file or folder, whether it exists or not; `wanted` says what is accepted, for messages."""

    def check(name: str, value: Any) -> Any:
        try:
            place = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
            if isinstance(place, str) and place:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                    os.lstat(place)  # the system refuses names that are too long or hold a NUL
                return value
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise refusal(name, value, f"a path that the system accepts ({reason})") from error
        raise refusal(name, value, wanted)

    return check


def instance(kind: type | tuple[type, ...], what: str, remedy: str = "") -> Check:
    """An instance of a class; `what` names it in messages, with its article."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            hint = f"; {remedy}" if remedy else ""
            if isinstance(value, type) and issubclass(value, kind):
                hint = f"; give an instance of {value.__name__}, not the class"
            raise InvalidArgument(f"{name} is a {type(value).__name__}, not {what}{hint}")
        return value

    return check


def having(what: str, *names: str) -> Check:
    """An object that has attributes of these names; `what` names it in messages, with its article."""
    return fitting(what, lambda value: not isinstance(value, type) and all(hasattr(value, each) for each in names))


def mapping(what: str, key: Check | None = None, value: Check | None = None) -> Check:
    """A mapping, whose keys and values are checked too; `what` names it in messages, with its article."""

    def check(name: str, given: Any) -> Any:
        if not isinstance(given, Mapping):
            raise refusal(name, given, what)
        return {
            key(f"a key of {name}", k) if key else k: value(f"{name}[{shown(k)}]", v) if value else v
            for k, v in given.items()
        }

    return check


def function(wanted: str, arguments: int | None = None, never: tuple[type, ...] = ()) -> Check:
    """A callable that is not an instance of `never`, and takes this many arguments, where its signature is known."""

    def check(name: str, value: Any) -> Any:
        if not callable(value) or isinstance(value, never):
            raise refusal(name, value, wanted)
        if arguments is not None:
            try:
                signature = inspect.signature(value)
            except (ValueError, TypeError):  # not written in Python
                return value
            try:
                signature.bind(*[None] * arguments)
            except TypeError as error:
                called = getattr(value, "__name__", type(value).__name__)
                raise InvalidArgument(f"{name}: {called}{signature} does not fit ({error}): give {wanted}") from error
        return value

    return check


def min_width(name: str, value: Any) -> Any:
    """The least that is kept of a group: a share, a width, a mapping from globs to these, or None.

    >>> import numpy as np
    >>> min_width("min_width", {"layer1*": 0.5, "*": np.int64(16)})
    {'layer1*': 0.5, '*': 16}
    """
    if isinstance(value, Mapping):
        return {text(f"a key of {name}", glob): _least(f"{name}[{shown(glob)}]", each) for glob, each in value.items()}
    return None if value is None else _least(name, value)


def _least(name: str, value: Any) -> int | float:
    if is_integer(value) and value >= 1:
        return int(value)
    if is_number(value) and not is_integer(value) and 0 <= value <= 1:
        return float(value)
    raise refusal(name, value, "a share from 0.0 to 1.0, or a width as an integer of at least 1")


def call(name: str, called: Callable[..., Any], *arguments: Any) -> Any:
    """Call a user's function. If it does not take these arguments, that is raised as an error of the argument `name`.

    Errors that its own code raises are passed on.
    """
    try:
        return called(*arguments)
    except Exception as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise
        kinds = ", ".join(type(argument).__name__ for argument in arguments)
        does = getattr(called, "__name__", type(called).__name__)
        raise InvalidArgument(f"{name}: {does} can't be called with ({kinds}): {error}") from error


def either(first: Check, second: Check, decide: Callable[[Any], bool]) -> Check:
    """The first check where `decide` is true of the value, else the second."""
    return lambda name, value: (first if decide(value) else second)(name, value)


def optional(check: Check) -> Check:
    """None, or what the check accepts."""
    return lambda name, value: None if value is None else check(name, value)


def cpus() -> int:
    """How many CPUs this process may use, where the system says; else how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_here(name: str, value: Any) -> int:
    """A number of threads that can run at the same time: threads that wait for a CPU can't be timed.

    >>> threads_here("threads", 1)
    1
    """
    return int(integer(1, max(cpus(), 1), ", no more than this process has CPUs")(name, value))


path: Final = a_path("a path, as a string or a pathlib.Path")
def _is_flag(value: Any) -> bool:
    numpy = sys.modules.get("numpy")  # not imported for this: the command line's help does without it
    return isinstance(value, bool) or (numpy is not None and isinstance(value, numpy.bool_))


flag: Final = fitting("True or False", _is_flag, bool)
text: Final = fitting("a string", lambda value: isinstance(value, str))
POSITIVE: Final = integer(1)
NATURAL: Final = integer(0)
ABOVE_ZERO: Final = number("a number above 0", lambda value: value > 0)
AT_LEAST_ZERO: Final = number("a number of at least 0", lambda value: value >= 0)
UNIT: Final = number("a number from 0 to 1", lambda value: 0 <= value <= 1)
def _share(name: str, value: Any) -> float:
    wanted = "the share of the budget to remove, a number of at least 0 and less than 1"
    if is_number(value) and 1 < value < 100:
        wanted += f"; {value:g} % are {value / 100:g}"
    return float(number(wanted, lambda found: 0 <= found < 1)(name, value))


SHARE: Final[Check] = _share
PART: Final = number("a share above 0, of at most 1", lambda value: 0 < value <= 1)
OBJECT: Final[Check] = lambda name, value: value  # noqa: E731  (anything will do)

COMMON: Final[Mapping[str, Check]] = {
    "path": path,
    "folder": path,
    "threads": threads_here,
    "cpu_time": flag,
    "seed": NATURAL,
    "samples": POSITIVE,
    "memory": PART,
    "seconds": ABOVE_ZERO,
    "step": NATURAL,
}


def checked(
    table: Mapping[str, Check], within: Callable[[], contextlib.AbstractContextManager[Any]] | None = None
) -> Callable[[_T], _T]:
    """Check the arguments of a function, or of a class's public methods, by a table of checks by name.

    The function runs inside of the context `within`. A parameter without a check is a TypeError when it is defined.
    """

    def decorate(target: Any) -> Any:
        if not isinstance(target, type):
            return _guarded(target, table, within)
        for name, member in list(vars(target).items()):
            if name.startswith("_") and name not in ("__init__", "__call__"):
                continue
            inner = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
            if inspect.isfunction(inner) and len(inspect.signature(inner).parameters) > 1:
                guarded = _guarded(inner, table, within)
                setattr(target, name, guarded if inner is member else type(member)(guarded))
        return target

    return decorate


def _guarded(
    inner: Callable[..., Any], table: Mapping[str, Check],
    within: Callable[[], contextlib.AbstractContextManager[Any]] | None,
) -> Callable[..., Any]:
    signature = inspect.signature(inner)
    wanted = [name for name in signature.parameters if name not in ("self", "cls")]
    if lacking := [name for name in wanted if name not in table]:
        raise TypeError(f"{inner.__qualname__}: the table has no checks for the arguments {', '.join(lacking)}")
    rules = {name: (table[name], signature.parameters[name].default) for name in wanted}

    @functools.wraps(inner)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        for old in RENAMED.keys() & kwargs.keys() - signature.parameters.keys():
            if RENAMED[old] in signature.parameters:
                raise InvalidArgument(f"{old}= is called {RENAMED[old]}= now")
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{inner.__qualname__}() {error}") from None
        for name, value in bound.arguments.items():
            if name in rules and value is not rules[name][1]:
                bound.arguments[name] = rules[name][0](name, value)
        with within() if within is not None else contextlib.nullcontext():
            return inner(*bound.args, **bound.kwargs)

    return guarded
