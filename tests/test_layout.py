"""The layout of the sources: who may import whom, how long a file is, and what no file may hold."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "surgeon"
MAX_LINES = 400

# A file imports only from lower ranks, or from files of its own rank in its own folder.
# `rules/` is a folder, whose files share its rank; `__init__` is `surgeon/__init__.py`.
RANKS = {
    "errors": 0,
    "axes": 1,
    "architecture": 1,
    "convolution": 1,
    "documents": 1,
    "basis": 1,
    "files": 1,
    "opening": 1,
    "strict_json": 1,
    "progress": 1,
    "schedules": 1,
    "functional": 1,
    "surroundings": 1,
    "device/": 2,
    "weights": 2,
    "space": 2,
    "trace": 2,
    "rules/": 3,
    "inputs": 3,
    "select": 3,
    "signature": 3,
    "coupling": 4,
    "analysis": 5,
    "importance/": 5,
    "cost": 5,
    "limits": 5,
    "alignment": 6,
    "damage": 6,
    "ladder": 6,
    "latency/": 7,
    "least_damage": 8,
    "rungs": 8,
    "allocation": 9,
    "surgery/": 6,
    "verify/": 7,
    "recovery/": 10,
    "replay": 8,
    "deploy/": 8,
    "plan": 9,
    "report": 9,
    "storage": 10,
    "guided": 11,
    "criteria": 11,
    "profiling": 10,
    "clock": 11,
    "sweeping/": 11,
    "training/": 11,
    "shrink": 12,
    "connections": 12,
    "sweep": 12,
    "__init__": 13,
    "exported/": 12,
    "arrays": 12,
    "sources": 13,
    "batches": 14,
    "demo": 14,
    "study/": 14,
    "options": 15,
    "cli_device": 16,
    "cli_study": 16,
    "cli_sweep": 16,
    "cli": 17,
    "__main__": 18,
}

# A package outside of surgeon, and the files of surgeon that may import it.
RESERVED = {
    "models": {"surgeon/cli/demo.py"},
    "tests": set(),
    "benchmarks": set(),
}

# All of them are pickle, or write and read it.
PICKLES = ("pickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "torch.save", "torch.load")


def sources(*folders: str) -> list[str]:
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


OURS = sources(PACKAGE)
ALL = sources(PACKAGE, "models", "tests", "benchmarks")


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def imports(path: str, source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, at whatever depth, relative names resolved.

    `from a import b` is `a.b`, whether b is a module or not.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                parts = Path(path).parts
                base = list(parts[: len(parts) - node.level]) if node.level else []
                base += node.module.split(".") if node.module else []
                yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def locate(name: str) -> str | None:
    """The file of surgeon that a dotted name is, or is in; None for a name outside of surgeon.

    A name in a package that isn't a module stands for the package's `__init__.py`.
    """
    first, *parts = name.split(".")
    if first != PACKAGE:
        return None
    base = f"{PACKAGE}/"
    for part in parts:
        if f"{base}{part}.py" in OURS:
            return f"{base}{part}.py"
        if not any(ours.startswith(f"{base}{part}/") for ours in OURS):
            break
        base += f"{part}/"
    return f"{base}__init__.py"


def room(path: str) -> str:
    """The row of RANKS that a file of surgeon belongs to."""
    _, first, *rest = path.split("/")
    return f"{first}/" if rest else first.removesuffix(".py")


def rank(path: str) -> int:
    if room(path) not in RANKS:
        pytest.fail(f"{path} has no rank: give {room(path)!r} a row of RANKS in tests/test_layout.py")
    return RANKS[room(path)]


def may_import(importer: str, imported: str) -> bool:
    mates = room(importer) == room(imported) or Path(importer).parent == Path(imported).parent
    return rank(imported) < rank(importer) or (rank(imported) == rank(importer) and mates)


def upward(path: str, source: str) -> list[str]:
    """The imports of a file of surgeon that go against the ranks, each as a message."""
    return [
        f"{path}:{line} (rank {rank(path)}) imports {name} (rank {rank(target)}): "
        "move what both need to a lower rank, or hand it over as a value"
        for line, name in imports(path, source)
        if (target := locate(name)) is not None and not may_import(path, target)
    ]


def reserved(path: str, source: str) -> list[str]:
    """The imports of a file of surgeon from the repository's other packages, each as a message."""
    return [
        f"{path}:{line} imports {name}, which surgeon must run without"
        for line, name in imports(path, source)
        if path not in RESERVED.get(name.split(".")[0], {path})
    ]


def pickles(path: str, source: str) -> list[str]:
    """The places of a file that could read or write a pickle, each as a message."""
    names = [*imports(path, source)]
    attributes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    names += [(node.lineno, ast.unparse(node)) for node in attributes]
    return [
        f"{path}:{line} uses {name}: JSON and safetensors only"
        for line, name in names
        if any(f"{name}.".startswith(f"{banned}.") for banned in PICKLES)
    ]


@pytest.mark.parametrize("path", OURS)
def test_rank_allows_every_import(path: str) -> None:
    rank(path)  # a file that imports nothing needs a rank too
    assert upward(path, read(path)) == []


@pytest.mark.parametrize("path", OURS)
def test_surgeon_runs_without_the_other_packages(path: str) -> None:
    assert reserved(path, read(path)) == []


@pytest.mark.parametrize("path", [path for path in OURS if room(path).removesuffix("/") == "axes"])
def test_axes_know_no_torch(path: str) -> None:
    assert [name for _, name in imports(path, read(path)) if name.split(".")[0] == "torch"] == []


@pytest.mark.parametrize("path", [path for path in OURS if room(path) == "device/"])
def test_the_device_needs_numpy_and_onnxruntime_alone(path: str) -> None:
    ours = {"surgeon.device", "surgeon.support.documents", "surgeon.errors", "surgeon.support.files"}
    ours |= {"surgeon.support.opening", "surgeon.support.strict_json"}
    allowed = {*sys.stdlib_module_names, "numpy", "onnxruntime"}
    assert [
        name
        for _, name in imports(path, read(path))
        if name.split(".")[0] not in allowed and ".".join(name.split(".")[:2]) not in ours
    ] == []


@pytest.mark.parametrize("path", ALL)
def test_file_is_short(path: str) -> None:
    lines = len(read(path).splitlines())
    assert lines < MAX_LINES, f"{path} has {lines} lines: one concept a file, below {MAX_LINES}"


@pytest.mark.parametrize("path", ALL)
def test_file_holds_no_pickle(path: str) -> None:
    assert pickles(path, read(path)) == []


# The checks themselves: (file, its source, whether the layout allows it)
DIRECTIONS = [
    ("surgeon/ir/axes.py", "from surgeon.errors import SurgeonError", True),
    ("surgeon/errors.py", "from surgeon.ir.axes import Leaf", False),
    ("surgeon/errors.py", "from surgeon import axes", False),
    ("surgeon/errors.py", "import surgeon.axes", False),
    ("surgeon/errors.py", "from .axes import Leaf", False),
    ("surgeon/errors.py", "def f():\n    from surgeon import axes", False),
    ("surgeon/errors.py", "from surgeon import a_name_of_the_public_api", False),
    ("surgeon/rules/pointwise.py", "from surgeon.rules import table", True),
    ("surgeon/rules/pointwise.py", "from ..errors import SurgeonError", True),
    ("surgeon/rules/pointwise.py", "from .. import a_name_of_the_public_api", False),
    ("surgeon/rules/pointwise.py", "from surgeon.frontend.trace import Graph", True),
    ("surgeon/cli/main.py", "import surgeon", True),
    ("surgeon/cli/main.py", "import numpy, torch.nn", True),
]


@pytest.mark.parametrize(("path", "source", "allowed"), DIRECTIONS)
def test_directions_are_told_apart(
    path: str, source: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ("__init__", "errors", "axes", "trace", "cli", "rules/__init__", "rules/pointwise", "rules/table")
    monkeypatch.setattr(f"{__name__}.OURS", [f"surgeon/{name}.py" for name in files])
    assert (upward(path, source) == []) is allowed


def test_a_file_without_a_rank_is_told_to_get_one() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"surgeon/novel\.py has no rank: give 'novel' a row"):
        upward("surgeon/novel.py", "import surgeon")


@pytest.mark.parametrize("source", ["import models", "from models.data import load", "import tests"])
def test_other_packages_are_recognised(source: str) -> None:
    assert len(reserved("surgeon/pipeline/shrink.py", source)) == 1


@pytest.mark.parametrize("source", ["import pickle", "from pickle import loads", "torch.save(1, 'a')"])
def test_pickle_is_recognised(source: str) -> None:
    assert pickles("surgeon/plans/plan.py", source) != []
