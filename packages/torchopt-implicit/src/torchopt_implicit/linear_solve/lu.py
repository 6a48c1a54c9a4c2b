"""LU decomposition, for any operator of moderate size."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from torchopt_implicit.linear_solve._direct import DirectSolver
from torchopt_implicit.linear_solve._options import with_options_of

__all__ = ["LU", "solve_lu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LU(DirectSolver):
    """The solver that :func:`solve_lu` returns."""

    def factors(self, matrix: torch.Tensor) -> Any:
        LU, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        return LU, pivots

    def back_substitute(self, factors: Any, b: torch.Tensor, transposed: bool) -> torch.Tensor:
        x: torch.Tensor = torch.linalg.lu_solve(*factors, b, adjoint=transposed)
        return x


@with_options_of(LU)
def solve_lu(**kwargs: Any) -> LU:
    r"""Return a solver of :math:`(A + \rho I) x = b` by an LU decomposition.

    For any operator that is not singular. It takes :math:`n` matvecs, in one batch, and
    :math:`n^2` memory; further solves of an implicit derivative reuse the decomposition, those with
    the transpose included.

    Args:
        ridge: :math:`\rho`, 0 by default.
        throw: Whether a failure raises, rather than warns.

    Returns:
        An :class:`LU`, called as ``solver(A, b)``. It fails as a breakdown if the residual is not
        small beside ``b``, by the square root of the machine precision.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If an option is out of its range.

    Example:
        >>> import torch, torchopt
        >>> A = torch.tensor([[0.0, 2.0], [-1.0, 0.0]])
        >>> torchopt.linear_solve.solve_lu()(A, torch.tensor([2.0, -3.0]))
        tensor([3., 1.])
    """
    return LU(**kwargs)
