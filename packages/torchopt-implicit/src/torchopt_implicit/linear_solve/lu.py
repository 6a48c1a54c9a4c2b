"""LU decomposition, for any operator of moderate size."""

from __future__ import annotations

import dataclasses

import torch

from torchopt_implicit.linear_solve._direct import Decomposition, DirectSolver

__all__ = ["LU", "solve_lu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LU(DirectSolver):
    """The solver that :func:`solve_lu` returns."""

    def decompose(self, matrix: torch.Tensor) -> Decomposition:
        factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        return _Factors(factors, pivots, False)


@dataclasses.dataclass(frozen=True)
class _Factors(Decomposition):
    factors: torch.Tensor
    pivots: torch.Tensor
    adjoint: bool

    @property
    def T(self) -> Decomposition:
        return dataclasses.replace(self, adjoint=not self.adjoint)

    def back_substitute(self, b: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = torch.linalg.lu_solve(self.factors, self.pivots, b, adjoint=self.adjoint)
        return x


def solve_lu(*, ridge: float | torch.Tensor | None = None, throw: bool = False) -> LU:
    r"""Return a solver of :math:`(A + \rho I) x = b` by an LU decomposition.

    For any operator that is not singular. It takes :math:`n` matvecs, in one batch, and
    :math:`n^2` memory; further solves of an implicit derivative reuse the decomposition, those with
    the transpose included.

    Args:
        ridge: :math:`\rho`, 0 by default.
        throw: Whether a failure raises, rather than warns.

    Returns:
        An :class:`LU`, called as ``solver(A, b)``. It fails as a breakdown if the matrix
        cannot be told from a singular one.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If an option is out of its range.

    Example:
        >>> import torch, torchopt
        >>> A = torch.tensor([[0.0, 2.0], [-1.0, 0.0]])
        >>> torchopt.linear_solve.solve_lu()(A, torch.tensor([2.0, -3.0]))
        tensor([3., 1.])
    """
    return LU(ridge=ridge, throw=throw)
