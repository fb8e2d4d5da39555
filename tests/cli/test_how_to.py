"""docs/how-to-onnx-file.md, typed as it stands: what it prints, but for the numbers."""

from __future__ import annotations

import functools
import re
import runpy
import shlex
from pathlib import Path

import pytest

import surgeon
from tests.cli.commands import good

PAGE = (Path(__file__).parents[2] / "docs" / "how-to-onnx-file.md").read_text(encoding="utf-8")
FILES = re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
CONSOLE = "".join(re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
#: What these print depends on the machine.
MEASURED = ("bench", "quantize")
STEPS = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", CONSOLE, re.MULTILINE)


def told(text: str) -> list[str]:
    """Lines without numbers, the width of columns, and what a busy machine makes of the verdict."""
    plain = (re.sub(r"\d[\d,.]*(e[+-]\d+)?|(?<=^verdict ).*", "N", line) for line in text.splitlines())
    return [re.sub(r"\s+", " ", line).strip() for line in plain]


def test_the_page_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("benchmark", "quantize"):
        monkeypatch.setattr(surgeon, name, functools.partial(getattr(surgeon, name), seconds=0.3))
    monkeypatch.chdir(tmp_path)
    for name, code in FILES:
        Path(name).write_text(code, encoding="utf-8")
    assert len(STEPS) >= 6
    for command, printed in STEPS:
        program, *arguments = shlex.split(command)
        if program == "python":
            runpy.run_path(arguments[0])
            continue
        assert program == "surgeon"
        found = iter(told(good(*arguments)))
        for line in told(printed) if arguments[0] not in MEASURED else ():
            assert line == "…" or line in found, f"{command} does not print, in this order: {line}"
