"""Least squares of least norm, for operators that are singular or not square."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._status import Info, Status
from torchopt_implicit.linear_solve._base import (
    LinearSolver,
    check_options,
    has_ridge,
    make_info,
    norm,
)
from torchopt_implicit.linear_solve._direct import as_columns, dense
from torchopt_implicit.linear_solve._options import with_options_of

__all__ = ["LeastSquares", "solve_lstsq"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeastSquares(LinearSolver):
    """The solver that :func:`solve_lstsq` returns."""

    ridge: float | torch.Tensor | None = None
    rcond: float | None = None

    def __post_init__(self) -> None:
        check_options(ridge=self.ridge)

    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        return self.run_factorized(self.factorize(A, b.shape[:-1]), A, b, transposed=False)

    def factorize(self, A: LinearOperator, batch: torch.Size) -> Any:
        matrix = dense(A, batch)
        # a decomposition of a matrix that is not finite would raise
        finite = torch.isfinite(matrix).all(-1).all(-1)[..., None, None]
        U, S, Vh = torch.linalg.svd(torch.where(finite, matrix, 0), full_matrices=False)
        return U, torch.where(finite[..., 0], S, torch.nan), Vh, max(matrix.shape[-2:]), len(batch)

    def run_factorized(
        self, factors: Any, A: LinearOperator, b: torch.Tensor, *, transposed: bool
    ) -> tuple[torch.Tensor, Info]:
        U, S, Vh, size, batch_ndim = factors
        if transposed:
            U, Vh = Vh.mT, U.mT
        rcond = size * torch.finfo(S.dtype).eps if self.rcond is None else self.rcond
        largest = S[..., :1] if S.shape[-1] else S
        inverse = torch.where(rcond * largest < S, 1 / S, 0)
        if has_ridge(self.ridge):
            inverse = S / (S * S + self.ridge)
        inverse = torch.where(torch.isnan(S), torch.nan, inverse)
        x = Vh.mT @ (inverse.unsqueeze(-1) * (U.mT @ as_columns(b, batch_ndim)))
        x = x.movedim(-1, 0).reshape((*b.shape[:-1], Vh.shape[-1]))
        residual = (b - A.matvec(x)).detach()
        slope = A.rmatvec(residual)
        if has_ridge(self.ridge):
            slope = slope - self.ridge * x.detach()
        scale = norm(A.rmatvec(b).detach())
        converged = norm(slope) <= torch.finfo(b.dtype).eps ** 0.5 * scale
        status = torch.where(converged, Status.CONVERGED, Status.BREAKDOWN)
        finite = torch.isfinite(scale) & torch.isfinite(norm(residual))
        status = torch.where(finite, status, Status.NOT_FINITE)
        return x, make_info(0, norm(residual), status)


@with_options_of(LeastSquares)
def solve_lstsq(**kwargs: Any) -> LeastSquares:
    r"""Return a solver of :math:`\min_x \|A x - b\|^2 + \rho \|x\|^2`, by singular values.

    For any operator; of many solutions it returns the one of least norm. So a singular system is
    solved as well as it can be, which is its purpose: it converged if
    :math:`A^\top (b - A x) = \rho x`, however large the residual.

    Args:
        ridge: :math:`\rho`, 0 by default.
        rcond: Singular values below this times the largest count as 0; by default the machine
            precision times the number of rows or columns.
        throw: Whether a failure raises, rather than warns.

    Returns:
        A :class:`LeastSquares`, called as ``solver(A, b)``.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If an option is out of its range.

    Example:
        >>> import torch, torchopt
        >>> A = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
        >>> torchopt.linear_solve.solve_lstsq()(A, torch.tensor([1.0, 3.0])).round(decimals=4)
        tensor([1., 1.])

    Reference:
        Golub and Van Loan, Matrix computations, 2013, section 5.5.
    """
    return LeastSquares(**kwargs)
