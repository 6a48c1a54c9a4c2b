"""Least squares of least norm, for operators that are singular or not square."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from torchopt_implicit._capture import has_derivatives
from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._status import Info, Status
from torchopt_implicit.linear_solve._base import (
    Factorization,
    LinearSolver,
    check_options,
    has_ridge,
    make_info,
    scaled_norm,
    working_dtype,
)
from torchopt_implicit.linear_solve._direct import as_columns, dense

__all__ = ["LeastSquares", "judge_least_squares", "solve_lstsq"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeastSquares(LinearSolver):
    """The solver that :func:`solve_lstsq` returns."""

    takes_rectangular: ClassVar[bool] = True

    ridge: float | torch.Tensor | None = None
    rcond: float | None = None

    def __post_init__(self) -> None:
        check_options(ridge=self.ridge)

    def solve_vector(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        matrix = _matrix(A, torch.Size())
        if not has_derivatives(matrix):
            return self._decompose(matrix, 0).solve(A, b)
        # singular vectors have no derivatives where singular values meet, the solution has
        finite = _is_finite(matrix)
        M, column = torch.where(finite, matrix, 0), b.to(matrix.dtype).unsqueeze(-1)
        if has_ridge(self.ridge):
            x = self._regularized(M, self.ridge) @ column
        else:
            x = torch.linalg.pinv(M, rtol=self._rcond(matrix)) @ column
        x = torch.where(finite, x, torch.nan).squeeze(-1).to(b.dtype)
        size = scaled_norm(matrix.detach().flatten(-2))
        return x, judge_least_squares(A, b, x, size, self.ridge)

    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        return self.factorize(A, b.shape[:-1]).solve(A, b)

    def factorize(self, A: LinearOperator, batch: torch.Size) -> Factorization:
        return self._decompose(_matrix(A, batch), len(batch))

    def _decompose(self, matrix: torch.Tensor, batch_ndim: int) -> _SingularValues:
        finite = _is_finite(matrix)
        U, S, Vh = torch.linalg.svd(torch.where(finite, matrix, 0), full_matrices=False)
        largest = S[..., :1] if S.shape[-1] else S
        inverse = torch.where(self._rcond(matrix) * largest < S, 1 / S, 0)
        if has_ridge(self.ridge):
            inverse = S / (S * S + self.ridge)
        inverse = torch.where(finite[..., 0], inverse, torch.nan)
        size = scaled_norm(S) if S.shape[-1] else S.sum(-1)
        size = torch.where(finite[..., 0, 0], size.reshape(finite.shape[:-2]), torch.nan)
        return _SingularValues(U, inverse, Vh, size, batch_ndim, self.ridge)

    def _regularized(self, M: torch.Tensor, ridge: float | torch.Tensor) -> torch.Tensor:
        r"""Return :math:`(M^\top M + \rho I)^{-1} M^\top`, with derivatives.

        Those of the first columns of the pseudoinverse of :math:`(M; \sqrt\rho\, I)`, since
        :math:`M^\top M + \rho I` is singular where it loses the ridge to rounding. The root is a
        constant, which has no derivative at 0; what the ridge is beyond its square comes after.
        """
        eye = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
        root = torch.as_tensor(ridge, dtype=M.dtype, device=M.device).detach().clamp(min=0).sqrt()
        stacked: torch.Tensor = torch.linalg.pinv(torch.cat([M, root * eye]))
        columns = stacked[:, : M.shape[-2]]
        # whose own digits go with the condition of the stacked matrix, of singular values they last
        exact = dataclasses.replace(self, ridge=root.square())._decompose(M.detach(), 0)
        inverse: torch.Tensor = exact.pseudoinverse + (columns - columns.detach())
        if not isinstance(ridge, torch.Tensor):
            return inverse
        change = (ridge - root.square()) * (stacked @ stacked.mT)
        inverse = torch.linalg.solve(eye + change, inverse)
        return inverse

    def _rcond(self, matrix: torch.Tensor) -> float:
        if self.rcond is not None:
            return self.rcond
        return max(matrix.shape[-2:]) * torch.finfo(matrix.dtype).eps


@dataclasses.dataclass(frozen=True)
class _SingularValues(Factorization):
    U: torch.Tensor
    inverse: torch.Tensor  # what the singular values become
    Vh: torch.Tensor
    size: torch.Tensor  # the Frobenius norm
    batch_ndim: int
    ridge: float | torch.Tensor | None

    @property
    def pseudoinverse(self) -> torch.Tensor:
        return (self.Vh.mT * self.inverse.unsqueeze(-2)) @ self.U.mT

    @property
    def T(self) -> Factorization:
        return dataclasses.replace(self, U=self.Vh.mT, Vh=self.U.mT)

    def solve(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        columns = as_columns(b, self.batch_ndim).to(self.U.dtype)
        x = self.Vh.mT @ (self.inverse.unsqueeze(-1) * (self.U.mT @ columns))
        x = x.movedim(-1, 0).reshape((*b.shape[:-1], self.Vh.shape[-1])).to(b.dtype)
        return x, judge_least_squares(A, b, x, self.size, self.ridge)


@torch.no_grad()
def judge_least_squares(
    A: LinearOperator,
    b: torch.Tensor,
    x: torch.Tensor,
    size: torch.Tensor,
    ridge: float | torch.Tensor | None,
    *,
    needs_solution: bool = False,
) -> Info:
    r"""Return a verdict by how small :math:`A^\top (b - A x) - \rho x` is.

    Args:
        A: The operator.
        b: The right-hand sides.
        x: The solutions.
        size: A norm of ``A`` for each problem of the batch.
        ridge: :math:`\rho`.
        needs_solution: Whether a solution that is not finite is a breakdown of the method, where
            the problem is finite.
    """
    x, b = x.detach(), b.detach()
    residual = b - A.matvec(x)
    slope = A.rmatvec(residual)
    if has_ridge(ridge):
        slope = slope - ridge * x
    known, length = scaled_norm(b), scaled_norm(residual)
    size = size.unsqueeze(-1) if b.ndim > 1 else size
    bound = torch.finfo(b.dtype).eps ** 0.5 * size * (size * scaled_norm(x) + known)
    status = torch.where(scaled_norm(slope) <= bound, Status.CONVERGED, Status.BREAKDOWN)
    finite = torch.isfinite(known) & torch.isfinite(size)
    if not needs_solution:
        finite = finite & torch.isfinite(length)
    return make_info(0, length, torch.where(finite, status, Status.NOT_FINITE))


def _matrix(A: LinearOperator, batch: torch.Size) -> torch.Tensor:
    matrix = dense(A, batch)
    return matrix.to(working_dtype(matrix.dtype))


def _is_finite(matrix: torch.Tensor) -> torch.Tensor:
    """Return which matrices are finite, ``(*batch, 1, 1)``: to decompose others would raise."""
    return torch.isfinite(matrix).all(-1).all(-1)[..., None, None]


def solve_lstsq(
    *,
    ridge: float | torch.Tensor | None = None,
    rcond: float | None = None,
    throw: bool = False,
) -> LeastSquares:
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
    return LeastSquares(ridge=ridge, rcond=rcond, throw=throw)
