"""What a kit takes along runs in Python 3.9, though this project's own Python is newer."""

from __future__ import annotations

import ast
import builtins
import importlib
import shutil
import subprocess
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from surgeon.deploy.kit import MINIMUM_PYTHON, carried

ROOT = Path(__file__).parents[2]
FILES = [path.relative_to(ROOT).as_posix() for path in carried()]
#: Arguments of builtins that came later than `MINIMUM_PYTHON`: where they stand, a kit fails there.
LATER = {("zip", "strict"), ("dataclass", "slots"), ("dataclass", "kw_only"), ("dataclass", "match_args")}

# Imports each file of surgeon that is named, with stand-ins for numpy and onnxruntime.
IMPORTER = """
import importlib, sys, types, unittest.mock
root, *names = sys.argv[1:]
package = types.ModuleType("surgeon")
package.__path__ = [root + "/surgeon"]
sys.modules["surgeon"] = package
for name in ("numpy", "onnxruntime", "onnxruntime.capi", "onnxruntime.capi.onnxruntime_pybind11_state"):
    sys.modules[name] = unittest.mock.MagicMock()
for name in names:
    importlib.import_module(name)
print(len(names), "imported")
"""


def module(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def too_new(source: str, names: dict[str, object]) -> Iterator[str]:
    """What an older Python can't read or run in a file, each as a message; `names` are those of its module."""
    try:
        tree = ast.parse(source, feature_version=MINIMUM_PYTHON)
    except SyntaxError as error:
        yield f"line {error.lineno}: {error.msg}"
        return
    future = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    annotations = {id(part) for node in ast.walk(tree) for part in _annotations(node)} if future else set()
    for node in ast.walk(tree):
        if id(node) in annotations:
            continue
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            if any(_is_type(side, names) for side in (node.left, node.right)):
                yield f"line {node.lineno}: {ast.unparse(node)} is evaluated; write Union, or a tuple for isinstance"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            for keyword in node.keywords:
                if (called, keyword.arg) in LATER:
                    yield f"line {node.lineno}: {called} takes no {keyword.arg}= there"


def _annotations(node: ast.AST) -> Iterator[ast.AST]:
    for name in ("annotation", "returns"):
        part = getattr(node, name, None)
        if part is not None:
            yield from ast.walk(part)


def _is_type(node: ast.expr, names: dict[str, object]) -> bool:
    match node:
        case ast.Constant(None) | ast.Subscript():
            return True
        case ast.Name(name):
            return isinstance(names.get(name, getattr(builtins, name, None)), type | types.GenericAlias)
        case ast.Attribute(ast.Name(owner), name):
            return isinstance(getattr(names.get(owner), name, None), type)
        case ast.BinOp(left, ast.BitOr(), right):
            return _is_type(left, names) or _is_type(right, names)
    return False


@pytest.mark.parametrize("path", FILES)
def test_an_older_python_can_run_it(path: str) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    assert list(too_new(source, vars(importlib.import_module(module(path))))) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("match x:\n    case 1: pass", "line 2: Pattern matching"),
        ("A = int | None", "line 1: int | None is evaluated"),
        ("def f(x: int | None) -> None: pass", "line 1: int | None is evaluated"),
        ("isinstance(x, int | str)", "line 1: int | str is evaluated"),
        ("A = bytes | sys.Mapped | list[int]", "line 1: bytes | sys.Mapped | list[int] is evaluated"),
        ("zip(x, y, strict=True)", "line 1: zip takes no strict= there"),
        ("@dataclasses.dataclass(slots=True)\nclass A: pass", "line 1: dataclass takes no slots= there"),
    ],
)
def test_what_is_too_new_is_found(source: str, message: str) -> None:
    assert next(too_new(source, {}), "").startswith(message)


@pytest.mark.parametrize(
    "source",
    ["from __future__ import annotations\ndef f(x: int | None) -> int | str: pass", "A = 1 << 3 | 4", "x = {**a} | b"],
)
def test_what_is_not_too_new_is_not_found(source: str) -> None:
    assert list(too_new(source, {})) == []


def test_that_python_imports_it() -> None:
    python = shutil.which("python{}.{}".format(*MINIMUM_PYTHON))
    if python is None or subprocess.run([python, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("there is no Python {}.{} here; .ci/kit runs the kit with one".format(*MINIMUM_PYTHON))
    command = [python, "-c", IMPORTER, str(ROOT), *map(module, FILES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(FILES)} imported\n"
