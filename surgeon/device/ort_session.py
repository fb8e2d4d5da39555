"""onnxruntime sessions with reproducible settings."""

from __future__ import annotations

import json
import math
import os
import timeit
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from surgeon.device.claims import check_claims
from surgeon.device.external import check_external
from surgeon.device.onnx_protobuf import OPSET, Graph, mapped, parse, versions
from surgeon.errors import BenchmarkError, InvalidArgument
from surgeon.support.documents import EXAMPLE
from surgeon.support.opening import Unfit, require_file
from surgeon.support.scratch import temporary_folder

ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    ort_errors.EPFail,
    RuntimeError,  # errors from C++, such as of failed allocations
    MemoryError,
    UnicodeDecodeError,
)
"""What onnxruntime raises for a file that it can read but can't run."""

_UNREADABLE = (ort_errors.InvalidProtobuf, ort_errors.NoSuchFile, ort_errors.NoModel)

_MADE_UP = 1 << 26
"""The most values of a generated input."""

# onnxruntime's names of types that numpy has; most are numpy's too
_NUMPY_TYPES = {
    name: np.dtype({"float": "float32", "double": "float64"}.get(name, name))
    for name in "float float16 double bool int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()
}


def open_session(
    model: str | os.PathLike[str] | bytes,
    *,
    threads: int = 1,
    optimize: bool = True,
    spin: bool = False,
    dump_to: Path | None = None,
    profile_to: Path | None = None,
) -> ort.InferenceSession:
    """A CPU session of a file, or of a model's bytes: `threads` threads inside an operator, operators one by one.

    All graph optimizations are on, since the NCHWc layout needs ORT_ENABLE_ALL; with `optimize` off there are
    none, for a graph that is optimized already. Threads that wait for work do not spin, which would count as CPU time;
    with `spin` they do while the model runs, as onnxruntime has it by default, but not from one run to the next, where
    they would take time from another session. With `dump_to`, the optimized graph is written there; large weights of a
    file go to a second file, those of bytes stay inside. With `profile_to`, onnxruntime times its operators, and
    `end_profiling` writes a file whose name begins with this path.

    Raises `InvalidArgument` if `threads` is below 1, or the file is missing or not ONNX, and
    `BenchmarkError` if onnxruntime can't run it.
    """
    if threads < 1:
        raise InvalidArgument(f"threads is {threads}; at least 1 is needed")
    source = model if isinstance(model, bytes) else os.fspath(model)
    place = "the model" if isinstance(source, bytes) else source
    if not isinstance(model, bytes):
        check_file(model)
    elif not model:
        raise InvalidArgument(f"{place}: the file is empty, not an ONNX model")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4  # errors are raised; they need not be printed as well
    if spin:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    else:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if dump_to is not None:
        options.optimized_model_filepath = str(dump_to)
        if not isinstance(model, bytes):
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", f"{dump_to.name}.data"
            )
    if profile_to is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile_to)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except _UNREADABLE as error:
        raise InvalidArgument(f"{place}: not an ONNX model ({_reason(error)})") from error
    except ORT_ERRORS as error:
        why = f"{place}: onnxruntime can't run this model ({_reason(error)})"
        raise BenchmarkError(f"{why}{_too_new(model, error)}") from error


def open_optimized(
    model: str | os.PathLike[str] | bytes, threads: int = 1, spin: bool = False
) -> tuple[ort.InferenceSession, bytes]:
    """A session of the model, and its optimized graph as ONNX, without the large weights of a file.

    Raises what `open_session` raises.
    """
    with temporary_folder() as folder:
        dump = folder / "optimized.onnx"
        session = open_session(model, threads=threads, spin=spin, dump_to=dump)
        return session, dump.read_bytes()


def optimized_graph(model: str | os.PathLike[str] | bytes, threads: int = 1) -> Graph:
    """The optimized graph of a model on this CPU. Raises what `open_session` raises."""
    return parse(open_optimized(model, threads)[1])


def quickest_run(run: Callable[[], object], times: int) -> float:
    return min(timeit.repeat(run, number=1, repeat=times))


def check_file(path: str | os.PathLike[str]) -> None:
    """Check an ONNX file before anything loads it: onnxruntime and onnx open any path that the file names.

    Raises `InvalidArgument` if it is missing, no ONNX file, names a path outside of its folder, or claims constants
    that are too large.
    """
    if not os.path.lexists(path):
        raise InvalidArgument(f"{os.fspath(path)}: there is no such file; export the model first")
    try:
        if not require_file(path):
            raise InvalidArgument(f"{os.fspath(path)}: the file is empty, not an ONNX model")
        with mapped(path) as content:
            check_external(content, Path(path).parent)
            check_claims(content)
    except Unfit as error:
        raise InvalidArgument(f"{os.fspath(path)} can't be read: {error}") from error
    except (IndexError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{os.fspath(path)}: not an ONNX model ({error})") from error
    except InvalidArgument as error:
        raise InvalidArgument(f"{os.fspath(path)}: {error}") from error


def make_feeds(
    session: ort.InferenceSession,
    *others: ort.InferenceSession,
    seed: int = 0,
    feeds: Mapping[str, np.ndarray] | None = None,
    example: Mapping[str, Sequence[int]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, np.ndarray]:
    """Inputs for a session: those given in `feeds`, the others generated, of the given `shapes` by name, or else from
    the model's signature.

    A dimension that is dynamic in all of them is as in the example that the file was exported with, one sample, where
    the file tells, else as in `example`, the shapes by name, and else 1. Floats are standard normal, integers and
    booleans zero (a valid index into any table). Raises `InvalidArgument` for a name the model does not have, a shape
    or type that does not fit, and for an input whose type can't be generated.
    """
    given = dict(feeds or {})
    inputs = session.get_inputs()
    unknown = given.keys() - {item.name for item in inputs}
    if unknown:
        raise InvalidArgument(
            f"feeds holds {sorted(unknown)}, but the model's inputs are {[item.name for item in inputs]}"
        )
    rng = np.random.default_rng(seed)
    result: dict[str, np.ndarray] = {}
    for item in inputs:
        kind = item.type.removeprefix("tensor(").removesuffix(")")
        if item.name in given:
            result[item.name] = np.asarray(given[item.name])
            _check_feed(item.name, result[item.name], item.shape, kind)
            continue
        if kind not in _NUMPY_TYPES:
            raise InvalidArgument(f"input {item.name!r} is a {item.type}; pass it in feeds")
        shape = list((shapes or {}).get(item.name, ())) or _shape(item.name, (session, *others), example or {})
        if math.prod(shape) > _MADE_UP or min((*shape, 0)) < 0:
            raise InvalidArgument(f"input {item.name!r} is said to be of shape {shape}; pass it in feeds")
        dtype = _NUMPY_TYPES[kind]
        if np.issubdtype(dtype, np.floating):
            result[item.name] = rng.standard_normal(shape).astype(dtype)
        else:
            result[item.name] = np.zeros(shape, dtype)
        if item.name in (shapes or {}):
            _check_feed(item.name, result[item.name], item.shape, kind)
    return result


def feeds_at(
    path: str | os.PathLike[str], shapes: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray] | None:
    """Inputs of a file of these shapes by name, "" for its only one; None where no shapes are given.

    Raises `InvalidArgument` for a name that no input has, and for sizes that the file does not take.
    """
    if not shapes:
        return None
    session = open_session(path)
    names = [item.name for item in session.get_inputs()]
    given = {names[0] if not name and len(names) == 1 else name: sizes for name, sizes in shapes.items()}
    if unknown := given.keys() - set(names):
        raise InvalidArgument(f"shapes are given of {sorted(unknown)}, and the inputs of {path} are {names}")
    return make_feeds(session, shapes=given)


def untold(session: ort.InferenceSession) -> bool:
    """Whether a file leaves more free than the batch, and does not tell the sizes that it was exported with."""
    free = any(not isinstance(size, int) for item in session.get_inputs() for size in item.shape[1:])
    return free and EXAMPLE not in session.get_modelmeta().custom_metadata_map


def _shape(name: str, sessions: Sequence[ort.InferenceSession], told: Mapping[str, Sequence[int]]) -> list[int]:
    """The shape of an input that all of the sessions take."""
    declared = [item.shape for session in sessions for item in session.get_inputs() if item.name == name]
    example = next(filter(None, (*(_example(session).get(name) for session in sessions), told.get(name))), None)
    shape = []
    for axis, sizes in enumerate(zip(*declared)):
        known = [size for size in sizes if isinstance(size, int)]
        shape.append(known[0] if known else example[axis] if example and axis < len(example) else 1)
    return shape


def _example(session: ort.InferenceSession) -> dict[str, list[int]]:
    """The shapes that a file says to run it at; what is none is left out."""
    try:
        found = json.loads(session.get_modelmeta().custom_metadata_map.get(EXAMPLE, "{}"))
    except ValueError:
        return {}
    shapes = found.items() if isinstance(found, dict) else ()
    return {
        name: shape for name, shape in shapes
        if isinstance(shape, list) and all(isinstance(size, int) and size > 0 for size in shape)
    }


def _check_feed(name: str, value: np.ndarray, declared: list[int | str | None], kind: str) -> None:
    fits = value.ndim == len(declared) and all(
        size == want for size, want in zip(value.shape, declared) if isinstance(want, int)
    )
    if not fits:
        raise InvalidArgument(f"feeds[{name!r}] has shape {value.shape}, the model wants {tuple(declared)}")
    if kind in _NUMPY_TYPES and value.dtype != _NUMPY_TYPES[kind]:
        raise InvalidArgument(f"feeds[{name!r}] is {value.dtype}, the model wants {_NUMPY_TYPES[kind]}")


def _too_new(model: str | os.PathLike[str] | bytes, error: Exception) -> str:
    """The remedy, as the end of a message, for a model that is newer than this onnxruntime."""
    if not any(word in str(error).lower() for word in ("ir version", "ir_version", "opset")):
        return ""
    if isinstance(model, bytes):
        ir, opset = versions(model)
    else:
        with mapped(model) as content:
            ir, opset = versions(content)
    return (
        f"; this is onnxruntime {ort.__version__}, the model is of opset {opset} and IR {ir}: update onnxruntime, or "
        f"write the model in opset {OPSET}, which 1.17 and later read"
    )


def _reason(error: Exception) -> str:
    return str(error).partition(" : ")[2].strip() or str(error)
