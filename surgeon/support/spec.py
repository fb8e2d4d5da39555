"""How a model, data or a task is named on the command line; read before torch is imported, which takes seconds.

>>> parts("timm:resnet18"), parts("nets/mine.py:Net"), parts("resnet18")
(('timm', 'resnet18'), ('nets/mine.py', 'Net'), None)
"""

from __future__ import annotations

import os

from surgeon.errors import InvalidArgument

FORMS = "timm:NAME, torchvision:NAME, package.module:NAME, folder/file.py:NAME, or a file NAME.pt2 or NAME.onnx"
FILES = (".pt2", ".onnx")


def parts(spec: str) -> tuple[str, str] | None:
    """The source and the name in `SOURCE:NAME`; None where `spec` is no such text."""
    source, _, name = spec.rpartition(":") if ".py:" in spec else spec.partition(":")
    return (source, name) if source and name else None


def check(spec: str) -> None:
    """See that `spec` may name a model.

    Raises:
        InvalidArgument: it is of no known form, or names a file that is not there.
    """
    if spec.endswith(FILES):
        if not os.path.lexists(spec):
            raise InvalidArgument(f"{spec}: there is no such file")
    elif parts(spec) is None:
        raise InvalidArgument(f"{spec!r} names no model; give {FORMS}")
