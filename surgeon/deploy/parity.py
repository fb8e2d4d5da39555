"""Does an ONNX file compute what the PyTorch module computes?"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor

from surgeon.device.ort_session import ORT_ERRORS, open_session
from surgeon.errors import BenchmarkError, ExportError, InvalidArgument

Function = Callable[..., Sequence[Tensor]]

ROUNDINGS = 4.0
"""How many times PyTorch's own rounding error a file may deviate: it sums the same numbers in another order."""
LOOSEST = 10.0
"""How many times the tolerance that may come to at most."""
SATURATED = 3e-4
"""What a sigmoid is compared with at least: onnxruntime's is off by up to 1.5e-7, however small it is, so that two of
them may be 3e-7 apart."""
_VIEWS = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


@dataclasses.dataclass(frozen=True)
class Parity:
    """The largest relative deviation found, the outputs compared, and what was let pass for rounding."""

    deviation: float
    outputs: tuple[str, ...]
    notes: tuple[str, ...] = ()


def relative_deviation(expected: np.ndarray, actual: np.ndarray, least: float = 0.0) -> float:
    """max |a - b| / max |b| over the elements, in float64; where b is all zero, max |a - b|.

    Where max |b| is below `least`, this stands in its place.

    NaN equals NaN and an infinity itself; an infinity or NaN on one side only deviates infinitely.

    >>> relative_deviation(np.array([1.0, -2.0]), np.array([1.0, -1.5]))
    0.25
    """
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if not (finite | same).all():
        return float("inf")
    if not finite.any():
        return 0.0
    scale = max(float(np.abs(b[finite]).max()), least)
    return float(np.abs(a[finite] - b[finite]).max()) / (scale or 1.0)


def check_parity(
    path: str | os.PathLike[str],
    function: Function,
    samples: Iterable[Sequence[Tensor]],
    *,
    input_names: Sequence[str],
    tolerance: float = 1e-3,
    precise: Function | None = None,
    given: Mapping[str, np.ndarray] | None = None,
) -> Parity:
    """Run the file at `path` and `function` on each of `samples` and compare every output.

    `function` takes the tensors of a sample, in the order of `input_names`, and returns tensors in the order
    of the file's outputs. `given` are inputs that only the file takes.

    Raises `ExportError` that names the output, the deviation and the input's shapes if one deviates by more than
    `tolerance` (see `relative_deviation`), has another shape, or is nowhere finite.

    `precise` is `function` in float64. With it, an output whose own rounding error in PyTorch, its deviation from
    `precise`, is near the tolerance may deviate by `ROUNDINGS` times that error, and by `LOOSEST` times the tolerance
    at most: a network that magnifies rounding is not exported wrongly.
    """
    try:
        session = open_session(path, threads=torch.get_num_threads())
    except (BenchmarkError, InvalidArgument) as error:
        raise ExportError(f"onnxruntime refuses the exported file: {error}") from error
    names = tuple(output.name for output in session.get_outputs())
    wanted = {item.name for item in session.get_inputs()}
    largest = 0.0
    notes: dict[str, str] = {}
    least = least_scales(path)
    for sample in samples:
        shapes = {name: tuple(tensor.shape) for name, tensor in zip(input_names, sample, strict=True)}
        expected = _reference(function, sample, shapes)
        feeds = {name: tensor.numpy() for name, tensor in zip(input_names, sample, strict=True) if name in wanted}
        actual = _run(session, {**(given or {}), **feeds}, shapes)
        if len(actual) != len(expected):
            raise ExportError(
                f"the exported file has {len(actual)} outputs ({', '.join(names)}), the model {len(expected)}"
            )
        exact: list[np.ndarray] | None = None
        for index, (name, want, got) in enumerate(zip(names, expected, actual, strict=True)):
            deviation = _compare(name, want, got, shapes, least.get(name, 0.0))
            largest = max(largest, deviation)
            if deviation <= tolerance:
                continue
            if exact is None and precise is not None:
                exact = _in_double(precise, sample)
            rounding = relative_deviation(exact[index], want) if exact and exact[index].shape == want.shape else 0.0
            if not deviation <= min(ROUNDINGS * rounding, LOOSEST * tolerance):
                raise ExportError(
                    f"output {name!r} deviates from PyTorch by {deviation:.3g} (max |a - b| / max |b|), "
                    f"more than the tolerance {tolerance:g}, on inputs {shapes}"
                )
            notes[name] = (
                f"output {name} deviates by {deviation:.1e}, more than {tolerance:g}: float32 rounds the model's own "
                f"output by {rounding:.1e} in PyTorch"
            )
    return Parity(largest, names, tuple(notes.values()))


def _reference(function: Function, sample: Sequence[Tensor], shapes: dict[str, tuple[int, ...]]) -> list[np.ndarray]:
    try:
        with torch.no_grad():
            # Cloned, because a model may write into its input.
            return [tensor.numpy() for tensor in function(*(tensor.clone() for tensor in sample))]
    # A user's forward may raise anything.
    except Exception as error:
        raise ExportError(f"the model itself fails in PyTorch on inputs {shapes}: {error}") from error


def _run(
    session: ort.InferenceSession, feeds: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]
) -> list[np.ndarray]:
    try:
        return session.run(None, feeds)
    except ORT_ERRORS as error:
        raise ExportError(f"the exported file fails in onnxruntime on inputs {shapes}: {error}") from error


def _in_double(precise: Function, sample: Sequence[Tensor]) -> list[np.ndarray]:
    """The outputs in float64; none where the model insists on another type."""
    doubles = (tensor.double() if tensor.is_floating_point() else tensor.clone() for tensor in sample)
    try:
        with torch.no_grad():
            return [tensor.numpy() for tensor in precise(*doubles)]
    except Exception:  # noqa: BLE001  (a user's forward may raise anything)
        return []


def least_scales(path: str | os.PathLike[str]) -> dict[str, float]:
    """What outputs of a file are compared with at least: a sigmoid may be as near to 0 as can be.

    All of a softmax is never small.
    """
    graph = onnx.load(path, load_external_data=False).graph
    makers = {name: node for node in graph.node for name in node.output}
    found = {}
    for each in graph.output:
        node = makers.get(each.name)
        while node is not None and node.op_type in _VIEWS:
            node = makers.get(node.input[0])
        if node is not None and node.op_type == "Sigmoid":
            found[each.name] = SATURATED
    return found


def _compare(
    name: str, want: np.ndarray, got: np.ndarray, shapes: dict[str, tuple[int, ...]], least: float
) -> float:
    if want.shape != got.shape:
        raise ExportError(
            f"output {name!r} has shape {got.shape} in onnxruntime and {want.shape} in PyTorch, inputs {shapes}"
        )
    if want.size and not np.isfinite(np.asarray(want, dtype=np.float64)).any():
        raise ExportError(
            f"output {name!r} is nowhere finite in PyTorch itself on inputs {shapes}, so nothing "
            "can be compared; look for NaN in the weights, or pass example inputs of the range it is made for"
        )
    return relative_deviation(want, got, least)
