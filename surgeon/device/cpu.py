"""What this machine's CPU is called."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

INFO: Final = Path("/proc/cpuinfo")
MODEL: Final = Path("/proc/device-tree/model")

# What Linux says of an ARM core in place of a name
_NUMBERS: Final = ("CPU implementer", "CPU part", "CPU variant", "CPU revision")
_UNNAMED: Final = "ARMv"  # how a name begins that 64-bit kernels give all cores of an architecture


def cpu_name() -> str:
    """The CPU's model name, as the system gives it. Where it names none, as Linux on most ARM boards, the numbers of
    its cores: a profile must not pass for one of another CPU."""
    cores = [_entries(core) for core in _text(INFO).split("\n\n")]
    named = [core["model name"] for core in cores if core.get("model name")]
    if named and not named[0].startswith(_UNNAMED):
        return named[0]
    board = next((core["Model"] for core in cores if core.get("Model")), _text(MODEL).strip("\0 \t\n"))
    if board:
        return board
    numbers = [" ".join(core[name] for name in _NUMBERS) for core in cores if core.keys() >= {*_NUMBERS}]
    if numbers:
        return f"{named[0] if named else platform.machine()}, core {' and '.join(dict.fromkeys(numbers))}"
    return platform.processor() or platform.machine() or "unknown"


def _entries(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip("\0 \t") for name, _, value in pairs}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
