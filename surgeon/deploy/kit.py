"""Makes the kit: one file that measures a model's operators where there is neither torch nor surgeon."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import surgeon.device
from surgeon.device import kit
from surgeon.device.layout_probes import Probe
from surgeon.device.microbenchmark import Point, Whole
from surgeon.errors import InvalidArgument
from surgeon.support.files import replace

# The rest of surgeon that device/ needs.
_SUPPORT = "__init__ arguments documents exchange files interrupts opening process_wide scratch strict_json".split()
_BESIDE = ("errors", *(f"support/{name}" for name in _SUPPORT))
#: The oldest Python and onnxruntime that a kit runs with: the latter is the first that reads its graphs.
MINIMUM_PYTHON: Final = (3, 9)
MINIMUM_ONNXRUNTIME: Final = (1, 17)
_SHEBANG = b"#!/usr/bin/env python3\n"

# Runs before anything else does, so that old Pythons can read it and say what is missing.
_MAIN = """\
import os
import sys

PYTHON, RUNTIME = MINIMUM_PYTHON, MINIMUM_ONNXRUNTIME
ARCHIVE = os.path.dirname(os.path.abspath(__file__))
NAME = os.path.basename(ARCHIVE)
PIP = "%s -m pip install" % (sys.executable or "python3")

if sys.version_info < PYTHON:
    sys.exit("%s needs Python %d.%d or later; this is Python %d.%d" % ((NAME,) + PYTHON + sys.version_info[:2]))
for package in ("numpy", "onnxruntime"):
    try:
        __import__(package)
    except Exception as error:
        reason = str(error) or "it can't be imported"
        text = "%s needs %s (%s); run: %s numpy onnxruntime" % (NAME, package, reason, PIP)
        if package == "onnxruntime" and int(sys.modules["numpy"].__version__.split(".")[0]) > 1:
            text += "; or, for an onnxruntime before 1.19, which knows no numpy 2: %s 'numpy<2'" % PIP
        sys.exit(text)
version = sys.modules["onnxruntime"].__version__
if tuple(map(int, version.split(".")[:2])) < RUNTIME:
    sys.exit("%s needs onnxruntime %d.%d or later, the first that reads its graphs (opset 20, IR 9); this is %s; "
             "run: %s --upgrade onnxruntime" % ((NAME,) + RUNTIME + (version, PIP)))

from surgeon.device.kit_main import main

if __name__ == "__main__":
    sys.exit(main(ARCHIVE))
""".replace("MINIMUM_PYTHON", repr(MINIMUM_PYTHON)).replace("MINIMUM_ONNXRUNTIME", repr(MINIMUM_ONNXRUNTIME))


def carried() -> list[Path]:
    """The files of surgeon that a kit takes along. Each of them runs in `MINIMUM_PYTHON`."""
    folder = Path(surgeon.device.__file__).parent
    return [*sorted(folder.glob("*.py")), *(folder.parent / f"{file}.py" for file in _BESIDE)]


def write_kit(
    path: str | os.PathLike[str],
    points: Sequence[Point],
    probes: Sequence[Probe] = (),
    *,
    models: Mapping[str, Whole] | None = None,
    name: str = "",
) -> Path:
    """Write a kit that measures the points, answers the probes and times the models, by fingerprint.

    `python kit.pyz -o profile.json` measures on the device, `python kit.pyz bench base.onnx slim.onnx`
    compares two files there. It needs Python 3.9 or later, numpy, and onnxruntime 1.17 or later. The same arguments
    make the same file, byte for byte.

    Raises `InvalidArgument` if there are no points, or `path` has not the ending `.pyz`, and `OutputError` if
    it can't be written.

    >>> write_kit("kit.pyz", points, probes, name="mobilenetv2")  # doctest: +SKIP
    PosixPath('kit.pyz')
    """
    if not points:
        raise InvalidArgument("a kit without points has nothing to measure")
    if Path(path).suffix != ".pyz":
        raise InvalidArgument(f"{path}: a kit's name must end in .pyz, by which Python knows that it can run it")
    root = Path(surgeon.device.__file__).parents[2]
    with replace(path) as temporary, temporary.open("wb") as file:
        file.write(_SHEBANG)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            kit.write_member(archive, "__main__.py", _MAIN.encode())
            kit.write_member(archive, "surgeon/__init__.py", b"")
            for source in carried():
                kit.write_member(archive, source.relative_to(root).as_posix(), source.read_bytes())
            kit.write(kit.Kit(name or Path(path).stem, tuple(points), tuple(probes), dict(models or {})), archive)
    return Path(path)
