"""Bases in which a cut loses least, the directions that matter most first, from moments at double precision.

Each function returns the matrix into the new basis and its inverse.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DAMPING = 1e-5


def weighted(covariance: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    """Units of covariance (C, C), in which a deviation d costs dᵀ · `metric` · d.

    In the new basis the units have variance 1 in all directions, and the metric is diagonal, falling.

    >>> forth, back = weighted(torch.eye(2).double(), torch.diag(torch.tensor([1.0, 4.0])).double())
    >>> forth.abs().round(decimals=2).tolist(), torch.allclose(forth @ back, torch.eye(2).double())
    ([[0.0, 1.0], [1.0, 0.0]], True)
    """
    half, inverse = _roots(covariance)
    _, found = torch.linalg.eigh(half @ metric @ half)
    found = found.flip(1)
    return found.t() @ inverse, half @ found


def balanced(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Two kinds of vectors (C, C) that meet in an inner product: `queries` and `keys` are their second moments.

    The matrix is for the queries, the transpose of the inverse for the keys. In the new basis both have the same
    diagonal moments, falling; so little of the product's variance as can be is lost with the last directions. As in
    the balanced truncation of linear systems (Moore, IEEE Transactions on Automatic Control, 1981).
    """
    (left, left_inverse), (right, _) = _roots(queries), _roots(keys)
    _, values, found = torch.linalg.svd(right @ left)
    root = values.clamp(min=1e-12 * float(values[0])).sqrt()[:, None]
    return root * found @ left_inverse, left @ found.t() / root.t()


def nested(covariance: Tensor, metric: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """An orthogonal basis whose first directions span those that `weighted` puts first.

    If `centred`, the vector of ones stays what it is, and so that the first d coordinates, less their mean, hold d - 1
    directions and nothing else, directions are laid out as Helmert's contrasts: a norm over the first d coordinates
    sees no others.
    """
    size = len(covariance)
    forth, _ = weighted(covariance, metric)
    if not centred:
        basis, _ = torch.linalg.qr(forth.t())
        return basis.t(), basis
    ones = covariance.new_ones(size, 1) / size**0.5
    functionals = forth.t() - ones @ (ones.t() @ forth.t())
    basis, _ = torch.linalg.qr(torch.cat([ones, functionals[:, : size - 1]], 1))
    basis[:, 0] = ones[:, 0]
    rotation = torch.cat([ones, _helmert(size).to(covariance)], 1) @ basis.t()
    return rotation, rotation.t()


def _helmert(size: int) -> Tensor:
    """Contrasts as columns (size, size - 1): the k-th is even over the first k, against the one after them."""
    found = torch.triu(torch.ones(size, size - 1, dtype=torch.float64))
    steps = torch.arange(1, size, dtype=torch.float64)
    found[torch.arange(1, size), torch.arange(size - 1)] = -steps
    return found / (steps * (steps + 1)).sqrt()


def _roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square root of a covariance, a little damped, and its inverse."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)
    root = (values + _DAMPING * values.mean() + 1e-12).sqrt()
    return vectors * root @ vectors.t(), vectors / root @ vectors.t()
