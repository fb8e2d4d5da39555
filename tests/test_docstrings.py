"""The docstrings of all public names: a sentence, every argument with its unit, every error, an example that runs.

Public is what the page docs/reference-api.md lists, with the methods and properties that the listed classes define.
What is exported and not listed there fails, and so does what is listed and says too little.
"""

from __future__ import annotations

import ast
import doctest
import functools
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import surgeon
from surgeon import errors, scoring, study, training

PAGE = Path(__file__).parent.parent / "docs" / "reference-api.md"
#: The files whose wrappers check arguments before a function runs.
CHECKING = ("surgeon/support/arguments.py", "surgeon/frontend/parameters.py")
#: What a number counts or is measured in; or the function of which it is as for that.
UNITS = re.compile(
    r"as for `|\b(bytes|channels|connections|CPUs|deviations?|epochs|from \d|how (far|many|often|strongly|long)|least"
    r"|MACs|magnitude|milliseconds|norm|number|random|rate|relative|rounds|samples|seconds|seeds?|shares?|sizes?|steps?"
    r"|temperature|threads|times|units|version|widths?)\b"
)
SHAPES = re.compile(r"\bshapes?\b|\((batch|units|samples|N)\b")


@dataclass(frozen=True)
class Public:
    """A public name; `owner` is the class of a method or a property."""

    name: str
    value: Any
    owner: type | None = None

    @property
    def text(self) -> str:
        return inspect.cleandoc(self.value.__doc__ or "")

    @property
    def whole(self) -> str:
        """Its docstring; for a class and its members, those of the class and of all members."""
        kind = self.owner or self.value
        if not isinstance(kind, type):
            return self.text
        return "\n".join([inspect.cleandoc(kind.__doc__ or ""), *(each.text for each in members("", kind))])

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        kind = self.value if isinstance(self.value, type) else object
        if not callable(self.value) or issubclass(kind, Exception) or getattr(kind, "_is_protocol", False):
            return {}
        return {
            name: each for name, each in inspect.signature(self.value).parameters.items() if name not in ("self", "cls")
        }


def members(name: str, owner: type) -> Iterator[Public]:
    """The methods and properties that a class defines for its users."""
    for each, value in vars(owner).items():
        inner = getattr(value, "__func__", getattr(value, "fget", value))
        if not each.startswith("_") and inspect.isfunction(inner):
            yield Public(f"{name}.{each}", inner, owner)


def resolve(name: str) -> Any:
    found: Any = surgeon
    path = name.split(".")
    for at, part in enumerate(path[1:], 1):
        found = getattr(found, part, None) or importlib.import_module(".".join(path[: at + 1]))
    return found


def listed() -> Iterator[Public]:
    """The names that the page lists, without members."""
    directives = re.findall(r"^\.\. (\w+):: (\S+)\n((?:   .*\n)*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    for kind, name, options in directives:
        if kind in ("autofunction", "autoclass"):
            full = name if name.startswith("surgeon.") else f"surgeon.{name}"
            yield Public(full, resolve(full))
        elif kind == "automodule":
            module, given = resolve(name), re.search(r":members:(.*)", options)
            names = [each.strip() for each in given[1].split(",")] if given is not None and given[1].strip() else [
                each for each, value in vars(module).items() if isinstance(value, type)
            ]
            yield from (Public(f"{name}.{each}", getattr(module, each)) for each in names)


LISTED = list(listed())
ALL = [each for top in LISTED for each in (top, *(members(top.name, top.value) if isinstance(top.value, type) else ()))]
every = pytest.mark.parametrize("public", ALL, ids=lambda public: public.name)


def test_what_is_exported_is_listed() -> None:
    shown = {id(each.value) for each in LISTED}
    exported = {
        f"{module.__name__}.{name}": getattr(module, name)
        for module in (surgeon, training, scoring, study) for name in module.__all__
    }
    public = {name: value for name, value in exported.items() if inspect.isfunction(value) or isinstance(value, type)}
    assert len(public) > 40
    assert [name for name, value in public.items() if id(value) not in shown] == []


@every
def test_begins_with_a_sentence(public: Public) -> None:
    first = public.text.partition("\n\n")[0]
    assert len(first) > 10 and first.endswith((".", "?")), first


@every
def test_has_an_example_that_runs(public: Public) -> None:
    """A function or class in its own docstring; a method in that of its class, or of another of its methods."""
    parsed = doctest.DocTestParser().get_examples(public.text if public.owner is None else public.whole)
    run = [each.source for each in parsed if not each.options.get(doctest.SKIP)]
    if public.owner is None:
        module = inspect.getmodule(inspect.unwrap(public.value))
        assert f"{module.__name__}.{public.value.__qualname__}" in collected(module), "no example"  # type: ignore[union-attr]
        assert run, "all examples are skipped"
    else:
        used = {node.attr for each in run for node in ast.walk(ast.parse(each)) if isinstance(node, ast.Attribute)}
        assert public.name.rpartition(".")[2] in used, "no example of the class uses it"


@functools.cache
def collected(module: Any) -> set[str]:
    """The names whose examples pytest runs."""
    return {each.name for each in doctest.DocTestFinder().find(module) if each.examples}


@every
def test_tells_of_every_argument(public: Public) -> None:
    assert [name for name in public.parameters if not about(name, public.text)] == []


@every
def test_numbers_have_units_and_tensors_shapes(public: Public) -> None:
    for name, each in public.parameters.items():
        kind, said = str(getattr(each.annotation, "__name__", each.annotation)), about(name, public.text)
        if re.fullmatch(r"(int|float)( \| None)?", kind):
            assert UNITS.search(said), f"{name} is a number, of what? {said}"
        if re.search(r"\b(Tensor|ndarray)\b", kind) and "Callable" not in kind:
            assert SHAPES.search(said), f"{name} is a tensor, of what shape? {said}"
    if inspect.isfunction(public.value):
        kind = str(inspect.signature(public.value).return_annotation)
        if re.search(r"\b(Tensor|ndarray)\b", kind):
            assert SHAPES.search(public.text), f"returns {kind}: of what shape?"


def about(name: str, text: str) -> str:
    """What a docstring says of an argument: its entry under Args, or the sentences and items that name it.

    >>> about("n", "Adds.\\n\\nArgs:\\n    m: a number.\\n    n, o: another\\n        one.\\n")
    'another one.'
    >>> about("n", "Adds `n` times. Then `m` times.")
    'Adds `n` times.'
    """
    section = re.search(r"^Args:\n((?:    .*\n?)+)", text, re.MULTILINE)
    entries = re.findall(r"^    ([\w, ]+): (.*\n?(?:        .*\n?)*)", section[1], re.MULTILINE) if section else []
    for names, said in entries:
        if name in names.split(", "):
            return " ".join(said.split())
    plain = " ".join(re.sub(r"^(>>>|\.\.\.) .*$", "", text, flags=re.MULTILINE).replace("\n- ", ". ").split())
    return " ".join(each for each in re.split(r"(?<=[.;]) ", plain) if f"`{name}`" in each)


@every
def test_tells_of_every_error(public: Public) -> None:
    told = kinds_told(public.text)
    missing = {kind.__name__ for kind in kinds_raised(public) if not any(issubclass(kind, each) for each in told)}
    assert not missing, f"Raises: lacks {', '.join(sorted(missing))}"


def kinds_told(text: str) -> set[type]:
    """The errors that a docstring names under Raises."""
    section = re.search(r"^Raises:\n((?:    .*\n?)+)", text, re.MULTILINE)
    names = re.findall(r"^    (\w+(?:, \w+)*):", section[1], re.MULTILINE) if section else []
    return {getattr(errors, each) for each in ", ".join(names).split(", ") if hasattr(errors, each)}


def kinds_raised(public: Public) -> set[type]:
    """The errors that a name raises in its own code, that the checks of its arguments raise, and that what it calls
    tells of, one call deep. For a class, those of making one.
    """
    found: set[type] = set()
    own = vars(public.value) if isinstance(public.value, type) else {}
    for maker in [own[name] for name in ("__init__", "__post_init__") if name in own] or [public.value]:
        inner = inspect.unwrap(maker)
        if not inspect.isfunction(inner):
            continue
        if is_checked(maker):
            found.add(errors.InvalidArgument)
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(inner)))
        except OSError:  # a dataclass's own __init__ has no source
            continue
        caught = " ".join(ast.unparse(each) for each in ast.walk(tree) if isinstance(each, ast.ExceptHandler))
        for node in ast.walk(tree):
            match node:
                case ast.Raise(exc=ast.Call(func=ast.Name(id=name))) if hasattr(errors, name):
                    found.add(getattr(errors, name))
                case ast.Call(func=ast.Name(id=name)) if inspect.isfunction(inner.__globals__.get(name)):
                    told = kinds_told(inspect.cleandoc(inner.__globals__[name].__doc__ or ""))
                    found |= {kind for kind in told if not re.search(rf"\b({kind.__name__}|SurgeonError)\b", caught)}
    return found


def is_checked(value: Any) -> bool:
    """Whether a function's arguments are checked before it runs."""
    while hasattr(value, "__wrapped__"):
        if value.__code__.co_filename.endswith(CHECKING) and len(inspect.signature(value).parameters) > 0:
            return True
        value = value.__wrapped__
    return False
