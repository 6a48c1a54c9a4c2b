"""Cholesky decomposition, for symmetric positive definite operators of moderate size."""

from __future__ import annotations

import dataclasses

import torch

from torchopt_implicit.linear_solve._direct import Decomposition, DirectSolver

__all__ = ["Cholesky", "solve_cholesky"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cholesky(DirectSolver):
    """The solver that :func:`solve_cholesky` returns."""

    def decompose(self, matrix: torch.Tensor) -> Decomposition:
        L, failed = torch.linalg.cholesky_ex(matrix)
        # a factor of a matrix that is not positive definite must not pass for one
        return _Factor(torch.where((failed != 0)[..., None, None], torch.nan, L))


@dataclasses.dataclass(frozen=True)
class _Factor(Decomposition):
    L: torch.Tensor

    @property
    def T(self) -> Decomposition:
        return self

    def back_substitute(self, b: torch.Tensor) -> torch.Tensor:
        return torch.cholesky_solve(b, self.L)


def solve_cholesky(*, ridge: float | torch.Tensor | None = None, throw: bool = False) -> Cholesky:
    r"""Return a solver of :math:`(A + \rho I) x = b` by a Cholesky decomposition.

    For symmetric positive definite operators; others break down. It takes :math:`n` matvecs, in one
    batch, :math:`n^2` memory and half the arithmetic of :func:`solve_lu`; further solves of an
    implicit derivative reuse the decomposition.

    Args:
        ridge: :math:`\rho`, 0 by default.
        throw: Whether a failure raises, rather than warns.

    Returns:
        A :class:`Cholesky`, called as ``solver(A, b)``.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If an option is out of its range.

    Example:
        >>> import torch, torchopt
        >>> A = torch.tensor([[4.0, 2.0], [2.0, 5.0]])
        >>> torchopt.linear_solve.solve_cholesky()(A, torch.tensor([6.0, 7.0]))
        tensor([1., 1.])
    """
    return Cholesky(ridge=ridge, throw=throw)
