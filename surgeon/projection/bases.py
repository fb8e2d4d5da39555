"""Bases in which a cut does least damage: the directions that matter most first, from moments at double precision."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_DAMPING = 1e-5
#: How much later units cost less than earlier ones, relative to the mean: decides where nothing else does.
_PREFERENCE = 1e-7


class Rotation(NamedTuple):
    """The matrix (C, C) of a change of basis, and its inverse."""

    forth: Tensor
    back: Tensor


def weighted(covariance: Tensor, metric: Tensor) -> Rotation:
    """A basis for units with this covariance (C, C), where a deviation d costs dᵀ · `metric` · d.

    In the new basis the units have variance 1 in all directions, and the metric is diagonal, descending.

    >>> forth, back = weighted(torch.eye(2).double(), torch.diag(torch.tensor([1.0, 4.0])).double())
    >>> forth.abs().round(decimals=2).tolist(), torch.allclose(forth @ back, torch.eye(2).double())
    ([[0.0, 1.0], [1.0, 0.0]], True)
    """
    half, inverse = _roots(covariance)
    cost = half @ metric @ half
    # Directions of equal cost would else be those that rounding makes of them, which differs from run to run.
    falling = torch.linspace(1, 0, len(cost), dtype=cost.dtype, device=cost.device)
    _, found = torch.linalg.eigh(cost + torch.diag(falling * (_PREFERENCE * cost.diagonal().mean())))
    found = _turned(found.flip(1))
    return Rotation(found.t() @ inverse, half @ found)


def balanced(queries: Tensor, keys: Tensor) -> Rotation:
    """A basis for two kinds of vectors that meet in an inner product, with second moments `queries` and `keys` (C, C).

    The matrix is for the queries, the transpose of the inverse for the keys. In the new basis both have the same
    diagonal moments, descending, so that the last directions hold the least of the product's variance. As in
    the balanced truncation of linear systems (Moore, IEEE Transactions on Automatic Control, 1981).
    """
    (left, left_inverse), (right, _) = _roots(queries), _roots(keys)
    _, values, found = torch.linalg.svd(right @ left)
    found = _turned(found.t()).t()
    root = values.clamp(min=1e-12 * float(values[0])).sqrt()[:, None]
    return Rotation(root * found @ left_inverse, left @ found.t() / root.t())


def nested(covariance: Tensor, metric: Tensor, centered: bool) -> Rotation:
    """An orthogonal basis whose first directions span those that are first in `weighted`.

    If `centered`, the vector of ones is kept, and directions are arranged as Helmert contrasts: then the first d
    coordinates, less their mean, hold exactly d - 1 directions, and a norm over them depends on no others.
    """
    size = len(covariance)
    forth, _ = weighted(covariance, metric)
    if not centered:
        basis = _orthogonal(forth.t())
        return Rotation(basis.t(), basis)
    ones = covariance.new_ones(size, 1) / size**0.5
    functionals = forth.t() - ones @ (ones.t() @ forth.t())
    basis = _orthogonal(torch.cat([ones, functionals[:, : size - 1]], 1))
    basis[:, 0] = ones[:, 0]
    rotation = torch.cat([ones, _helmert(size).to(covariance)], 1) @ basis.t()
    return Rotation(rotation, rotation.t())


def _turned(directions: Tensor) -> Tensor:
    """The columns, each with the one of its two signs that has a positive product with a fixed vector."""
    fixed = torch.arange(1, len(directions) + 1, dtype=directions.dtype, device=directions.device).cos()
    return directions * torch.where(fixed @ directions < 0, -1.0, 1.0).to(directions)


def _orthogonal(columns: Tensor) -> Tensor:
    """Orthonormal columns whose first ones span those of the given ones, and point their way."""
    basis, factor = torch.linalg.qr(columns)
    return basis * torch.where(factor.diagonal() < 0, -1.0, 1.0).to(basis)


def _helmert(size: int) -> Tensor:
    """Helmert contrasts as columns (size, size - 1): the k-th is constant over the first k, against the next one."""
    found = torch.triu(torch.ones(size, size - 1, dtype=torch.float64))
    steps = torch.arange(1, size, dtype=torch.float64)
    found[torch.arange(1, size), torch.arange(size - 1)] = -steps
    return found / (steps * (steps + 1)).sqrt()


def _roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square root of a covariance, slightly damped, and its inverse."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)
    root = (values + _DAMPING * values.mean() + 1e-12).sqrt()
    return vectors * root @ vectors.t(), vectors / root @ vectors.t()
