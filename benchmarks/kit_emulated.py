"""The kit on machines that are not this one: an emulated aarch64, older and newer Pythons, older onnxruntimes.

    python -m benchmarks.kit_emulated [--only aarch64] [--redo] [--check] [--folder build/machines]

Each machine holds Python, numpy and onnxruntime alone. There, the kit of a small network answers its probes and takes a
profile; here the profile is read, and a network is made that takes half of the milliseconds by it; there, both files
are compared; here, the verdict is read. Under emulation milliseconds mean nothing, but every step is the real one.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import surgeon
from benchmarks.machines import Machine, Unavailable, emulated, installed, of_release
from benchmarks.rows import append, command, last, publish, to_run

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "kit_emulated.jsonl"
PAGE = RESULTS.with_suffix(".md")

Row = dict[str, Any]

Make = Callable[[Path, str, "str | None"], Machine]

#: How machines are made, and which: Debian's releases, or Pythons that are installed here, with some onnxruntimes that
#: there are wheels of for them, the oldest and the newest among them. Pythons from 3.9 to 3.14.
MACHINES: dict[str, tuple[Make, dict[str, tuple[str | None, ...]]]] = {
    "aarch64": (emulated, {
        "bullseye": ("1.17.0", "1.19.2"),
        "bookworm": ("1.17.0", "1.23.0", None),
        "trixie": ("1.20.0", None),
        "forky": (None,),
    }),
    "release": (of_release, {
        "bullseye": ("1.17.0", "1.18.1", "1.19.2"),
        "bookworm": ("1.17.0", "1.22.1", None),
        "trixie": ("1.20.0", "1.21.1"),
        "forky": ("1.24.1", None),
    }),
    "installed": (installed, {"python3.10": ("1.17.3", "1.23.2"), "python3.12": ("1.17.0", "1.20.1", None)}),
}
LEFT = 0.5

# What needs no package and no file of this project is all that a device has.
ALONE = "import importlib.util as u; print([n for n in ('torch', 'onnx', 'surgeon') if u.find_spec(n)])"


class Small(nn.Module):
    """One of each: convolutions of a few kinds, a residual, a gate, pooling, a norm, a product."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.SiLU())
        self.depthwise = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.Hardswish(), nn.Conv2d(32, 32, 1))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 16, 1), nn.ReLU(), nn.Conv2d(16, 32, 1))
        self.branches = nn.ModuleList([nn.Conv2d(32, 24, 1), nn.Conv2d(32, 40, 3, 1, 1)])
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.LayerNorm(64)
        self.mlp = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, of images (batch, 3, 32, 32)."""
        x = self.stem(x)
        x = x + self.depthwise(x)
        x = x * torch.sigmoid(self.gate(x))
        x = self.pool(torch.cat([branch(x) for branch in self.branches], 1))
        x = x.flatten(2).transpose(1, 2)
        x = x + self.mlp(self.norm(x))
        return self.head(x.mean(1))


def every_step(machine: Machine) -> Row:
    """Each step on the machine or with what it wrote; an exception where one fails."""
    torch.manual_seed(0)
    model, inputs = Small().eval(), torch.randn(2, 3, 32, 32)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if (found := machine.printed("-c", ALONE, folder=folder).strip()) != "[]":
            raise RuntimeError(f"{machine.name} has {found}")
        surgeon.kit(model, folder / "kit.pyz", inputs)
        start = time.perf_counter()
        machine.printed("kit.pyz", "-o", "there.json", folder=folder)
        seconds["profile"] = time.perf_counter() - start
        profile = surgeon.Profile.load(folder / "there.json")
        (whole,) = (row["ms"] for row in profile.models.values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the profile is of another CPU
            slim, report = surgeon.shrink(
                model, latency_ms=LEFT * whole, example_inputs=inputs, device=profile, return_report=True
            )
        for name, network in (("base", model), ("slim", slim)):
            surgeon.export(network, folder / f"{name}.onnx", example_inputs=inputs)
        start = time.perf_counter()
        machine.printed("kit.pyz", "bench", "base.onnx", "slim.onnx", "--seconds", "1", "-o", "v.json", folder=folder)
        seconds["bench"] = time.perf_counter() - start
        verdict = surgeon.load_verdict(folder / "v.json")
    return {
        "machine": machine.name, "cpu": profile.cpu, "runtime": profile.runtime, "block": profile.block,
        "rules": dict(profile.rules), "points": len(profile.samples),
        "blocked": sum(sample.blocked for sample in profile.samples.values()),
        "asked": LEFT * whole, "predicted": report.latency.predicted,
        "widths": {name: [group.before, group.after] for name, group in report.groups.items()},
        "decision": verdict.decision, "layout": str(verdict.layout.slim),
        "ratio": [verdict.ratio.value, verdict.ratio.low, verdict.ratio.high], "seconds": seconds,
    }


def rows() -> dict[str, tuple[Make, str, str | None]]:
    """The machines by name: how each is made, of what, and with which onnxruntime."""
    return {
        f"{kind} {name}, {version or 'newest'}": (make, name, version)
        for kind, (make, names) in MACHINES.items()
        for name, versions in names.items()
        for version in versions
    }


def table(found: dict[str, Row]) -> str:
    """The rows in Markdown."""
    head = (
        "The kit of a small network where there are Python, numpy and onnxruntime alone: probed and profiled there, "
        f"planned here for {LEFT:.0%} of the milliseconds by that profile, compared there, the verdict read here. "
        "aarch64 is emulated (qemu, Cortex-A76): its milliseconds mean nothing. Block: channels of a block of the "
        "NCHWc layout; 0 where onnxruntime has none. Multiples: of which widths have to be, to stay in it.\n\n"
        "`python -m benchmarks.kit_emulated`\n"
    )
    names = ["machine", "points", "block", "multiples", "NCHWc", "predicted over asked", "verdict", "seconds"]
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    for row in found.values():
        multiples = sorted({row["rules"][name] for name in ("conv_in", "conv_out", "depthwise", "pool", "concat")})
        cells = [
            row["machine"], str(row["points"]), str(row["block"]), ", ".join(map(str, multiples)),
            f"{row['blocked']} points; {row['layout']}", f"{row['predicted'] / row['asked']:.3f}",
            f"{row['decision']} {row['ratio'][0]:.2f}×", f"{row['seconds']['profile']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return head + "\n" + "\n".join(lines) + "\n"


def main() -> int:
    """The command; its status is 1 where a step failed. A machine that can't be made here is said, and left out."""
    parser = command(__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "machines", help="where machines are unpacked")
    parser.add_argument("--check", action="store_true", help="run it all, and keep no results")
    given = parser.parse_args()
    folder, asked = given.folder.resolve(), rows()
    passed, failed = 0, 0
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in [] if given.table else to_run(asked, given.only, given.redo or given.check, last(RESULTS, "row")):
        make, of, version = asked[name]
        try:
            row = {"row": name, **every_step(make(folder, of, version))}
        except Unavailable as error:
            sys.stdout.write(f"{name}: left out: {error}\n")
        except (RuntimeError, surgeon.SurgeonError) as error:
            failed += 1
            sys.stdout.write(f"{name}: {error}\n")
        else:
            passed += 1
            if given.check:
                sys.stdout.write(table({name: row}).splitlines()[-1] + "\n")
            else:
                append(RESULTS, row)
        sys.stdout.flush()
    if given.check:
        sys.stdout.write(f"{passed} passed, {failed} failed\n")
    else:
        publish(table(last(RESULTS, "row")), PAGE)
    return 1 if failed or (given.check and not passed) else 0


if __name__ == "__main__":
    sys.exit(main())
