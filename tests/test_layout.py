"""The layout of the sources: who may import whom, how long a file is, and what no file may hold."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "surgeon"
MAX_LINES = 400

# A room is a folder, or a file that lies beside the folders. A file imports only from rooms of lower ranks, or from its
# own room; `__init__` is `surgeon/__init__.py`.
RANKS = {
    "errors": 0,
    "support/": 1,
    "ir/": 1,
    "frontend/": 2,
    "solver/": 2,
    "rules/": 3,
    "onnx_import/": 3,
    "device/": 3,
    "groups/": 4,
    "cost/": 5,
    "verification/": 5,
    "calibration/": 5,
    "reporting/": 6,
    "plans/": 6,
    "surgery/": 6,
    "latency/": 6,
    "scoring/": 7,
    "recovery/": 7,
    "deploy/": 7,
    "allocation/": 8,
    "projection/": 8,
    "sparsity/": 8,
    "quantization/": 8,
    "pipeline/": 9,
    "training/": 10,
    "study/": 11,
    "__init__": 12,
    "cli/": 13,
    "__main__": 14,
}
MAX_ROOMS, MAX_LEVELS = 32, 13

# Methods of values that hand themselves on to the pipeline, which is imported when they are called.
FORWARDS = {"surgeon/plans/plan.py": "surgeon.pipeline.replay"}

# A package outside of surgeon, and the files of surgeon that may import it.
RESERVED: dict[str, set[str]] = {
    "models": set(),  # as surgeon.reference it is part of surgeon
    "testbed": set(),
    "tests": set(),
    "benchmarks": set(),
}

# What a kit takes along to a device beside `surgeon/device/`.
CARRIED = tuple(f"surgeon.{name}." for name in (
    "errors", "support.arguments", "support.documents", "support.files", "support.opening", "support.process_wide",
    "support.scratch", "support.strict_json",
))

# All of them are pickle, or write and read it.
# Here pickles are made, to show that they are refused.
ATTACKS = "testbed/hostile/"
PICKLES = ("pickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "torch.save", "torch.load")


def sources(*folders: str) -> list[str]:
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


OURS = sources(PACKAGE)
ALL = sources(PACKAGE, "models", "testbed", "tests", "benchmarks")


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
    return room(importer) == room(imported) or rank(imported) < rank(importer)


def upward(path: str, source: str) -> list[str]:
    """The imports of a file of surgeon that go against the ranks, each as a message."""
    return [
        f"{path}:{line} (rank {rank(path)}) imports {name} (rank {rank(target)}): "
        "move what both need to a lower rank, or hand it over as a value"
        for line, name in imports(path, source)
        if (target := locate(name)) is not None
        and not may_import(path, target)
        and name != FORWARDS.get(path)
    ]


def levels() -> dict[str, int]:
    """For every room, how many rooms the longest chain of imports that ends in it has."""
    below: dict[str, set[str]] = {room(path): set() for path in OURS}
    for path in OURS:
        targets = (locate(name) for _, name in imports(path, read(path)) if name != FORWARDS.get(path))
        below[room(path)] |= {room(target) for target in targets if target is not None} - {room(path)}
    found: dict[str, int] = {}
    for each in sorted(below, key=RANKS.__getitem__):
        found[each] = 1 + max((found[other] for other in below[each]), default=0)
    return found


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


def test_the_house_is_small() -> None:
    found = levels()
    assert found.keys() == RANKS.keys()
    assert len(found) <= MAX_ROOMS and max(found.values()) <= MAX_LEVELS


@pytest.mark.parametrize("path", sources("tests"))
def test_tests_mirror_the_rooms(path: str) -> None:
    folder = Path(path).parent.name
    assert folder == "tests" or f"{folder}/" in RANKS


@pytest.mark.parametrize("path", sources("tests", "testbed", "benchmarks"))
def test_tests_and_benchmarks_do_not_import_each_other(path: str) -> None:
    others = {"tests", "benchmarks"} - {path.split("/")[0]}
    assert [name for _, name in imports(path, read(path)) if name.split(".")[0] in others] == []


@pytest.mark.parametrize("path", OURS)
def test_surgeon_runs_without_the_other_packages(path: str) -> None:
    assert reserved(path, read(path)) == []


@pytest.mark.parametrize("path", ["surgeon/ir/axes.py", *(path for path in OURS if room(path) == "solver/")])
def test_axes_and_solver_know_no_torch(path: str) -> None:
    assert [name for _, name in imports(path, read(path)) if name.split(".")[0] == "torch"] == []


@pytest.mark.parametrize("path", [path for path in OURS if room(path) == "device/"])
def test_the_device_needs_numpy_and_onnxruntime_alone(path: str) -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "onnxruntime"}
    assert [
        name
        for _, name in imports(path, read(path))
        if name.split(".")[0] not in allowed and not f"{name}.".startswith(("surgeon.device.", *CARRIED))
    ] == []


@pytest.mark.parametrize("path", ALL)
def test_file_is_short(path: str) -> None:
    lines = len(read(path).splitlines())
    assert lines < MAX_LINES, f"{path} has {lines} lines: one concept a file, below {MAX_LINES}"


@pytest.mark.parametrize("path", [path for path in ALL if not path.startswith(ATTACKS)])
def test_file_holds_no_pickle(path: str) -> None:
    assert pickles(path, read(path)) == []


# The checks themselves: (file, its source, whether the layout allows it)
DIRECTIONS = [
    ("surgeon/ir/axes.py", "from surgeon.errors import SurgeonError", True),
    ("surgeon/errors.py", "from surgeon.ir.axes import Leaf", False),
    ("surgeon/errors.py", "from surgeon.ir import axes", False),
    ("surgeon/errors.py", "import surgeon.ir.axes", False),
    ("surgeon/errors.py", "from .ir.axes import Leaf", False),
    ("surgeon/errors.py", "def f():\n    from surgeon.ir import axes", False),
    ("surgeon/errors.py", "from surgeon import a_name_of_the_public_api", False),
    ("surgeon/rules/pointwise.py", "from surgeon.rules import table", True),
    ("surgeon/rules/pointwise.py", "from ..errors import SurgeonError", True),
    ("surgeon/rules/pointwise.py", "from .. import a_name_of_the_public_api", False),
    ("surgeon/rules/pointwise.py", "from surgeon.frontend.trace import Graph", True),
    ("surgeon/cli/main.py", "import surgeon", True),
    ("surgeon/cli/main.py", "import numpy, torch.nn", True),
    ("surgeon/plans/plan.py", "from surgeon.pipeline import replay", True),
    ("surgeon/plans/basis.py", "from surgeon.pipeline import replay", False),
]


@pytest.mark.parametrize(("path", "source", "allowed"), DIRECTIONS)
def test_directions_are_told_apart(
    path: str, source: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = """__init__ errors ir/axes frontend/trace cli/main rules/__init__ rules/pointwise rules/table plans/plan
        plans/basis pipeline/replay""".split()
    monkeypatch.setattr(f"{__name__}.OURS", [f"surgeon/{name}.py" for name in files])
    assert (upward(path, source) == []) is allowed


def test_a_file_without_a_rank_is_told_to_get_one() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"surgeon/novel\.py has no rank: give 'novel' a row"):
        upward("surgeon/novel.py", "import surgeon")


@pytest.mark.parametrize("source", ["import models", "from models.data import load", "import tests", "import testbed"])
def test_other_packages_are_recognized(source: str) -> None:
    assert len(reserved("surgeon/pipeline/shrink.py", source)) == 1


@pytest.mark.parametrize("source", ["import pickle", "from pickle import loads", "torch.save(1, 'a')"])
def test_pickle_is_recognized(source: str) -> None:
    assert pickles("surgeon/plans/plan.py", source) != []
