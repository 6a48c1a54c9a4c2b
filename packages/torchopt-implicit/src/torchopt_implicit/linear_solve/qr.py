"""QR decomposition: least squares, and solutions of least norm, for operators of full rank."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._status import Info
from torchopt_implicit.linear_solve._base import (
    Factorization,
    LinearSolver,
    scaled_norm,
    working_dtype,
)
from torchopt_implicit.linear_solve._direct import as_columns, dense
from torchopt_implicit.linear_solve.lstsq import judge_least_squares

__all__ = ["QR", "solve_qr"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QR(LinearSolver):
    """The solver that :func:`solve_qr` returns."""

    takes_rectangular: ClassVar[bool] = True

    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        return self.factorize(A, b.shape[:-1]).solve(A, b)

    def factorize(self, A: LinearOperator, batch: torch.Size) -> Factorization:
        matrix = dense(A, batch)
        matrix = matrix.to(working_dtype(matrix.dtype))
        is_wide = matrix.shape[-2] < matrix.shape[-1]
        Q, R = torch.linalg.qr(matrix.mT if is_wide else matrix)
        size = scaled_norm(matrix.detach().flatten(-2))
        diagonal = R.detach().diagonal(dim1=-2, dim2=-1).abs()
        if diagonal.shape[-1]:  # of full rank, as far as rounding tells
            rounding = max(matrix.shape[-2:]) * torch.finfo(R.dtype).eps
            regular = diagonal.amin(-1) > rounding * diagonal.amax(-1)
            R = torch.where(regular[..., None, None], R, torch.nan)
        return _Factors(Q, R, is_wide, size, len(batch))


@dataclasses.dataclass(frozen=True)
class _Factors(Factorization):
    Q: torch.Tensor
    R: torch.Tensor
    is_transposed: bool  # whether Q R is the transpose of the operator
    size: torch.Tensor
    batch_ndim: int

    @property
    def T(self) -> Factorization:
        return dataclasses.replace(self, is_transposed=not self.is_transposed)

    def solve(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        columns = as_columns(b, self.batch_ndim).to(self.Q.dtype)
        if self.is_transposed:
            half = torch.linalg.solve_triangular(self.R.mT, columns, upper=False)
            x = self.Q @ half
        else:
            x = torch.linalg.solve_triangular(self.R, self.Q.mT @ columns, upper=True)
        x = x.movedim(-1, 0).reshape(*b.shape[:-1], A.domain.size).to(b.dtype)
        info = judge_least_squares(A, b, x, self.size, None, needs_solution=True)
        return x, info


def solve_qr(*, throw: bool = False) -> QR:
    r"""Return a solver of :math:`\min_x \|A x - b\|` by a QR decomposition.

    For operators of full rank: with more rows than columns the least squares solution, with fewer
    the solution of least norm. It takes :math:`n` matvecs in one batch, and less time than
    :func:`solve_lstsq`, which takes those of any rank.

    Args:
        throw: Whether a failure raises, rather than warns.

    Returns:
        A :class:`QR`, called as ``solver(A, b)``. An operator that is not of full rank makes it
        break down.

    Example:
        >>> import torch, torchopt
        >>> A = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> torchopt.linear_solve.solve_qr()(A, torch.tensor([1.0, 2.0, 3.0])).round(decimals=4)
        tensor([1., 2.])

    Reference:
        Golub and Van Loan, Matrix computations, 2013, section 5.3.
    """
    return QR(throw=throw)
