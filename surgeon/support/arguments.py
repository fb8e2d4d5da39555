"""What the arguments of public functions may be: one check for each kind, and what a wrong one is told.

A check takes the name and the value of an argument. It gives the value that is used instead, a plain one, or raises
`InvalidArgument`, which names the argument, what was given and what is taken. A bool is no number here, a float is no
integer; numpy's integers and floats are taken as Python's.

`checked` holds the arguments of a function, or of all methods of a class, against a table of checks by name before
anything runs. An argument that is its default is not looked at, so that a default of None makes it optional. `COMMON`
are those that need no torch.

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

import contextlib
import difflib
import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, Final, TypeVar

import numpy as np

from surgeon.errors import InvalidArgument

Check = Callable[[str, Any], Any]
MinWidth = float | int | Mapping[str, float | int] | None
_T = TypeVar("_T", bound=Callable[..., Any])

#: Beyond it neither torch nor onnxruntime reads an integer.
LARGEST: Final = 2**63 - 1
_LONGEST = 60

#: The budgets that a ratio may be a share of.
BUDGETS: Final = ("macs", "params", "channels")
SCOPES: Final = ("global", "local", "isomorphic")

#: What arguments were called, and what they are called now.
RENAMED: Final[Mapping[str, str]] = {"keep": "min_width", "distil": "distill"}


def shown(value: object) -> str:
    """A value as messages show it: short, on one line, and whatever its own `repr` does.

    >>> shown("a\\nb"), shown(0.5), shown([1, 2]), shown(np.zeros((2, 3)))
    ("'a\\\\nb'", '0.5', 'a list', 'a ndarray of shape (2, 3)')
    """
    kind, shape = type(value).__name__, getattr(type(value), "shape", None) and value.shape  # type: ignore[attr-defined]
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if not isinstance(value, str | bytes | Real | complex | None) and shape != ():
        if isinstance(value, os.PathLike):
            return repr(os.fspath(value))
        return f"a {kind} of shape {tuple(shape)}" if isinstance(shape, tuple) else f"a {kind}"
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  (a user's class may raise anything; an integer may have too many digits to print)
        return f"a {kind}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def refusal(name: str, value: object, wanted: str) -> InvalidArgument:
    """The error for a value that is none of those that are `wanted`."""
    return InvalidArgument(f"{name}={shown(value)}: give {wanted}")


def is_integer(value: object) -> bool:
    """Whether a value is an integer, of Python or numpy, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a real number, of Python or numpy, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def listed(value: Any) -> tuple[Any, ...] | None:
    """What there is to read in a value, once; None if it is a text, a mapping, or can't be read.

    >>> listed([1, 2]), listed("ab"), listed(3)
    ((1, 2), None, None)
    """
    if isinstance(value, str | bytes | Mapping | type):
        return None
    try:
        return tuple(value)
    except (TypeError, ValueError):  # ValueError: a closed file
        return None


def integer(least: int, most: int = LARGEST, remedy: str = "") -> Check:
    """An integer from `least` to `most`.

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
    """A finite number that `fits`; `wanted` says which do.

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
    """One of some names.

    >>> choice("x", "yes")("key", "yess")
    Traceback (most recent call last):
        ...
    surgeon.errors.InvalidArgument: key='yess' is none that surgeon knows; choose one of x, yes; did you mean yes?
    """

    def check(name: str, value: Any) -> str:
        if isinstance(value, str) and value in names:
            return value
        raise InvalidArgument(
            f"{name}={shown(value)} is none that surgeon knows; choose one of {', '.join(names)}{meant(value, names)}"
        )

    return check


def meant(given: object, known: Any) -> str:
    """What may have been meant, as the end of a message.

    >>> meant("frist", ["first", "last"]), meant("x", ["first"])
    ('; did you mean first?', '')
    """
    close = difflib.get_close_matches(given, list(known)) if isinstance(given, str) and len(given) < 200 else []
    return f"; did you mean {' or '.join(close)}?" if close else ""


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise refusal(name, value, "True or False")
    return bool(value)


def text(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise refusal(name, value, "a string")
    return value


def a_path(wanted: str) -> Check:
    """The name of a file or folder that may be there or not; `wanted` says what else is taken."""

    def check(name: str, value: Any) -> Any:
        try:
            place = os.fspath(value) if isinstance(value, str | os.PathLike) else None
            if isinstance(place, str) and place:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                    os.lstat(place)  # the system tells which names can't be: too long ones, and those with a NUL
                return value
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise refusal(name, value, f"a path that the system can have ({reason})") from error
        raise refusal(name, value, wanted)

    return check


def instance(kind: type | tuple[type, ...], what: str, remedy: str = "") -> Check:
    """A value of a class; `what` it is called, with its article."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            hint = f"; {remedy}" if remedy else ""
            if isinstance(value, type) and issubclass(value, kind):
                hint = f"; give an instance of {value.__name__}, not the class"
            raise InvalidArgument(f"{name} is a {type(value).__name__}, not {what}{hint}")
        return value

    return check


def having(what: str, *names: str) -> Check:
    """An object that has attributes of these names; `what` it is called, with its article."""

    def check(name: str, value: Any) -> Any:
        if isinstance(value, type) or not all(hasattr(value, each) for each in names):
            raise refusal(name, value, what)
        return value

    return check


def mapping(what: str, key: Check | None = None, value: Check | None = None) -> Check:
    """A mapping, whose keys and values are checked too; `what` it is called, with its article."""

    def check(name: str, given: Any) -> Any:
        if not isinstance(given, Mapping):
            raise refusal(name, given, what)
        return {
            key(f"a key of {name}", k) if key else k: value(f"{name}[{shown(k)}]", v) if value else v
            for k, v in given.items()
        }

    return check


def function(wanted: str, arguments: int | None = None, never: tuple[type, ...] = ()) -> Check:
    """Something to call that is `never` of some classes, with so many arguments where that is known beforehand."""

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
    """What is left of a group at least: a share or a width, or a mapping from globs to them; or None.

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
    """Call a user's function. That it can't be called so is told as an error of the argument `name`.

    What is raised by the function's own code stays as it is.
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
    """The first check for values of which `decide` says so, else the second."""
    return lambda name, value: (first if decide(value) else second)(name, value)


def optional(check: Check) -> Check:
    """None, or what the check takes."""
    return lambda name, value: None if value is None else check(name, value)


def cpus() -> int:
    """The CPUs that this process may use; not every system tells which those are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_here(name: str, value: Any) -> int:
    """How many threads this process can run at once: those that wait for one another for a CPU can't be timed.

    >>> threads_here("threads", 1)
    1
    """
    return int(integer(1, max(cpus(), 1), ", no more than this process has CPUs")(name, value))


path: Final = a_path("a path, as a string or a pathlib.Path")
POSITIVE: Final = integer(1)
NATURAL: Final = integer(0)
ABOVE_ZERO: Final = number("a number above 0", lambda value: value > 0)
AT_LEAST_ZERO: Final = number("a number of at least 0", lambda value: value >= 0)
UNIT: Final = number("a number from 0 to 1", lambda value: 0 <= value <= 1)
SHARE: Final = number(
    "the share of the budget to remove, a number of at least 0 and less than 1", lambda value: 0 <= value < 1
)
OBJECT: Final[Check] = lambda name, value: value  # noqa: E731  (anything will do)

COMMON: Final[Mapping[str, Check]] = {
    "path": path,
    "folder": path,
    "threads": threads_here,
    "seed": NATURAL,
    "samples": POSITIVE,
    "seconds": ABOVE_ZERO,
    "step": NATURAL,
}


def checked(
    table: Mapping[str, Check], within: Callable[[], contextlib.AbstractContextManager[Any]] | None = None
) -> Callable[[_T], _T]:
    """Hold the arguments of a function, or of a class and its public methods, against a table of checks by name.

    What runs, runs inside of `within`. A parameter that the table does not have is an error when it is defined.
    """

    def decorate(target: Any) -> Any:
        if not isinstance(target, type):
            return _guarded(target, table, within)
        for name, member in list(vars(target).items()):
            if name.startswith("_") and name not in ("__init__", "__call__"):
                continue
            inner = member.__func__ if isinstance(member, classmethod | staticmethod) else member
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
        raise TypeError(f"{inner.__qualname__}: say what its arguments {', '.join(lacking)} may be")
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
        if within is None:
            return inner(*bound.args, **bound.kwargs)
        with within():
            return inner(*bound.args, **bound.kwargs)

    return guarded
