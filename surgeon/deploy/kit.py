"""Makes the kit: one file that measures a model's operators where there is neither torch nor surgeon."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import surgeon.device
from surgeon.device import kit
from surgeon.device.layout_probes import Probe
from surgeon.device.microbenchmark import Point, Whole
from surgeon.errors import InvalidArgument
from surgeon.support.files import replace

# The rest of surgeon that device/ needs.
_SUPPORT = "__init__ arguments documents exchange files interrupts opening process_wide scratch strict_json".split()
_BESIDE = ("errors", *(f"support/{name}" for name in _SUPPORT))
_SHEBANG = b"#!/usr/bin/env python3\n"

# Runs before anything else does, so that old Pythons can read it and say what is missing.
_MAIN = """\
import os
import sys

ARCHIVE = os.path.dirname(os.path.abspath(__file__))
NAME = os.path.basename(ARCHIVE)

if sys.version_info < (3, 10):
    sys.exit("%s needs Python 3.10 or later; this is Python %d.%d" % ((NAME,) + sys.version_info[:2]))
for package in ("numpy", "onnxruntime"):
    try:
        __import__(package)
    except ImportError as error:
        sys.exit("%s needs %s (%s); run: %s -m pip install numpy onnxruntime"
                 % (NAME, package, error, sys.executable or "python3"))

from surgeon.device.kit_main import main

if __name__ == "__main__":
    sys.exit(main(ARCHIVE))
"""


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
    compares two files there. It needs Python 3.10 or later, numpy and onnxruntime. The same arguments make the
    same file, byte for byte.

    Raises `InvalidArgument` if there are no points, or `path` has not the ending `.pyz`, and `OutputError` if
    it can't be written.

    >>> write_kit("kit.pyz", points, probes, name="mobilenetv2")  # doctest: +SKIP
    PosixPath('kit.pyz')
    """
    if not points:
        raise InvalidArgument("a kit without points has nothing to measure")
    if Path(path).suffix != ".pyz":
        raise InvalidArgument(f"{path}: a kit's name must end in .pyz, by which Python knows that it can run it")
    folder = Path(surgeon.device.__file__).parent
    beside = (folder.parent / f"{file}.py" for file in _BESIDE)
    sources = [*sorted(folder.glob("*.py")), *beside]
    with replace(path) as temporary, temporary.open("wb") as file:
        file.write(_SHEBANG)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            kit.write_member(archive, "__main__.py", _MAIN.encode())
            kit.write_member(archive, "surgeon/__init__.py", b"")
            for source in sources:
                member = source.relative_to(folder.parent.parent).as_posix()
                kit.write_member(archive, member, source.read_bytes())
            kit.write(kit.Kit(name or Path(path).stem, tuple(points), tuple(probes), dict(models or {})), archive)
    return Path(path)
