"""The texts of an exported program: names, paths, modes and the descriptions of nested inputs.

torch writes names into Python source, which it runs, and takes paths as attributes of modules.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import Any, Final

from surgeon.frontend.exported.expressions import SYMBOL
from surgeon.support import strict_json
from surgeon.support.opening import Unfit

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,499}")
_PATH: Final = re.compile(r"[A-Za-z0-9_:/@+-]([A-Za-z0-9_:/@+ -]{0,498}[A-Za-z0-9_:/@+-])?")
_KEY: Final = re.compile(r"[A-Za-z0-9_.:/@+ -]{1,200}")
_PAYLOAD: Final = re.compile(r"(weight|tensor)_(0|[1-9][0-9]{0,8})")
_STACK: Final = re.compile(r"[^\x00-\x1f\x7f]{0,50000}")
_DEVICES: Final = frozenset(("cpu", "cuda", "hpu", "meta", "mps", "xla", "xpu"))
_CONTAINERS: Final = frozenset(("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"))
_SPEC: Final = 1_000_000


def check_name(text: str) -> None:
    """The name of a value: an identifier, and no word of Python's own."""
    if not _NAME.fullmatch(text) or keyword.iskeyword(text):
        raise Unfit(f"{text[:80]!a} is no name of a value")


def check_optional_name(text: str) -> None:
    """The name of an argument, which is empty where it has none."""
    if text:
        check_name(text)


def check_path(text: str) -> None:
    """The path of a parameter or a buffer, which reaches no attribute of Python's own."""
    parts = text.split(".")
    if len(text) > 1000 or any(not _PATH.fullmatch(part) or part.startswith("__") for part in parts):
        raise Unfit(f"{text[:80]!a} is no path of a parameter or a buffer")


def check_text(text: str) -> None:
    """A mode, an equation or a message: printable."""
    if len(text) > 2000 or not all(letter.isprintable() for letter in text):
        raise Unfit(f"{text[:80]!a} is no text that an operator takes")


def check_symbol(text: str) -> None:
    """The name of a symbolic size."""
    if not SYMBOL.fullmatch(text):
        raise Unfit(f"{text[:80]!a} is no symbolic size")


def check_payload(text: str) -> None:
    """The name of a tensor's member."""
    if not _PAYLOAD.fullmatch(text):
        raise Unfit(f"{text[:80]!a} is no member that holds a tensor")


def check_device(text: str) -> None:
    """The type of a device."""
    if text not in _DEVICES:
        raise Unfit(f"{text[:80]!a} is no device")


def metadata(entries: Mapping[str, str]) -> dict[str, str]:
    """Which modules an operator was called in. The rest names functions, or is the paths of another machine."""
    stack = entries.get("nn_module_stack", "")
    if not stack:
        return {}
    if not _STACK.fullmatch(stack):
        raise Unfit(f"{stack[:80]!a} is no stack of modules")
    return {"nn_module_stack": stack}


def check_spec(text: str) -> None:
    """How nested inputs or outputs are put together: tuples, lists and dicts, with names as keys.

    For other types, torch imports the module that the text names.

    >>> check_spec('[1, {"type": "collections.defaultdict", "context": {}, "children_spec": []}]')
    Traceback (most recent call last):
        ...
    surgeon.support.opening.Unfit: inputs or outputs hold a 'collections.defaultdict'; only tuples, lists and dicts ...
    """
    if len(text) > _SPEC:
        raise Unfit("inputs or outputs are nested in more than can be read")
    match strict_json.loads(text):
        case [1, dict(root)]:
            _check_spec(root)
        case _:
            raise Unfit("inputs or outputs are not described as torch does")


def _check_spec(node: Any, named: bool = False, depth: int = 0) -> None:
    if not isinstance(node, dict) or set(node) != {"type", "context", "children_spec"}:
        raise Unfit("inputs or outputs are not described as torch does")
    kind, context, children = node["type"], node["context"], node["children_spec"]
    if not isinstance(children, list):
        raise Unfit("inputs or outputs are not described as torch does")
    if kind is None:
        if context is not None or children:
            raise Unfit("inputs or outputs are not described as torch does")
        return
    if not isinstance(kind, str) or kind not in _CONTAINERS:
        raise Unfit(f"inputs or outputs hold a {str(kind)[:80]!a}; only tuples, lists and dicts are read")
    if kind in ("builtins.tuple", "builtins.list"):
        if context not in ("null", None):
            raise Unfit(f"a {kind} is described by more than its parts")
    else:
        keys = strict_json.loads(context) if isinstance(context, str) else None
        if not isinstance(keys, list) or len(keys) != len(children):
            raise Unfit(f"a {kind} is not described by its keys")
        for key in keys:
            if named:
                check_name(str(key))
            elif type(key) is not int and not (isinstance(key, str) and _KEY.fullmatch(key)):
                raise Unfit(f"{str(key)[:80]!a} is no key")
    for index, child in enumerate(children):
        # the second part of the inputs are those by keyword, whose names torch writes into source
        _check_spec(child, depth == 0 and kind == "builtins.tuple" and index == 1 and len(children) == 2, depth + 1)
