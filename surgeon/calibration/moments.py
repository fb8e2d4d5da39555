"""First and second moments of an operator's inputs, and least squares from them.

>>> x = torch.randn(1, 50, 3, generator=torch.Generator().manual_seed(0))
>>> y = x @ torch.ones(1, 3, 2) + 1
>>> moments = Moments()
>>> moments.add(x, y)
>>> matrix, shift = moments.solve(torch.zeros(1, 3, 2), ridge=1e-9)
>>> matrix.round(decimals=4).flatten().tolist(), shift.round(decimals=4).tolist()
([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [[1.0, 1.0]])
"""

from __future__ import annotations

import torch
from torch import Tensor

from surgeon.errors import InvalidInputs

#: Rows for each input, below which a covariance shows correlations that are not there.
ENOUGH = 8
#: Inputs above which products are summed at single precision, at which they are computed anyway, for less memory.
WIDE = 1024
#: Of the symmetric x xᵀ, blocks of so many columns are computed down to the diagonal only.
BLOCK = 256


class Moments:
    """Sums over rows of inputs x, wanted outputs y, x xᵀ and x yᵀ, the latter at double precision unless x is wide.

    Rows come as x (G, n, f) and y (G, n, o), for G independent problems, such as the groups of a convolution. They are
    not kept. Sums are taken around the mean of the first rows, so that little precision is lost where it is large.
    """

    def __init__(self) -> None:
        self.count = 0
        self._origin: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        if not x.shape[1]:  # nothing but padding
            return
        if self._origin is None:
            self._origin = (x.mean(1, keepdim=True), y.mean(1, keepdim=True))
            shape, double = (len(x), x.shape[2]), torch.float64
            self._x, self._y = x.new_zeros(shape, dtype=double), x.new_zeros((len(x), y.shape[2]), dtype=double)
            kind = double if shape[1] <= WIDE else x.dtype
            self._xx, self._xy = (x.new_zeros((*shape, each.shape[2]), dtype=kind) for each in (x, y))
        x, y = x - self._origin[0], y - self._origin[1]
        self.count += x.shape[1]
        self._x += x.sum(1)
        self._y += y.sum(1)
        _accumulate(self._xy, x, y)
        _accumulate_upper(self._xx, x)

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Mean inputs (G, f) and outputs (G, o)."""
        assert self._origin is not None
        x, y = self._origin
        return x[:, 0].double() + self._x / self.count, y[:, 0].double() + self._y / self.count

    def covariances(self, centered: bool = True) -> tuple[Tensor, Tensor]:
        """E x xᵀ (G, f, f) and E x yᵀ (G, f, o), of the deviations from the means if `centered`."""
        n = self.count
        x, y = self._x / n, self._y / n
        xx = _mirrored(self._xx.double() / n)
        xx.baddbmm_(x[:, :, None], x[:, None, :], alpha=-1)
        xy = (self._xy.double() / n).baddbmm_(x[:, :, None], y[:, None, :], alpha=-1)
        if not centered:
            x, y = self.means
            xx, xy = xx + x[:, :, None] * x[:, None, :], xy + x[:, :, None] * y[:, None, :]
        return xx, xy

    def damping(self, diagonal: Tensor, ridge: float) -> Tensor:
        """What to add to the diagonal (G, f) of E x xᵀ: `ridge` times its mean, and more where rows are few.

        With fewer rows than inputs, any output can be fitted exactly on those rows, which says nothing about others.
        Weights of inputs that never vary stay as they are.
        """
        scarce = max(1.0, ENOUGH * diagonal.shape[1] / self.count)
        weight = ridge * scarce * diagonal.mean(1, keepdim=True)
        return torch.where(weight > 0, weight, torch.ones_like(weight)).expand_as(diagonal)

    def solve(self, start: Tensor, ridge: float, shifted: bool = True) -> tuple[Tensor, Tensor]:
        """The matrix W (G, f, o) and the shift b (G, o) that minimize E|xᵀW + b - y|² + λ|W - start|².

        λ is the `damping` of `ridge`. Without `shifted`, b is 0.
        """
        xx, xy = self.covariances(shifted)
        start = start.double()
        diagonal = xx.diagonal(dim1=1, dim2=2)
        right = xy - xx @ start
        system = xx + torch.diag_embed(self.damping(diagonal, ridge))
        factor, failed = torch.linalg.cholesky_ex(system)
        if bool(failed.any()):
            system = system + torch.diag_embed(diagonal.mean(1, keepdim=True).expand_as(diagonal) * 1e-6)
            factor, failed = torch.linalg.cholesky_ex(system)
            if bool(failed.any()):
                raise InvalidInputs(
                    "the second moments of the calibration data are not finite or not positive; use other data, or a "
                    "larger ridge"
                )
        matrix = start + torch.cholesky_solve(right, factor)
        return matrix, self.shift(matrix) if shifted else torch.zeros_like(self._y)

    def shift(self, matrix: Tensor) -> Tensor:
        """The shift (G, o) with which this matrix gives the right mean output."""
        x, y = self.means
        return y - (x[:, None, :] @ matrix.double())[:, 0]


class Gram:
    """Sums over rows of products x xᵀ (G, f, f), at double precision unless x is wide. Rows come as x (G, n, f).

    >>> found = Gram()
    >>> for row in ([1.0, 2.0], [0.0, 1.0]):
    ...     found.add(torch.tensor([[row]]))
    >>> found.products.tolist()
    [[[1.0, 2.0], [2.0, 5.0]]]
    """

    def __init__(self) -> None:
        self._upper: Tensor | None = None

    def add(self, x: Tensor) -> None:
        if self._upper is None:
            kind = torch.float64 if x.shape[2] <= WIDE else x.dtype
            self._upper = x.new_zeros(len(x), x.shape[2], x.shape[2], dtype=kind)
        _accumulate_upper(self._upper, x)

    @property
    def products(self) -> Tensor:
        """The sums so far, at double precision; 0 before any row."""
        return torch.zeros((), dtype=torch.float64) if self._upper is None else _mirrored(self._upper).double()


def _accumulate(held: Tensor, x: Tensor, y: Tensor) -> None:
    """Add xᵀ y to `held`, at its own precision."""
    if held.dtype == x.dtype:
        held.baddbmm_(x.transpose(1, 2), y)
    else:
        held += x.transpose(1, 2) @ y


def _accumulate_upper(held: Tensor, x: Tensor) -> None:
    """Add xᵀ x to `held`, block by block of its columns, down to the diagonal."""
    for start in range(0, x.shape[2], BLOCK):
        end = start + BLOCK
        _accumulate(held[:, :end, start:end], x[:, :, :end], x[:, :, start:end])


def _mirrored(upper: Tensor) -> Tensor:
    """The whole of what is known down to the diagonal, in place."""
    for start in range(0, upper.shape[1], BLOCK):
        end = start + BLOCK
        upper[:, end:, start:end] = upper[:, start:end, end:].transpose(1, 2)
    return upper
