"""The errors that surgeon raises. Each message names the place, the shapes and the remedy."""

from __future__ import annotations


class SurgeonError(Exception):
    """Base class of every error that surgeon raises on purpose."""


def first_line(error: BaseException) -> str:
    """What an error says, as one line: others quote it.

    >>> first_line(ValueError("no such size\\nat …")), first_line(KeyError())
    ('no such size', 'KeyError')
    """
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


class InvalidArgument(SurgeonError, ValueError):
    """An argument is out of range, of the wrong type, or names nothing in the model."""


class InvalidModel(SurgeonError, ValueError):
    """The model holds something that can't be pruned safely, such as NaN in a weight."""


class TraceError(SurgeonError):
    """`torch.export` could not trace the model with the given example inputs."""


class InvalidInputs(SurgeonError, ValueError):
    """The example inputs do not fit the model, or could not be inferred."""


class NothingToPrune(SurgeonError):
    """Every axis of the model is pinned."""


class Infeasible(SurgeonError):
    """The budget can't be met; the message says how far pruning could go and what holds the rest.

    `reachable` is the share of the budget that could be removed, where it is known.
    """

    def __init__(self, message: str, reachable: float | None = None) -> None:
        super().__init__(message)
        self.reachable = reachable


class PlanError(SurgeonError, ValueError):
    """A plan is malformed, of a newer version, or of another architecture."""


class WeightsError(SurgeonError, ValueError):
    """A weights file has missing, extra or misshapen tensors."""


class SurgeryError(SurgeonError):
    """The smaller model could not be built; nothing was changed."""


class NotEquivalent(SurgeonError):
    """The smaller model is not the original less the removed units."""


class ExportError(SurgeonError):
    """The ONNX file could not be written, or does not compute what PyTorch computes."""


class BenchmarkError(SurgeonError):
    """A latency could not be measured."""


class ProfileError(SurgeonError, ValueError):
    """A device profile is missing, malformed, of a newer version, or of another CPU than what it is joined with."""


class OutputError(SurgeonError, OSError):
    """A file or folder could not be written; what was there before is intact."""
