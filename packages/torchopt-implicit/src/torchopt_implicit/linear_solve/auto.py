"""The solver that suits an operator, by its size and by what is known of its structure."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._status import Info
from torchopt_implicit._tags import Tag
from torchopt_implicit.linear_solve._base import Factorization, LinearSolver
from torchopt_implicit.linear_solve._krylov import Krylov
from torchopt_implicit.linear_solve.cg import CG
from torchopt_implicit.linear_solve.cholesky import Cholesky
from torchopt_implicit.linear_solve.lu import LU
from torchopt_implicit.linear_solve.normal_cg import NormalCG
from torchopt_implicit.linear_solve.structured import Diagonal, Triangular, Tridiagonal

__all__ = ["Automatic", "solve_auto"]

#: unknowns up to which a dense factorization is cheaper than iterating
DIRECT_SIZE = 256
TRIANGULAR = Tag.LOWER_TRIANGULAR | Tag.UPPER_TRIANGULAR


@dataclasses.dataclass(frozen=True, kw_only=True)
class Automatic(LinearSolver):
    """The solver that :func:`solve_auto` returns."""

    #: those for large operators: positive definite ones, and all others
    definite: ClassVar[type[Krylov]] = CG
    general: ClassVar[type[Krylov]] = NormalCG

    iterative: type[Krylov] | None = None

    def pick(self, A: LinearOperator) -> LinearSolver:
        """Return the solver for an operator."""
        if Tag.DIAGONAL in A.tags:
            return Diagonal()
        if Tag.TRIDIAGONAL in A.tags and A.positive_definite:
            return Tridiagonal()
        if A.domain.size <= DIRECT_SIZE and A.tags & TRIANGULAR:
            return Triangular(lower=Tag.LOWER_TRIANGULAR in A.tags)
        if A.domain.size <= DIRECT_SIZE:
            return Cholesky() if A.positive_definite else LU()
        method = self.iterative or (self.definite if A.positive_definite else self.general)
        return method(rtol=A.domain.eps ** (2 / 3))

    def solve_vector(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        return self.pick(A).solve_vector(A, b)

    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        return self.pick(A).run(A, b)

    def factorize(self, A: LinearOperator, batch: torch.Size) -> Factorization | None:
        return self.pick(A).factorize(A, batch)


def solve_auto(*, iterative: type[Krylov] | None = None, throw: bool = False) -> Automatic:
    """Return a solver of :math:`A x = b` that chooses its method by the operator.

    By its tags, :func:`solve_diagonal`, :func:`solve_tridiagonal` (if also positive definite, since
    it does not pivot) or, up to 256 unknowns, :func:`solve_triangular`. Without these it factorizes
    the matrix up to 256 unknowns, and iterates beyond:

    - :func:`solve_cholesky` or :func:`solve_cg` where ``A`` is positive definite by its tags;
    - :func:`solve_lu` or :func:`solve_normal_cg` where nothing is known.

    Iterations go on until the residual is near rounding: 3.7e-11 of ``b`` in float64, 2.4e-5 in
    float32.

    Args:
        iterative: The class of the method for large operators instead.
        throw: Whether a failure raises, rather than warns.

    Returns:
        An :class:`Automatic`, called as ``solver(A, b)``.

    Example:
        >>> import torch, torchopt
        >>> A = torch.tensor([[0.0, 2.0], [-1.0, 0.0]])
        >>> torchopt.linear_solve.solve_auto()(A, torch.tensor([2.0, -3.0]))
        tensor([3., 1.])
    """
    return Automatic(iterative=iterative, throw=throw)
