"""Inputs for a file's module, where the user gave none: what the file tells of them, and usual sizes for the rest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from surgeon.errors import InvalidInputs, SurgeonError, first_line
from surgeon.support.documents import EXAMPLE
from surgeon.support.opening import Unfit
from surgeon.support.strict_json import loads

if TYPE_CHECKING:
    from surgeon.onnx_import.module import OnnxModel, Port

#: The most values of an input that is made up.
MOST_VALUES = 1 << 24
#: The batch, where it is free.
BATCH = 2
#: Sizes of free axes that are tried, one after the other, by how many axes the input has.
_SIDES = {4: (224, 64, 128, 320, 512, 1024), 5: (16, 32), 3: (64, 256, 512, 128), 2: (16, 512, 576, 256, 128)}
_LENGTHS = (64, 16, 8, 256, 512, 576, 1024, 16000)


def exported_at(model: OnnxModel) -> dict[str, int]:
    """The sizes that a file says it was exported at, by input and axis; not of the first, nor of what is asked for."""
    told = next((each.value for each in model.source.model.metadata_props if each.key == EXAMPLE), "{}")
    try:
        shapes = loads(told)
    except Unfit:
        return {}
    found: dict[str, int] = {}
    for port in model.inputs:
        shape = shapes.get(port.name) if isinstance(shapes, dict) else None
        if isinstance(shape, list) and len(shape) == len(port.sizes or ()):
            for axis, (size, name) in enumerate(zip(shape, port.sizes or (), strict=True)):
                if axis and str(name) not in model.sizes and type(size) is int and 0 < size <= MOST_VALUES:
                    found[f"{port.name}:{axis}"] = size
    return found


def examples(model: OnnxModel, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Inputs on which the module runs, by the names of forward's parameters.

    Raises:
        InvalidInputs: it runs on none of those that were tried.
    """
    failures: list[str] = []
    tried: set[tuple[tuple[int, ...], ...]] = set()
    was = model.training
    try:
        for batch, choice, value in itertools.product((BATCH, 1), range(len(_LENGTHS)), (0, 1)):
            shapes = _shapes(model.inputs, sizes, choice, batch)
            key = (*(tuple(shape) for shape in shapes), (value,))
            if key in tried:
                continue
            tried.add(key)
            if any(math.prod(shape) > MOST_VALUES for shape in shapes):
                failures.append(f"  {', '.join(map(str, shapes))}: more than {MOST_VALUES:,} values")
                continue
            found = dict(_made(model, shapes, value))
            try:
                with torch.no_grad():
                    model.eval()(**found)
            except SurgeonError as error:
                failures.append(f"  {', '.join(map(str, shapes))}: {first_line(error)}")
                continue
            return found
    finally:
        model.train(was)
    told = "\n".join(failures[:3])
    raise InvalidInputs(
        f"no inputs that were made up fit the file; tried:\n{told}\nRemedy: give example_inputs=, or sizes= of its "
        "free axes to load_onnx"
    )


def _shapes(ports: Sequence[Port], sizes: Mapping[str, int], choice: int, batch: int) -> list[list[int]]:
    named: dict[str, int] = {}
    found = []
    for port in ports:
        shape = []
        sides = _SIDES.get(len(port.sizes or ()), _LENGTHS)
        for axis, size in enumerate(port.sizes or ()):
            if isinstance(size, int):
                shape.append(size)
                continue
            usual = batch if axis == 0 else sides[min(choice, len(sides) - 1)]
            if choice == 0 and len(port.sizes or ()) == 4 and not _is_image(port):
                usual = batch if axis == 0 else 64
            usual = named.get(str(size), usual) if size is not None else usual
            if len(port.sizes or ()) == 3 and axis == 1 and _is_state(port):
                usual = batch
            made = sizes.get(f"{port.name}:{axis}", sizes.get(str(size), usual))
            if size is not None:
                named[str(size)] = made
            shape.append(made)
        found.append(shape)
    return found


def _is_image(port: Port) -> bool:
    """Whether an input is pictures of any height and width, of one or three channels."""
    rest = (port.sizes or ())[1:]
    return len(rest) == 3 and sum(isinstance(size, int) for size in rest) == 1 and bool({rest[0], rest[2]} & {1, 3})


def _is_state(port: Port) -> bool:
    """Whether an input is a recurrent state (layers, batch, hidden)."""
    sizes = port.sizes or ()
    return len(sizes) == 3 and isinstance(sizes[0], int) and isinstance(sizes[2], int)


def _made(model: OnnxModel, shapes: Sequence[Sequence[int]], value: int) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    compared = model.compared
    for port, shape in zip(model.inputs, shapes, strict=True):
        if port.name in model.fixed:
            yield port.parameter, model.fixed[port.name].tensor()
        elif port.dtype.is_floating_point:
            yield port.parameter, torch.randn(shape, generator=generator).to(port.dtype)
        elif port.name in compared:
            yield port.parameter, torch.full(tuple(shape), compared[port.name], dtype=port.dtype)
        elif port.dtype is torch.bool or value:
            yield port.parameter, torch.ones(tuple(shape), dtype=port.dtype)
        else:
            yield port.parameter, torch.randint(0, 8, tuple(shape), generator=generator).to(port.dtype)
