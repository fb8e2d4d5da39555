"""What an export wrote, and how closely the file follows PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how closely it follows PyTorch.

    `path` is the file, of the version `opset` of ONNX's operators. `bytes` counts weights in a file beside it too;
    `inputs` are the sizes of the inputs' axes, a name where an axis is free; `deviation` is the largest max |a - b| /
    max |b| of an output over all inputs tried, which were of the shapes `shapes_checked`; `notes` say what may be
    unexpected, and why an axis that the model leaves free is fixed.

    `original` is the ONNX file that the model was loaded from, if this is that file, less what was removed.
    `off_original` is how far it is, right after the cut, from the original with zeros in place of what was
    removed, both in onnxruntime on the same inputs; None where that can't be told, which `notes` explain.

    >>> tried = ({"x": (1, 3, 224, 224)},)
    >>> report = ExportReport(Path("a.onnx"), 46_000_000, 20, {"x": ("batch", 3, 224, 224)}, 1e-7, tried)
    >>> report.dynamic_batch
    True
    >>> print(report)
    a.onnx: 46.00 MB, opset 20, free: batch, deviation from PyTorch 1.0e-07 (largest of 1 shapes)
      x (batch, 3, 224, 224)
    """

    path: Path
    bytes: int
    opset: int
    inputs: Mapping[str, tuple[int | str, ...]]
    deviation: float
    shapes_checked: tuple[Mapping[str, tuple[int, ...]], ...]
    notes: tuple[str, ...] = ()
    original: Path | None = None
    off_original: float | None = None

    @property
    def dynamic_batch(self) -> bool:
        """Whether the first axis of an input is free."""
        return any(bool(shape) and isinstance(shape[0], str) for shape in self.inputs.values())

    def __str__(self) -> str:
        names = list(dict.fromkeys(size for shape in self.inputs.values() for size in shape if isinstance(size, str)))
        free = f"free: {', '.join(names)}" if names else "all sizes fixed"
        lines = [
            f"{self.path}: {self.bytes / 1e6:.2f} MB, opset {self.opset}, {free}, deviation from PyTorch "
            f"{self.deviation:.1e} (largest of {len(self.shapes_checked)} shapes)"
        ]
        lines += [f"  {name} ({', '.join(map(str, shape))})" for name, shape in self.inputs.items()]
        if self.original is not None:
            lines.append(f"  {self.original.name} itself, less what was removed: its names, types, opset and metadata")
        if self.original is not None and self.off_original is not None:
            lines.append(
                f"  right after the cut {self.off_original:.1e} off {self.original.name} with zeros in place of what "
                "was removed, both in onnxruntime"
            )
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])
