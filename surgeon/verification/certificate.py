"""What was proved about a smaller model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class SecondSize:
    """What was proved at other sizes of the inputs, `shapes`, each axis that the model leaves free at another one.

    `deviation` is the largest relative deviation of any output from what it was held `against`; None where only the
    shapes of the outputs were, for the `reason`.
    """

    shapes: tuple[str, ...]
    deviation: float | None
    against: str
    reason: str

    def __str__(self) -> str:
        found = f"{self.deviation:.1e} from {self.against}" if self.deviation is not None else (
            f"shapes only: {self.reason}"
        )
        return f"at a second size, {', '.join(self.shapes)}: {found}"


@dataclass(frozen=True)
class Certificate:
    """The smaller model computes what the original computes less the removed units.

    `deviation` is the largest relative deviation of any operator's result, in float64, from the original run at full
    size with removed positions zeroed; `worst` is that operator, `operators` how many were compared, and `tolerance`
    the deviation that would have been an error. `outputs` has the deviation of each output. `end_to_end` is the
    deviation of the outputs from the original with the removed units' parameters set to zero, an independent check;
    None where it does not apply, for the reason `end_to_end_reason`. `statistics` lists the operators that now take
    their statistic over the kept units only: there the function is not the original's, whatever the weights.
    `second_size` is the same at another size of the inputs, where some are free. `rescaled` lists the weight norms and
    spectral norms whose gain was rescaled: the weights under them that are left are the original's, to the rounding of
    the gain.

    >>> print(Certificate(1e-16, "conv2", 12, (2e-16,), 3e-16, "", (), tolerance=1e-9))
    node by node: 12 operators, largest relative deviation 1.0e-16 (conv2)
    outputs: 2.0e-16
    end to end with zeroed parameters: 3.0e-16
    >>> Certificate(1e-16, "conv2", 12, (2e-16,), 3e-16, "", (), tolerance=1e-9).to_json()["outputs"]
    (2e-16,)
    """

    deviation: float
    worst: str
    operators: int
    outputs: tuple[float, ...]
    end_to_end: float | None
    end_to_end_reason: str
    statistics: tuple[str, ...]
    tolerance: float
    second_size: SecondSize | None = None
    rescaled: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The certificate as plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        whole = f"{self.end_to_end:.1e}" if self.end_to_end is not None else f"does not apply: {self.end_to_end_reason}"
        lines = [
            f"node by node: {self.operators} operators, largest relative deviation {self.deviation:.1e}"
            + (f" ({self.worst})" if self.worst else ""),
            f"outputs: {', '.join(f'{d:.1e}' for d in self.outputs)}",
            f"end to end with zeroed parameters: {whole}",
        ]
        if self.second_size is not None:
            lines.append(str(self.second_size))
        if self.statistics:
            lines.append(f"statistics over kept units only: {_listed(self.statistics)}")
        if self.rescaled:
            lines.append(f"rescaled, so that the weights that are left are the same: {_listed(self.rescaled)}")
        return "\n".join(lines)


def _listed(places: tuple[str, ...]) -> str:
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return "; ".join(places[:3]) + more
