"""A CPU's name is the system's, or what tells it from others."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgeon.device import cpu

CORE = """processor\t: {index}
BogoMIPS\t: 108.00
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {part}
CPU revision\t: 3

"""
PI = CORE.format(index=0, part="0xd08") + CORE.format(index=1, part="0xd08")
BIG_LITTLE = CORE.format(index=0, part="0xd05") + CORE.format(index=1, part="0xd0b")
X86 = "processor\t: 0\nmodel name\t: A CPU @ 3 GHz\n\nprocessor\t: 1\nmodel name\t: A CPU @ 3 GHz\n"
COMPATIBLE = PI.replace("BogoMIPS", "model name\t: ARMv8 Processor rev 3 (v8l)\nBogoMIPS")

CASES = [
    (X86, "", "A CPU @ 3 GHz"),
    (PI + "Revision\t: c03115\nModel\t\t: Raspberry Pi 4 Model B Rev 1.5\n", "", "Raspberry Pi 4 Model B Rev 1.5"),
    (COMPATIBLE, "Radxa ROCK 5B\0", "Radxa ROCK 5B"),
    (PI, "Radxa ROCK 5B\0", "Radxa ROCK 5B"),
    (COMPATIBLE, "", "ARMv8 Processor rev 3 (v8l), core 0x41 0xd08 0x0 3"),
    (BIG_LITTLE, "", "a machine, core 0x41 0xd05 0x0 3 and 0x41 0xd0b 0x0 3"),
    ("", "", "a processor"),
]


@pytest.mark.parametrize(("info", "board", "name"), CASES)
def test_name(info: str, board: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, text in (("INFO", info), ("MODEL", board)):
        monkeypatch.setattr(cpu, place, tmp_path / place)
        if text:
            (tmp_path / place).write_text(text)
    monkeypatch.setattr("platform.machine", lambda: "a machine")
    monkeypatch.setattr("platform.processor", lambda: "a processor")
    assert cpu.cpu_name() == name
