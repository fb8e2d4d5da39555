"""Makes the user's own file smaller, and writes it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf.message import EncodeError
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import set_external_data, write_external_data_tensors
from torch import Tensor, nn

from surgeon.deploy.inputs import Call, Place
from surgeon.deploy.user_file.changes import Unpatchable, changes
from surgeon.deploy.user_file.cut import Cut, cut_of
from surgeon.deploy.user_file.patch import patched
from surgeon.deploy.user_file.walk import tensors
from surgeon.errors import OutputError
from surgeon.frontend.copies import duplicate
from surgeon.frontend.notes import FILE, noted
from surgeon.frontend.wrappers import bare
from surgeon.onnx_import.load import module_again
from surgeon.onnx_import.module import OnnxModel, Port
from surgeon.onnx_import.running import Body
from surgeon.onnx_import.source import Source
from surgeon.onnx_import.tensors import read_tensor
from surgeon.plans.carried import attached
from surgeon.support.files import free_name


@dataclass(frozen=True)
class UserFile:
    """The file that a model comes from, less what was removed of it.

    `inputs` are the names of a call's tensors in it, `outputs` those of what it computes, and `free` the axes of those
    tensors that it leaves free, by what it calls them. `given` are the values of the other inputs, which were fixed.
    `cut` is what the cut can be held against, or why it can't; None where nothing was cut.
    """

    model: ModelProto = field(repr=False)
    source: Source
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    free: Mapping[Place, str]
    given: Mapping[str, np.ndarray] = field(repr=False)
    cut: Cut | str | None

    @property
    def classes(self) -> list[frozenset[Place]]:
        """The axes that the file calls the same, which are of one size."""
        places: dict[str, set[Place]] = defaultdict(set)
        for place, name in self.free.items():
            places[name].add(place)
        return [frozenset(each) for each in places.values() if len(each) > 1]

    @property
    def opset(self) -> int:
        return next((each.version for each in self.model.opset_import if each.domain in ("", "ai.onnx")), 0)


def user_file(model: nn.Module, call: Call) -> UserFile:
    """The file that `model`, or what it was made of, was loaded from, with all that is unlike it in the model.

    `call` is one of the model, on which sizes are looked up.

    Raises:
        Unpatchable: it can't be made by changing the file, as for a model that was rebuilt as a graph.
    """
    source, slim = noted(model, FILE), bare(model)
    if not isinstance(slim, OnnxModel):
        raise Unpatchable("the smaller model is a graph, of which the file's operators can't be told")
    file = module_again(source, slim.fixed)
    made = patched(file, changes(file, slim))
    _correct_sizes(made, file, slim, call)
    ports = {port.parameter: port for port in slim.inputs}
    read = [ports[name] for name in call.names]
    free = {
        (index, axis): name
        for index, port in enumerate(read) for axis, name in _free(port, call.tensors[index].dim())
    }
    plan = attached(slim)
    return UserFile(
        made, file.source, tuple(port.name for port in read), tuple(port.name for port in slim.outputs),
        free, {name: value.tensor().numpy() for name, value in slim.fixed.items()},
        cut_of(file, slim, plan, call) if plan is not None and plan.cuts else None,
    )


def _free(port: Port, rank: int) -> Iterator[tuple[int, str]]:
    for axis, size in enumerate(port.sizes or [None] * rank):
        if not isinstance(size, int):
            yield axis, size or f"{port.name}:{axis}"


def save(model: ModelProto, source: Source, path: Path) -> None:
    """Write a model whose weights in other files are below the folder of `source`; those go to one beside `path`.

    Unless it is the source's own, the model no longer holds those weights then, of which there may be gigabytes.

    Raises:
        OutputError: it can't be written.
        Unpatchable: it is too large.
    """
    if any(each.data_location == TensorProto.EXTERNAL for each in tensors(model)):
        if model is source.model:
            model = ModelProto()
            model.CopyFrom(source.model)
        _take_along(model, source.path.resolve().parent, free_name(path))
    try:
        write_external_data_tensors(model, str(path.parent))
        path.write_bytes(model.SerializeToString())
    except OSError as error:
        raise OutputError(f"{path.name} could not be written ({error})") from error
    except (ValueError, EncodeError) as error:  # protobuf ends at 2 GiB
        raise Unpatchable(f"it would be too large for one file: {error}") from error


def _take_along(model: ModelProto, folder: Path, name: str) -> None:
    """Read the weights that are in other files and are what they were; all are to be written to one called `name`."""
    for tensor in tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            if not tensor.HasField("raw_data"):
                tensor.raw_data = read_tensor(tensor, folder, tensor.name).tobytes()
            set_external_data(tensor, name)


def _correct_sizes(made: ModelProto, file: OnnxModel, slim: OnnxModel, call: Call) -> None:
    """Let the file tell the sizes of what is computed inside of it as they are now."""
    if not made.graph.value_info:
        return
    before, after = _sizes(file, call), _sizes(slim, call)
    own = {each.name for each in made.graph.initializer}
    for place in range(len(made.graph.value_info) - 1, -1, -1):
        value = made.graph.value_info[place]
        if value.name in own:
            continue
        old, new = before.get(value.name), after.get(value.name)
        shape = value.type.tensor_type.shape
        if old is None or new is None or not len(old) == len(new) == len(shape.dim):
            del made.graph.value_info[place]
            continue
        for dim, was, now in zip(shape.dim, old, new, strict=True):
            if was != now and dim.HasField("dim_value"):
                dim.dim_value = now


def _sizes(model: OnnxModel, call: Call) -> dict[str, tuple[int, ...]]:
    """The sizes of what the operators of a module's main graph compute on a call."""
    found: dict[str, tuple[int, ...]] = {}
    copy = duplicate(model)
    body = copy.operators
    assert isinstance(body, Body)
    for step in body.steps:

        def note(_: nn.Module, __: Any, results: Any, names: tuple[str, ...] = step.outputs) -> None:
            found.update((name, tuple(each.shape)) for name, each in zip(names, results, strict=False)
                         if isinstance(each, Tensor))

        body.get_submodule(step.child).register_forward_hook(note)
    args, kwargs = call.bind(call.tensors)
    with torch.no_grad():
        copy(*args, **kwargs)
    return found
