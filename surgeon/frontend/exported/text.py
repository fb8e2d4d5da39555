"""Checks of the strings in an exported program: names, paths, modes, and the structure of nested inputs.

torch writes names into Python source, which it runs, and resolves paths as attributes of modules.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from surgeon.frontend.exported.expressions import SYMBOL
from surgeon.support import strict_json
from surgeon.support.opening import Unfit

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,499}")
_PATH: Final = re.compile(r"[A-Za-z0-9_:/@+-]([A-Za-z0-9_:/@+ -]{0,498}[A-Za-z0-9_:/@+-])?")
_KEY: Final = re.compile(r"[A-Za-z0-9_.:/@+ -]{1,200}")
_STACK: Final = re.compile(r"[^\x00-\x1f\x7f]{0,50000}")
_CONTAINERS: Final = frozenset(("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"))
_SPEC: Final = 1_000_000


def check_name(text: str) -> None:
    """The name of a value: an identifier that is not a Python keyword."""
    if not _NAME.fullmatch(text) or keyword.iskeyword(text):
        raise Unfit(f"{text[:80]!a} is not the name of a value")


def check_optional_name(text: str) -> None:
    """The name of an argument, which may be empty."""
    if text:
        check_name(text)


def check_path(text: str) -> None:
    """The path of a parameter or a buffer, without special attributes such as `__class__`."""
    parts = text.split(".")
    if len(text) > 1000 or any(not _PATH.fullmatch(part) or part.startswith("__") for part in parts):
        raise Unfit(f"{text[:80]!a} is not the path of a parameter or a buffer")


def check_text(text: str) -> None:
    """A mode, an equation or a message, which must be printable."""
    if len(text) > 2000 or not all(letter.isprintable() for letter in text):
        raise Unfit(f"{text[:80]!a} is not a string that an operator takes")


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[str], None]:
    """A check that the pattern matches a string; `what` it stands for, for messages."""

    def check(text: str) -> None:
        if not pattern.fullmatch(text):
            raise Unfit(f"{text[:80]!a} is not {what}")

    return check


check_symbol = _matching(SYMBOL, "the name of a symbolic size")
check_payload = _matching(re.compile(r"(weight|tensor)_(0|[1-9][0-9]{0,8})"), "the name of a tensor's member")
check_device = _matching(re.compile("cpu|cuda|hpu|meta|mps|xla|xpu"), "the type of a device")


def metadata(entries: Mapping[str, str]) -> dict[str, str]:
    """The modules that an operator was called in. The other entries name functions, or paths of another machine."""
    stack = entries.get("nn_module_stack", "")
    if not stack:
        return {}
    if not _STACK.fullmatch(stack):
        raise Unfit(f"{stack[:80]!a} is not a stack of modules")
    return {"nn_module_stack": stack}


def check_spec(text: str) -> None:
    """The structure of nested inputs or outputs: tuples, lists and dicts, with names as keys.

    For other types, torch would import the module that the string names.

    >>> check_spec('[1, {"type": "collections.defaultdict", "context": {}, "children_spec": []}]')
    Traceback (most recent call last):
        ...
    surgeon.support.opening.Unfit: inputs or outputs hold a 'collections.defaultdict'; only tuples, lists and dicts ...
    """
    if len(text) > _SPEC:
        raise Unfit("the structure of the inputs or outputs is too large")
    match strict_json.loads(text):
        case [1, dict(root)]:
            _check_spec(root)
        case _:
            raise Unfit("the structure of the inputs or outputs is not as torch writes it")


def _check_spec(node: Any, named: bool = False, depth: int = 0) -> None:
    if not isinstance(node, dict) or set(node) != {"type", "context", "children_spec"}:
        raise Unfit("the structure of the inputs or outputs is not as torch writes it")
    kind, context, children = node["type"], node["context"], node["children_spec"]
    if not isinstance(children, list) or (kind is None and (context is not None or children)):
        raise Unfit("the structure of the inputs or outputs is not as torch writes it")
    if kind is None:
        return
    if not isinstance(kind, str) or kind not in _CONTAINERS:
        raise Unfit(f"inputs or outputs hold a {str(kind)[:80]!a}; only tuples, lists and dicts are accepted")
    if kind in ("builtins.tuple", "builtins.list"):
        if context not in ("null", None):
            raise Unfit(f"a {kind} must not have a context")
    else:
        keys = strict_json.loads(context) if isinstance(context, str) else None
        if not isinstance(keys, list) or len(keys) != len(children):
            raise Unfit(f"a {kind} must have one key for each value")
        for key in keys:
            if named:
                check_name(str(key))
            elif type(key) is not int and not (isinstance(key, str) and _KEY.fullmatch(key)):
                raise Unfit(f"{str(key)[:80]!a} is not a key")
    for index, child in enumerate(children):
        # the second part of the inputs are keyword arguments, whose names torch writes into source
        _check_spec(child, depth == 0 and kind == "builtins.tuple" and index == 1 and len(children) == 2, depth + 1)
