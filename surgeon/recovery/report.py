"""The report of a recovery, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from surgeon.recovery.agreement import Agreement


@dataclass(frozen=True)
class Layer:
    """One layer that reads removed units, or values computed from them.

    `before` and `after` are the deviation of its output from the original's on the data held back, relative to the
    spread of the original's; `change` says what was changed: "weights", "bias" or "nothing".
    """

    name: str
    inputs: int
    before: float
    after: float
    change: str

    @property
    def kept(self) -> bool:
        """Whether the layer was changed."""
        return self.change != "nothing"


@dataclass(frozen=True)
class Distillation:
    """The number of steps of distillation, and the outputs' deviation before and after it.

    0 steps, if it did not help on the data held back.
    """

    steps: int
    before: float
    after: float

    def __str__(self) -> str:
        if not self.steps:
            return "distilled: that did not help on the data held back, and was undone"
        return f"distilled in {self.steps} steps: outputs deviate by {self.after:.3f} instead of {self.before:.3f}"


@dataclass(frozen=True)
class Recovery:
    """What `recover` did. Prints as a table.

    `before` and `after` are the deviation of the model's outputs from the original's on the data held back, relative to
    the outputs' norm. `layers` are those that were fitted, `batch_norms` is the number of those whose statistics were
    re-estimated, `samples` that of the inputs that were used. `distilled` tells of the distillation that followed,
    `agreement` how much of the function is kept, `notes` what may be unexpected; `seconds` are those of each stage.

    >>> print(Recovery((Layer("conv2", 32, before=0.5, after=0.1, change="weights"),), 0, 256, before=0.8, after=0.2))
    outputs deviate by 0.200 instead of 0.800 (relative), 256 samples
    layer  inputs  before  after  changed
    conv2      32   0.500  0.100  weights
    """

    layers: tuple[Layer, ...]
    batch_norms: int
    samples: int
    before: float
    after: float
    notes: tuple[str, ...] = ()
    distilled: Distillation | None = None
    agreement: Agreement | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        head = f"outputs deviate by {self.after:.3f} instead of {self.before:.3f} (relative), {self.samples} samples"
        rows = [("layer", "inputs", "before", "after", "changed")]
        rows += [(x.name, str(x.inputs), f"{x.before:.3f}", f"{x.after:.3f}", x.change) for x in self.layers]
        wide = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            f"{a:<{wide[0]}}  {b:>{wide[1]}}  {c:>{wide[2]}}  {d:>{wide[3]}}  {e}" for a, b, c, d, e in rows
        ] if self.layers else []
        norms = [f"{self.batch_norms} batch norms re-estimated"] if self.batch_norms else []
        moved = [str(self.distilled)] if self.distilled is not None else []
        times = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
        return "\n".join([head, *lines, *norms, *moved, *self.notes, *([f"seconds: {times}"] if times else [])])
