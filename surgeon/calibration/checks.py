"""What the values of calibration data must be, before anything is made of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from surgeon.calibration import padding
from surgeon.errors import InvalidInputs
from surgeon.frontend.batches import check_finite
from surgeon.frontend.parameters import tensor_of
from surgeon.frontend.trace import Graph
from surgeon.ir.operators import operator_name
from surgeon.rules import arguments

#: Operators that give the numbers of their first operand.
_AS_THEY_ARE = set("to _to_copy clone alias detach contiguous view reshape flatten unsqueeze squeeze".split())


def tensor_of_samples(value: Any, place: str) -> Tensor:
    """The tensor of what a batch holds for one input.

    Raises:
        InvalidInputs: it is no tensor or array, or has no axis of samples.
    """
    if (wrong := _no_tensor(value)) is not None:
        raise InvalidInputs(f"{place} is a {type(value).__name__}; {wrong}")
    value = tensor_of(value, place)
    if not value.dim():
        raise InvalidInputs(f"{place} has shape (); expected (batch, …)")
    return value


def _no_tensor(value: Any) -> str | None:
    """What to do where a user gave something that holds tensors, or can be made one, in place of a tensor."""
    match value:
        case DataLoader() | Dataset():
            return "data are to yield batches, not loaders: give the loader itself, or itertools.chain of several"
        case list() | tuple():
            return (
                "a batch holds one tensor for each of the model's inputs, and then what is left, such as labels, none "
                'of them nested: unpack it, or make numbers a tensor, as torch.tensor or a tokenizer\'s '
                'return_tensors="pt" does'
            )
        case str() | os.PathLike():
            return "data are to yield tensors, not names: give the folder's or file's own name as data"
        case _ if type(value).__module__.partition(".")[0] == "PIL":
            return "bring pictures into the form that the model takes, as torchvision.transforms do, or give the folder"
    return None


class Checks:
    """What the inputs of a graph must hold."""

    def __init__(self, graph: Graph) -> None:
        self._examples = pytree.tree_leaves(graph.inputs)
        self._rows = _rows_of_tables(graph)
        self._masks = padding.masks(graph)
        self._hides = {mask.leaf for mask in self._masks}

    def taken(self, value: Tensor, leaf: int, place: str) -> Tensor:
        """A value as the input of this place among the leaves takes it, on the CPU.

        Raises:
            InvalidInputs: it is of another kind of numbers, holds some that the input's type does not have, or ids that
                the model has no row for.
        """
        example = self._examples[leaf]
        if leaf in self._hides and bool(((value == 0) | (value == 1)).all()):
            return value.detach().to("cpu", example.dtype)  # a mask means the same in numbers of any kind
        if value.is_floating_point() != example.is_floating_point() or value.is_complex() != example.is_complex():
            raise InvalidInputs(
                f"{place} is of {value.dtype}, where the model was traced with {example.dtype}; "
                f"{_remedy(value, example)}"
            )
        check_finite(value, place)
        made = value.detach().to("cpu", example.dtype)
        if made.is_floating_point():
            lost = not bool(torch.isfinite(made).all())
        else:
            lost = made.dtype != torch.bool and not torch.equal(made.to(value.dtype), value.detach().cpu())
        if lost:
            raise InvalidInputs(
                f"{place} is of {value.dtype} and holds numbers that {example.dtype} does not have, such as "
                f"{float(value.detach().abs().max()):.3g}; bring it into the form that the model takes"
            )
        if (rows := self._rows.get(leaf)) is not None and made.numel():
            least, most = int(made.min()), int(made.max())
            if least < 0 or most >= rows:
                raise InvalidInputs(
                    f"{place} holds {least if least < 0 else most}, where the model's embedding has the rows 0 to "
                    f"{rows - 1}; use the tokenizer, or the table of ids, that the model was trained with"
                )
        return made

    def masks(self, values: Mapping[int, Tensor], place: str) -> None:
        """Make sure that no sample is all padding; `values` are those of a batch, by their places among the leaves.

        Raises:
            InvalidInputs: one is.
        """
        leaves = [values.get(leaf, example) for leaf, example in enumerate(self._examples)]
        for mask in self._masks:
            shown = mask.of(leaves) if mask.leaf in values else None
            if shown is not None and (empty := (~shown.any(1)).nonzero().flatten().tolist()):
                raise InvalidInputs(
                    f"{place}, input {mask.name} hides every position of {len(empty)} samples, the first of them "
                    f"sample {empty[0]}: nothing can be learned from padding; leave them out"
                )


def _remedy(value: Tensor, example: Tensor) -> str:
    if example.is_complex() or value.is_complex():
        return "convert it as for inference"
    if not example.is_floating_point():
        return "give whole numbers, such as the ids of tokens"
    return (
        "convert and normalize it as for inference: of pictures, (x.float() / 255 - mean) / std, with the mean and "
        "standard deviation that the model was trained with"
    )


def _rows_of_tables(graph: Graph) -> dict[int, int]:
    """The rows of the smallest embedding that an input, by its place among the leaves, holds ids of."""
    places: dict[Any, int] = {
        node: at for at, node in enumerate(node for node in graph.nodes if node.op == "placeholder")
    }
    found: dict[int, int] = {}
    for node in graph.nodes:
        if operator_name(node) != "embedding":
            continue
        given = arguments(node)
        ids, table = given["indices"], given["weight"]
        while isinstance(ids, fx.Node) and operator_name(ids) in _AS_THEY_ARE:
            ids = ids.args[0]
        if ids in places and isinstance(table, fx.Node) and table.name in graph.tensors:
            rows = len(graph.tensor(graph.tensors[table.name]))
            found[places[ids]] = min(rows, found.get(places[ids], rows))
    return found
