"""How a model, data or a task is named on the command line; read before torch is imported, which takes seconds.

>>> parts("timm:resnet18"), parts("nets/mine.py:Net"), parts("resnet18")
(('timm', 'resnet18'), ('nets/mine.py', 'Net'), None)
"""

from __future__ import annotations

import os
import re

from surgeon.errors import InvalidArgument

FORMS = "timm:NAME, torchvision:NAME, package.module:NAME, folder/file.py:NAME, or a file NAME.pt2 or NAME.onnx"
FILES = (".pt2", ".onnx")
#: The endings of files that hold weights, or a pickle.
WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".pkl")


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
        raise InvalidArgument(f"{spec!r} names no model; {_meant(spec)}give {FORMS}")


def _meant(spec: str) -> str:
    """What may have been meant by a text of no known form.

    >>> _meant("net.py"), _meant("timm/resnet18"), _meant("my model")
    ('did you mean net.py:NAME, of what makes the model in it? else ', 'did you mean timm:resnet18? else ', '')
    """
    if spec.endswith(WEIGHTS):
        return "weights alone tell no model: name a function that makes one and loads them, file.py:NAME; else "
    if spec.endswith(".py"):
        return f"did you mean {spec}:NAME, of what makes the model in it? else "
    if zoo := re.fullmatch(r"(timm|torchvision)[/.](\w+)", spec):
        return f"did you mean {zoo[1]}:{zoo[2]}? else "
    return f"did you mean timm:{spec} or torchvision:{spec}? else " if re.fullmatch(r"[a-z]\w*", spec) else ""
