"""Direct methods for operators whose structure is known: diagonal, triangular, tridiagonal."""

from __future__ import annotations

import abc
import dataclasses

import torch

from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._status import Info
from torchopt_implicit.linear_solve._base import (
    Factorization,
    LinearSolver,
    scaled_norm,
    working_dtype,
)
from torchopt_implicit.linear_solve._direct import Decomposition, Direct, DirectSolver

__all__ = [
    "Diagonal",
    "Triangular",
    "Tridiagonal",
    "solve_diagonal",
    "solve_triangular",
    "solve_tridiagonal",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Banded(LinearSolver):
    """A method that finds all entries by a few matvecs."""

    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        return self.factorize(A, b.shape[:-1]).solve(A, b)

    def factorize(self, A: LinearOperator, batch: torch.Size) -> Factorization:
        decomposition, entries = self.probe(A, batch)
        size = scaled_norm(entries.detach()).reshape(*batch, 1)
        return Direct(decomposition, size, len(batch), None)

    @abc.abstractmethod
    def probe(self, A: LinearOperator, batch: torch.Size) -> tuple[Decomposition, torch.Tensor]:
        """Return the decomposition, and all entries ``(*batch, k)``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagonal(_Banded):
    """The solver that :func:`solve_diagonal` returns."""

    def probe(self, A: LinearOperator, batch: torch.Size) -> tuple[Decomposition, torch.Tensor]:
        (diagonal,) = _columns(A, batch, 1)
        return _Entries(diagonal), diagonal


@dataclasses.dataclass(frozen=True)
class _Entries(Decomposition):
    diagonal: torch.Tensor

    @property
    def T(self) -> Decomposition:
        return self

    def back_substitute(self, b: torch.Tensor) -> torch.Tensor:
        return b / self.diagonal.unsqueeze(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tridiagonal(_Banded):
    """The solver that :func:`solve_tridiagonal` returns."""

    def probe(self, A: LinearOperator, batch: torch.Size) -> tuple[Decomposition, torch.Tensor]:
        # no two columns of the same comb have an entry in the same row
        columns = _columns(A, batch, 3)
        index = torch.arange(A.domain.size, device=A.domain.device)
        whole = torch.stack(columns)

        def band(offset: int) -> torch.Tensor:
            which = (index + offset) % 3
            entries = whole.gather(0, which.expand(1, *whole.shape[1:]))[0]
            inside = (index + offset >= 0) & (index + offset < A.domain.size)
            return torch.where(inside, entries, 0)

        lower, diagonal, upper = band(-1), band(0), band(1)
        entries = torch.cat([lower, diagonal, upper], -1)
        return _Bands(lower, diagonal, upper), entries


@dataclasses.dataclass(frozen=True)
class _Bands(Decomposition):
    lower: torch.Tensor  # A[i, i - 1], at i
    diagonal: torch.Tensor
    upper: torch.Tensor  # A[i, i + 1], at i

    @property
    def T(self) -> Decomposition:
        return _Bands(_shifted(self.upper, 1), self.diagonal, _shifted(self.lower, -1))

    def back_substitute(self, b: torch.Tensor) -> torch.Tensor:
        lower, diagonal, upper = self.lower, self.diagonal, self.upper
        b = b.movedim(-1, 0)
        stride = 1
        while stride < diagonal.shape[-1]:
            # each row takes away the multiples of those a stride away that it has in common
            before = -lower / _shifted(diagonal, stride, fill=1.0)
            after = -upper / _shifted(diagonal, -stride, fill=1.0)
            diagonal = (
                diagonal + before * _shifted(upper, stride) + after * _shifted(lower, -stride)
            )
            b = b + before * _shifted(b, stride) + after * _shifted(b, -stride)
            lower, upper = before * _shifted(lower, stride), after * _shifted(upper, -stride)
            stride *= 2
        return (b / diagonal).movedim(0, -1)


def _shifted(x: torch.Tensor, count: int, fill: float = 0.0) -> torch.Tensor:
    """Return ``x`` moved by ``count`` along its last dimension, and ``fill`` where none is left."""
    n = x.shape[-1]
    pad = torch.nn.functional.pad(x, (count, 0) if count > 0 else (0, -count), value=fill)
    return pad[..., :n] if count > 0 else pad[..., -n:]


def _columns(A: LinearOperator, batch: torch.Size, count: int) -> list[torch.Tensor]:
    """Return the products with vectors that are 1 in every so many entries, and 0 elsewhere."""
    n, dtype = A.domain.size, A.domain.dtype
    index = torch.arange(n, device=A.domain.device)
    combs = [(index % count == k).to(dtype).expand(*batch, n) for k in range(count)]
    return [A.matvec(comb).to(working_dtype(dtype)) for comb in combs]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Triangular(DirectSolver):
    """The solver that :func:`solve_triangular` returns."""

    lower: bool = True

    @property
    def T(self) -> Triangular:
        return dataclasses.replace(self, lower=not self.lower)

    def decompose(self, matrix: torch.Tensor) -> Decomposition:
        return _Triangle(matrix, not self.lower)


@dataclasses.dataclass(frozen=True)
class _Triangle(Decomposition):
    matrix: torch.Tensor
    upper: bool

    @property
    def T(self) -> Decomposition:
        return _Triangle(self.matrix.mT, not self.upper)

    def back_substitute(self, b: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = torch.linalg.solve_triangular(self.matrix, b, upper=self.upper)
        return x


def solve_diagonal(*, throw: bool = False) -> Diagonal:
    """Return a solver of :math:`A x = b` for diagonal operators, by one matvec.

    Args:
        throw: Whether a failure raises, rather than warns.

    Returns:
        A :class:`Diagonal`, called as ``solver(A, b)``.

    Example:
        >>> import torch, torchopt
        >>> torchopt.linear_solve.solve_diagonal()(lambda x: 2 * x, torch.tensor([2.0, 4.0]))
        tensor([1., 2.])
    """
    return Diagonal(throw=throw)


def solve_tridiagonal(*, throw: bool = False) -> Tridiagonal:
    r"""Return a solver of :math:`A x = b` for tridiagonal operators, by cyclic reduction.

    It takes three matvecs, :math:`O(n \log n)` work and linear memory. There is no pivoting: it is
    stable for matrices that are diagonally dominant or positive definite, and breaks down where a
    pivot is 0.

    Args:
        throw: Whether a failure raises, rather than warns.

    Returns:
        A :class:`Tridiagonal`, called as ``solver(A, b)``.

    Example:
        >>> import torch, torchopt
        >>> A = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
        >>> torchopt.linear_solve.solve_tridiagonal()(A, torch.tensor([3.0, 4.0, 3.0]))
        tensor([1., 1., 1.])

    Reference:
        Hockney, A fast direct solution of Poisson's equation using Fourier analysis, 1965.
    """
    return Tridiagonal(throw=throw)


def solve_triangular(
    *, lower: bool = True, ridge: float | torch.Tensor | None = None, throw: bool = False
) -> Triangular:
    r"""Return a solver of :math:`(A + \rho I) x = b` for triangular operators, by substitution.

    It takes :math:`n` matvecs, in one batch, and :math:`n^2` memory.

    Args:
        lower: Whether ``A`` is zero above the diagonal, rather than below.
        ridge: :math:`\rho`, 0 by default.
        throw: Whether a failure raises, rather than warns.

    Returns:
        A :class:`Triangular`, called as ``solver(A, b)``.

    Example:
        >>> import torch, torchopt
        >>> A = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
        >>> torchopt.linear_solve.solve_triangular()(A, torch.tensor([2.0, 3.0]))
        tensor([1., 2.])
    """
    return Triangular(lower=lower, ridge=ridge, throw=throw)
