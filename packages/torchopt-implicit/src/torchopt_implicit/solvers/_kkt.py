"""The linear systems of a quadratic program, factorised once for each set of weights."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from torchopt_implicit._functorch import lower, unwrap
from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._status import Info, Status
from torchopt_implicit.linear_solve import Factorization, LinearSolver

__all__ = ["Data", "Factors", "KKTSolver", "Solved", "factorize", "times"]

REFINEMENTS = 1


def times(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Return the products of a batch of matrices and vectors."""
    return torch.matmul(matrix, vector.unsqueeze(-1)).squeeze(-1)


class Data(NamedTuple):
    """A quadratic program, all fields with the same number of leading batch dimensions."""

    Q: torch.Tensor
    q: torch.Tensor
    G: torch.Tensor
    h: torch.Tensor
    A: torch.Tensor
    b: torch.Tensor
    # a positive definite stand-in for `Q`: with the equalities' penalty, and a little more
    base: torch.Tensor
    # that penalty, of shape (..., 1)
    penalty: torch.Tensor
    # weights at which the inequalities curve the objective as much as `Q` does
    unit: torch.Tensor

    @classmethod
    def of(cls, Q: Any, q: Any, G: Any, h: Any, A: Any, b: Any) -> Data:
        """Add to the program what is computed once."""
        eps = torch.finfo(Q.dtype).eps
        diagonal = Q.diagonal(dim1=-2, dim2=-1).abs().sum(-1) / max(Q.shape[-1], 1)
        scale = torch.where(diagonal > 0, diagonal, 1.0).unsqueeze(-1)
        weight = A.square().sum((-2, -1)).unsqueeze(-1)
        penalty = scale / torch.where(weight > 0, weight, 1.0)
        # with the penalty for leaving the equalities, a Hessian that is positive on their null
        # space alone becomes positive, and the solution stays what it is
        base = Q + penalty.unsqueeze(-1) * (A.mT @ A) if A.shape[-2] else Q.clone()
        base.diagonal(dim1=-2, dim2=-1).add_(eps**0.75 * scale)
        rows = G.square().sum(-1)
        unit = scale / torch.where(rows > 0, rows, 1.0)
        return cls(Q, q, G, h, A, b, base, penalty, unit)


class Factors(NamedTuple):
    r"""Cholesky factors for the linear system in which inequalities have weights :math:`W \ge 0`,

    .. math::
        Q z + G^\top \lambda + A^\top \nu = u, \quad W G z - \kappa \lambda = w, \quad A z = v,

    where :math:`\kappa` is one, or zero for inequalities that are to hold as equalities exactly.
    Their weight then is but large, and refinement closes the gap.
    """

    data: Data
    weights: torch.Tensor
    # which inequalities are equalities
    exact: torch.Tensor
    # upper ones of H = Q + G^T W G + penalty A^T A, and of A H^-1 A^T
    hessian: torch.Tensor
    schur: torch.Tensor
    # H^-1 A^T
    columns: torch.Tensor

    def solve(
        self, u: torch.Tensor, w: torch.Tensor, v: torch.Tensor, *, refinements: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return ``(z, lam, nu)`` after some steps of iterative refinement."""
        data = self.data
        z, lam, nu = self._solve_once(u, w, v)
        for _ in range(refinements):
            dz, dlam, dnu = self._solve_once(
                u - times(data.Q, z) - times(data.G.mT, lam) - times(data.A.mT, nu),
                w - self.weights * times(data.G, z) + torch.where(self.exact, 0.0, lam),
                v - times(data.A, z),
            )
            z, lam, nu = z + dz, lam + dlam, nu + dnu
        return z, lam, nu

    def _solve_once(
        self, u: torch.Tensor, w: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        data = self.data
        right = u + times(data.G.mT, w)
        nu = v
        if v.shape[-1]:
            right = right + data.penalty * times(data.A.mT, v)
        z = _cholesky_solve(right, self.hessian)
        if v.shape[-1]:
            nu = _cholesky_solve(times(data.A, z) - v, self.schur)
            z = z - times(self.columns, nu)
        return z, self.weights * times(data.G, z) - w, nu


def _cholesky_solve(right: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    # in half the time of `torch.cholesky_solve`, which copies the factors
    half = torch.linalg.solve_triangular(factor.mT, right.unsqueeze(-1), upper=False)
    whole: torch.Tensor = torch.linalg.solve_triangular(factor, half, upper=True)
    return whole.squeeze(-1)


def _damp(matrix: torch.Tensor) -> torch.Tensor:
    """Keep rounding from making a positive definite matrix indefinite; any scaling of rows."""
    matrix.diagonal(dim1=-2, dim2=-1).mul_(1 + 10 * torch.finfo(matrix.dtype).eps)
    return matrix


def _add(product: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return the sum, in the memory of the product unless a transform has to see it."""
    is_plain = unwrap(product) is product and unwrap(base) is base
    return product.add_(base) if is_plain else product + base


def factorize(data: Data, weights: torch.Tensor, exact: torch.Tensor | None = None) -> Factors:
    """Return the factors for weights of the inequalities, ``exact`` ones among them."""
    if exact is None:
        exact = torch.zeros_like(weights, dtype=torch.bool)
    hessian = _add(data.G.mT @ (weights.unsqueeze(-1) * data.G), data.base)
    # the upper factor comes faster
    upper, _ = torch.linalg.cholesky_ex(_damp(hessian), upper=True)
    if data.A.shape[-2] == 0:
        empty = upper[..., :0]
        return Factors(data, weights, exact, upper, empty[..., :0, :], empty)
    columns = torch.cholesky_solve(data.A.mT.expand(*upper.shape[:-1], -1), upper, upper=True)
    schur = data.A @ columns
    diagonal = schur.diagonal(dim1=-2, dim2=-1)
    # equalities that depend on each other make this one singular
    schur = schur + torch.diag_embed(torch.finfo(schur.dtype).eps ** 0.75 * diagonal)
    factor, _ = torch.linalg.cholesky_ex(_damp(schur), upper=True)
    return Factors(data, weights, exact, upper, factor, columns)


class Solved(NamedTuple):
    """A solved program: where, and the factors there."""

    lam: torch.Tensor
    s: torch.Tensor
    factors: Factors


@dataclasses.dataclass(frozen=True, kw_only=True)
class KKTSolver(LinearSolver):
    r"""Solves with the derivative of the optimality conditions, and with its transpose.

    .. math::
        J = \begin{bmatrix} Q & G^\top & A^\top \\ \Lambda G & -S & 0 \\ A & 0 & 0 \end{bmatrix}

    Rows scaled by :math:`\Lambda^{-1}` make it symmetric, and so do, in the transpose, unknowns
    scaled by :math:`\Lambda`. So the factors that the forward solve ended with serve for both.
    """

    #: batch dimensions of the program
    native: torch.Size
    #: underneath the transforms, with dimensions for these in front
    solved: Solved
    tolerance: float

    @classmethod
    def of(cls, solved: Solved, *, tolerance: float, throw: bool) -> KKTSolver:
        """Return the solver of a program, given what is known at the current transforms."""
        native = solved.s.shape[:-1]
        # all transforms wrap `s`, which depends on all data
        return cls(native=native, solved=lower(solved, solved.s), tolerance=tolerance, throw=throw)

    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        return self.factorize(A, b.shape[:-1]).solve(A, b)

    def factorize(self, A: LinearOperator, batch: torch.Size) -> Factorization:
        return _Factorized(self, is_transposed=True)


@dataclasses.dataclass(frozen=True)
class _Factorized(Factorization):
    solver: KKTSolver
    is_transposed: bool  # whether the operator is the transpose of J, as implicit derivatives ask

    @property
    def T(self) -> Factorization:
        return dataclasses.replace(self, is_transposed=not self.is_transposed)

    def solve(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        factors = self.solver.solved
        lam, s, kkt = factors
        active = kkt.exact | (lam > s)
        u, t, v = self._split(b.to(lam.dtype), factors)
        if self.is_transposed:
            z, scaled, nu = kkt.solve(u, kkt.weights * t, v, refinements=REFINEMENTS)
            middle = _divide(
                torch.where(active, scaled, times(kkt.data.G, z) - t), torch.where(active, lam, s)
            )
        else:
            w = _divide(torch.where(active, kkt.weights * t, t), torch.where(active, lam, s))
            z, middle, nu = kkt.solve(u, w, v, refinements=REFINEMENTS)
        x = self._join((z, middle, nu), b).to(b.dtype)
        residual = torch.linalg.vector_norm(A.matvec(x) - b, dim=-1)
        size = torch.linalg.vector_norm(b, dim=-1)
        status = torch.where(
            residual <= self.solver.tolerance * size, int(Status.CONVERGED), int(Status.BREAKDOWN)
        )
        status = torch.where(torch.isfinite(size), status, int(Status.NOT_FINITE))
        return x, Info(torch.zeros_like(status), residual, status)

    def _split(self, b: torch.Tensor, solved: Solved) -> list[torch.Tensor]:
        kkt = solved.factors
        widths = (kkt.hessian.shape[-1], kkt.weights.shape[-1], kkt.schur.shape[-1])
        count = self.solver.native.numel()
        parts = torch.split(b, [count * width for width in widths], dim=-1)
        return [
            part.reshape(*b.shape[:-1], *self.solver.native, width)
            for part, width in zip(parts, widths, strict=True)
        ]

    def _join(self, parts: tuple[torch.Tensor, ...], b: torch.Tensor) -> torch.Tensor:
        count = self.solver.native.numel()
        return torch.cat(
            [part.reshape(*b.shape[:-1], count * part.shape[-1]) for part in parts], dim=-1
        )


def _divide(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the quotient, or zero where a constraint is active without a multiplier."""
    return torch.where(y == 0, 0.0, x / y)
