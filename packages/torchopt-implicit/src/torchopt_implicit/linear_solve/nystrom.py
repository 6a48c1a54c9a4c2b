"""Nystroem approximations of positive semidefinite operators: an inverse, and a preconditioner."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from torchopt_implicit._functorch import outside_transforms, without_autocast
from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._status import Info, Status
from torchopt_implicit._tags import Tag
from torchopt_implicit._tree import Layout
from torchopt_implicit.linear_solve._base import (
    Factorization,
    LinearSolver,
    make_info,
    scaled_norm,
    working_dtype,
)
from torchopt_implicit.linear_solve._direct import as_columns
from torchopt_implicit.linear_solve._primitive import solve_by_iteration

__all__ = ["Nystrom", "diagonal_preconditioner", "nystrom_preconditioner", "solve_nystrom"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nystrom(LinearSolver):
    """The solver that :func:`solve_nystrom` returns."""

    presumes_symmetry: ClassVar[bool] = True
    init: ClassVar[None] = None

    rank: int = 10
    ridge: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"`rank` must be a positive integer, got {self.rank!r}")
        given: object = self.ridge
        if isinstance(given, torch.Tensor):
            raise TypeError(
                "`ridge` must be a number, got a tensor, in which the solution would have no "
                "derivative: use ridge.item(), or where one is needed solve_cg(ridge=ridge, M=...) "
                "with a nystrom_preconditioner"
            )
        if not self.ridge > 0:
            raise ValueError(
                f"`ridge` must be positive, got {self.ridge}: it is what is inverted "
                "where the sketch saw nothing"
            )

    def solve_vector(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        # singular vectors have no derivatives where singular values meet
        return solve_by_iteration(self, A, b)

    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        return self.factorize(A, b.shape[:-1]).solve(A, b)

    def posed(
        self, A: LinearOperator, b: torch.Tensor
    ) -> tuple[Nystrom, LinearOperator, torch.Tensor]:
        return self, A, b

    def preconditioner(self, layout: Layout) -> LinearOperator | None:
        return None

    def for_derivatives(self, dtype: torch.dtype) -> Nystrom:
        return self

    @torch.no_grad()
    def iterate(
        self,
        A: LinearOperator,
        M: LinearOperator | None,
        b: torch.Tensor,
        init: torch.Tensor | None,
    ) -> tuple[torch.Tensor, Info]:
        return self.run(A, b)

    def factorize(self, A: LinearOperator, batch: torch.Size) -> Factorization:
        U, spectrum = _sketch(A, batch, self.rank, self.seed)
        return _LowRank(U, 1 / (spectrum + self.ridge), 1 / self.ridge, len(batch))


@dataclasses.dataclass(frozen=True)
class _LowRank(Factorization):
    """The inverse :math:`U D U^T + c (I - U U^T)`."""

    U: torch.Tensor
    inverse: torch.Tensor  # D
    outside: float  # c
    batch_ndim: int

    @property
    def T(self) -> Factorization:
        return self

    def solve(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        columns = as_columns(b, self.batch_ndim).to(self.U.dtype)
        inside = self.U.mT @ columns
        x = self.U @ (self.inverse.unsqueeze(-1) * inside - self.outside * inside)
        x = (x + self.outside * columns).movedim(-1, 0).reshape(b.shape).to(b.dtype)
        with torch.no_grad():
            length = scaled_norm(b.detach() - A.matvec(x.detach()))
            status = torch.where(torch.isfinite(length), Status.TRUNCATED, Status.NOT_FINITE)
        return x, make_info(0, length, status)


@without_autocast()
def _sketch(
    A: LinearOperator, batch: torch.Size, rank: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return eigenvectors ``(*batch, n, k)`` and eigenvalues ``(*batch, k)`` of a sketch of A."""
    n, dtype = A.domain.size, working_dtype(A.domain.dtype)
    with outside_transforms():
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(n, min(rank, n), generator=generator, dtype=torch.float64, device="cpu")
        omega = torch.linalg.qr(drawn)[0].to(device=A.domain.device, dtype=dtype)
    rows = omega.mT.reshape(-1, *(1 for _ in batch), n).expand(-1, *batch, n)
    if rows.numel() == 0:
        return omega.expand(*batch, n, 0), omega.new_zeros(*batch, 0)
    Y = A.matvec(rows.to(A.domain.dtype)).to(dtype).movedim(0, -1)
    # a shift of the size of rounding, taken away again, keeps the small matrix definite
    size = torch.linalg.matrix_norm(Y)[..., None, None]
    shift = torch.finfo(dtype).eps * n**0.5 * size + torch.finfo(dtype).tiny
    Y = Y + shift * omega
    small = omega.mT @ Y
    L, _ = torch.linalg.cholesky_ex((small + small.mT) / 2)
    B = torch.linalg.solve_triangular(L, Y.mT, upper=False).mT
    finite = torch.isfinite(B).all(-1).all(-1)[..., None, None]  # others would raise
    U, S, _ = torch.linalg.svd(torch.where(finite, B, 0), full_matrices=False)
    spectrum = (S.square() - shift[..., 0]).clamp(min=0)
    return U, torch.where(finite[..., 0], spectrum, torch.nan)


def solve_nystrom(
    *, rank: int = 10, ridge: float = 1e-2, seed: int = 0, throw: bool = False
) -> Nystrom:
    r"""Return a solver of :math:`(A + \rho I) x = b` that inverts a sketch of low rank.

    .. math::
        A \approx A \Omega (\Omega^\top A \Omega)^{-1} \Omega^\top A = U \Lambda U^\top, \qquad
        x = U (\Lambda + \rho I)^{-1} U^\top b + \tfrac{1}{\rho} (I - U U^\top) b

    For positive semidefinite operators that are close to low rank, as Hessians of networks are. It
    takes ``rank`` matvecs in one batch, which further solves of an implicit derivative reuse: a
    hypergradient without iterations. As a truncated solve, it is never reported to have failed but
    where a number is not finite.

    Args:
        rank: Columns of :math:`\Omega`.
        ridge: :math:`\rho`, a number.
        seed: Of the random :math:`\Omega`, which is the same in each solve.
        throw: Whether a failure raises, rather than warns.

    Returns:
        A :class:`Nystrom`, called as ``solver(A, b)``.

    Raises:
        TypeError: If ``ridge`` is a tensor.
        ValueError: If ``rank`` or ``ridge`` is not positive.

    Example:
        >>> import torch, torchopt
        >>> A = torch.diag(torch.tensor([4.0, 0.0, 0.0]))
        >>> solver = torchopt.linear_solve.solve_nystrom(rank=1, ridge=0.5)
        >>> solver(A, torch.tensor([9.0, 1.0, 2.0])).round(decimals=3)
        tensor([2., 2., 4.])

    Reference:
        Hataya and Yamada, Nystroem method for accurate and scalable implicit differentiation,
        AISTATS 2023.
    """
    return Nystrom(rank=rank, ridge=ridge, seed=seed, throw=throw)


def nystrom_preconditioner(
    A: LinearOperator, rank: int = 10, ridge: float = 1e-2, *, seed: int = 0
) -> LinearOperator:
    r"""Return a preconditioner ``M`` for :math:`A + \rho I`, by a sketch of ``A``.

    .. math:: M = (\lambda_k + \rho)\, U (\Lambda + \rho I)^{-1} U^\top + I - U U^\top

    Args:
        A: A positive semidefinite operator.
        rank: How many eigenvalues to take away, for as many matvecs in one batch.
        ridge: :math:`\rho`, that of the solve.
        seed: Of the random sketch.

    Returns:
        An operator for ``M`` of :func:`solve_cg`. It has no derivatives, which a solution does not
        need.

    Example:
        >>> import torch, torchopt
        >>> from torchopt.linalg import LinearOperator
        >>> A = LinearOperator.from_matrix(torch.diag(torch.logspace(-4, 4, 50)))
        >>> M = torchopt.linear_solve.nystrom_preconditioner(A, rank=20, ridge=0.1)
        >>> b, options = torch.ones(50), {"ridge": 0.1, "rtol": 1e-4, "maxiter": 1000}
        >>> plain = torchopt.linear_solve.solve_cg(**options).solve(A, b)[1].iterations
        >>> torchopt.linear_solve.solve_cg(M=M, **options).solve(A, b)[1].iterations < plain / 2
        True

    Reference:
        Frangella, Tropp and Udell, Randomized Nystroem preconditioning, SIAM J. Matrix Anal. Appl.
        2023.
    """
    with torch.no_grad():
        U, spectrum = _sketch(A, torch.Size(), rank, seed)
        smallest = spectrum.amin() if spectrum.numel() else spectrum.sum()
        weights = (smallest + ridge) / (spectrum + ridge) - 1

    def apply(v: torch.Tensor) -> torch.Tensor:
        w = v.to(U.dtype)
        return (w + ((w @ U) * weights) @ U.mT).to(v.dtype)

    return LinearOperator(apply, apply, A.domain, A.domain, tags=Tag.POSITIVE_DEFINITE)


@without_autocast()
def diagonal_preconditioner(A: LinearOperator, ridge: float = 0.0) -> LinearOperator:
    r"""Return Jacobi's preconditioner, :math:`M = (\operatorname{diag} A + \rho I)^{-1}`.

    The diagonal takes :math:`n` matvecs, in batches of 64.

    Args:
        A: A positive definite operator.
        ridge: :math:`\rho`, that of the solve.

    Returns:
        An operator for ``M`` of :func:`solve_cg`. It has no derivatives, which a solution does not
        need.

    Example:
        >>> import torch, torchopt
        >>> from torchopt.linalg import LinearOperator
        >>> A = LinearOperator.from_matrix(torch.diag(torch.tensor([1.0, 4.0])))
        >>> torchopt.linear_solve.diagonal_preconditioner(A) @ torch.ones(2)
        tensor([1.0000, 0.2500])
    """
    n, layout = A.domain.size, A.domain
    with torch.no_grad():
        parts = [torch.zeros(0, dtype=layout.dtype, device=layout.device)]
        for start in range(0, n, 64):
            count = min(64, n - start)
            units = torch.zeros(count, n, dtype=layout.dtype, device=layout.device)
            units.diagonal(start).fill_(1)
            parts.append(A.matvec(units).diagonal(start))
        inverse = 1 / (torch.cat(parts) + ridge)

    def apply(v: torch.Tensor) -> torch.Tensor:
        return inverse * v

    return LinearOperator(apply, apply, layout, layout, tags=Tag.DIAGONAL)
