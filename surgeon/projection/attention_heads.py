"""Rotations inside of attention heads: a head is linear in its values, up to the layer that reads it, and queries meet
keys in an inner product only. So in each head an invertible matrix can be put between values and that layer, and
between queries and keys.

Found from the graph, by following positions of a layer's output through movement, scaling and attention.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from surgeon.calibration import layers
from surgeon.calibration.layers import Contraction
from surgeon.calibration.moments import Moments
from surgeon.calibration.parameter_slots import Slots
from surgeon.calibration.readers import Reader
from surgeon.groups.coupling import Groups
from surgeon.ir.operators import operator_name
from surgeon.projection.bases import Rotation, balanced, weighted
from surgeon.projection.dataflow import Use, follow
from surgeon.projection.draft import Draft
from surgeon.rules import arguments
from surgeon.rules.base import size_of

Rows = tuple[int, ...]


@dataclass(frozen=True)
class Values:
    """A head's values: the outputs `rows` of a writer, and the inputs (copies, units) of all layers that read them."""

    leaf: int
    writer: Contraction
    rows: Rows
    readers: tuple[tuple[Contraction, Tensor], ...]

    def basis(self, readers: Mapping[fx.Node, Reader]) -> Rotation:
        """The basis with the directions that matter most first; `readers` are those of the unchanged model."""
        covariances, metrics = [], []
        for layer, copies in self.readers:
            reader = readers[layer.node]
            weight = reader.layer.matrix(reader.layer.weight.read())[0].double()
            found = reader.moments.covariances()[0][0]
            for columns in copies:
                covariances.append(found[columns][:, columns])
                metrics.append(weight[columns] @ reader.metric[0] @ weight[columns].t())
        return weighted(torch.stack(covariances).sum(0), torch.stack(metrics).sum(0))

    def rotate(self, rotation: Rotation, draft: Draft) -> None:
        """Rewrite the writer and all readers of the head's values in another basis."""
        multiply_outputs(self.writer, self.rows, rotation.forth, draft)
        for layer, copies in self.readers:
            matrix = layer.matrix(draft.read(layer.weight))
            for columns in copies:
                matrix[0, columns] = rotation.back.t() @ matrix[0, columns]
            draft.set(layer.weight, layer.unmatrix(matrix))


@dataclass(frozen=True)
class Match:
    """Queries of some heads, blocks of a writer's outputs, and the block of keys that they meet in an inner product."""

    leaf: int
    writer: Contraction
    queries: tuple[Rows, ...]
    reader: Contraction
    keys: Rows

    def basis(self, queries_of: Mapping[fx.Node, Moments], keys_of: Mapping[fx.Node, Moments]) -> Rotation:
        """The basis with the directions that matter most for the product first."""
        found = queries_of[self.writer.node].covariances(centered=False)[0][0]
        queries = torch.stack([found[list(rows)][:, list(rows)] for rows in self.queries]).sum(0)
        keys = keys_of[self.reader.node].covariances(centered=False)[0][0][list(self.keys)][:, list(self.keys)]
        return balanced(queries, keys)

    def rotate(self, rotation: Rotation, draft: Draft) -> None:
        """Rewrite queries in another basis, and keys so that the products don't change."""
        for rows in self.queries:
            multiply_outputs(self.writer, rows, rotation.forth, draft)
        multiply_outputs(self.reader, self.keys, rotation.back.t(), draft)


def multiply_outputs(writer: Contraction, rows: Rows, matrix: Tensor, draft: Draft) -> None:
    """Multiply some outputs of a writer by a matrix (rows, rows)."""
    chosen = list(rows)
    weight = writer.matrix(draft.read(writer.weight))
    weight[:, :, chosen] = weight[:, :, chosen] @ matrix.t()
    draft.set(writer.weight, writer.unmatrix(weight))
    if writer.bias is not None:
        bias = draft.read(writer.bias).flatten()
        bias[chosen] = matrix @ bias[chosen]
        draft.set(writer.bias, bias)


@dataclass(frozen=True)
class _Source:
    """A writer, and all uses of its output."""

    writer: Contraction
    uses: tuple[Use, ...]

    def users(self, rows: Rows) -> list[Use]:
        wanted = torch.tensor(rows)
        return [use for use in self.uses if bool(torch.isin(use.places, wanted).any())]


def find(groups: Groups, slots: Slots, free: Container[int]) -> tuple[list[Values], list[Match]]:
    """Values and matches of all attention in the graph, for groups whose leaves are `free`."""
    values: list[Values] = []
    met: dict[fx.Node, dict[str, tuple[_Source, Use]]] = {}
    for node in groups.graph.nodes:
        layer = layers.find(node, node, slots.find) if node.op == "call_function" else None
        if layer is None or layer.along is None or layer.unknown_bias:
            continue
        count = layer.matrix(layer.weight.places).shape
        if count[0] != 1:
            continue
        attended: list[Use] = []

        def passes(user: fx.Node, operand: fx.Node, places: Tensor, found: list[Use] = attended) -> Tensor | None:
            through = _through(user, operand, places)
            if through is not None:
                found.append(Use(user, operand, places))
            return through

        start = layer.along(torch.arange(count[2])[None]).expand(size_of(node))
        source = _Source(layer, tuple(follow(node, start, passes)))
        values += _values(groups, source, attended, slots)
        for use in source.uses:
            if (role := _role(use)) is not None:
                met.setdefault(use.user, {})[role] = (source, use)
    matches = [match for roles in met.values() if len(roles) == 2 for match in _matches(groups, **roles)]
    return [value for value in values if value.leaf in free], [match for match in matches if match.leaf in free]


def _values(groups: Groups, source: _Source, attended: list[Use], slots: Slots) -> list[Values]:
    found = []
    for use in attended:
        leaf = _leaf(groups, use.operand)
        if leaf is None:
            continue
        for rows in _blocks(use.places):
            readers = [_columns(each, rows, slots) for each in source.users(rows)]
            if readers and all(reader is not None for reader in readers):
                found.append(Values(leaf, source.writer, rows, tuple(r for r in readers if r is not None)))
    return list({each.rows: each for each in found}.values())


def _matches(groups: Groups, query: tuple[_Source, Use], key: tuple[_Source, Use]) -> list[Match]:
    (left, asked), (right, kept) = query, key
    leaf = _leaf(groups, asked.operand)
    ours, theirs = asked.places, kept.places
    if operator_name(kept.user) in _PRODUCTS:
        theirs = theirs.transpose(-1, -2)
    elif theirs.shape[-3] != ours.shape[-3]:
        theirs = theirs.repeat_interleave(ours.shape[-3] // theirs.shape[-3], -3)
    if leaf is None or not _even(ours) or not _even(theirs):
        return []
    a, b = torch.broadcast_tensors(ours[..., 0, :], theirs[..., 0, :])
    met: dict[Rows, set[Rows]] = {}
    for rows, keys in zip(a.reshape(-1, a.shape[-1]).tolist(), b.reshape(-1, b.shape[-1]).tolist(), strict=True):
        met.setdefault(tuple(keys), set()).add(tuple(rows))
    if not _apart([*met]) or not _apart([rows for each in met.values() for rows in each]):
        return []
    return [
        Match(leaf, left.writer, tuple(sorted(queries)), right.writer, keys)
        for keys, queries in met.items()
        if len(right.users(keys)) == 1 and all(len(left.users(rows)) == 1 for rows in queries)
    ]


_PRODUCTS = {"matmul", "bmm"}


def _operands(user: fx.Node) -> tuple[Any, Any, Any]:
    """The queries, keys and values of an operator; None for those that it does not have."""
    name = operator_name(user)
    given = arguments(user) if name else {}
    if name == "scaled_dot_product_attention":
        return given["query"], given["key"], given["value"]
    if name in _PRODUCTS:
        other = given.get("other", given.get("mat2"))
        return given["self"], other, other
    return None, None, None


def _role(use: Use) -> str | None:
    """Whether a use is as the queries or the keys of an inner product, and only as these."""
    query, key, value = _operands(use.user)
    roles = [role for role, operand in (("query", query), ("key", key)) if operand is use.operand]
    only = value is not use.operand or operator_name(use.user) in _PRODUCTS
    return roles[0] if len(roles) == 1 and only else None


def _through(user: fx.Node, operand: fx.Node, places: Tensor) -> Tensor | None:
    """The places in attention's output for an operand that is its values, and only these; else None."""
    query, key, value = _operands(user)
    product = operator_name(user) in _PRODUCTS
    if value is not operand or query is operand or (not product and key is operand) or places.dim() < 3:
        return None
    if not isinstance(query, fx.Node) or query.op == "get_attr" or not _even(places):
        return None
    shape = size_of(user)
    if not product and places.shape[-3] != shape[-3]:
        places = places.repeat_interleave(shape[-3] // places.shape[-3], -3)
    return places[..., :1, :].expand(shape)


def _even(places: Tensor) -> bool:
    """Whether all tokens have the same units."""
    first = places[..., :1, :]
    return places.dim() >= 3 and bool((places == first).all()) and places.shape[-1] > 1


def _blocks(places: Tensor) -> list[Rows]:
    """The units of each head; none if different heads share units."""
    blocks = {tuple(rows) for rows in places[..., 0, :].reshape(-1, places.shape[-1]).tolist()}
    return sorted(blocks) if _apart([*blocks]) else []


def _apart(blocks: list[Rows]) -> bool:
    every = [row for rows in blocks for row in rows]
    return len(set(every)) == len(every)


def _leaf(groups: Groups, node: fx.Node) -> int | None:
    """The leaf of the group that the last axis of a value is, if any."""
    axes = groups.axes[node]
    axis = groups.space.resolve(axes[-1]) if isinstance(axes, tuple) else None
    return next((group.leaf.id for group in groups if group.leaf == axis), None)


def _columns(use: Use, rows: Rows, slots: Slots) -> tuple[Contraction, Tensor] | None:
    """The layer that reads some units, and which of its inputs (copies, units) they are."""
    layer = layers.find(use.user, use.user, slots.find)
    if layer is None or layer.source is not use.operand or layer.matrix(layer.weight.places).shape[0] != 1:
        return None
    inputs, _ = layer.rows(use.places, torch.zeros(size_of(use.user)), 1.0, torch.Generator())
    if bool((inputs != inputs[:, :1]).any()):
        return None
    hits = [(inputs[0, 0] == row).nonzero().flatten() for row in rows]
    if len({len(hit) for hit in hits}) != 1:
        return None
    return layer, torch.stack(hits, 1)
