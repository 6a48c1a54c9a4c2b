"""What the direct solvers share: the matrix, factorized once, used both ways."""

from __future__ import annotations

import abc
import dataclasses

import torch

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

__all__ = ["Decomposition", "Direct", "DirectSolver", "as_columns", "dense"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectSolver(LinearSolver):
    """A method that factorizes the matrix of ``A + ridge * I``, found by one batched matvec."""

    ridge: float | torch.Tensor | None = None

    def __post_init__(self) -> None:
        check_options(ridge=self.ridge)

    @abc.abstractmethod
    def decompose(self, matrix: torch.Tensor) -> Decomposition:
        """Return the decomposition of matrices ``(*batch, n, n)``."""

    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        return self.factorize(A, b.shape[:-1]).solve(A, b)

    def factorize(self, A: LinearOperator, batch: torch.Size) -> Factorization:
        matrix = dense(A, batch)
        matrix = matrix.to(working_dtype(matrix.dtype))
        if has_ridge(self.ridge):
            eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
            matrix = matrix + self.ridge * eye
        size = scaled_norm(matrix.detach().flatten(-2)).reshape(*matrix.shape[:-2], 1)
        return Direct(self.decompose(matrix), size, len(batch), self.ridge)


class Decomposition(abc.ABC):
    """Factors of matrices ``(*batch, n, n)``."""

    @property
    @abc.abstractmethod
    def T(self) -> Decomposition:
        """That of the transposes."""

    @abc.abstractmethod
    def back_substitute(self, b: torch.Tensor) -> torch.Tensor:
        """Return the solutions for columns ``(*batch, n, k)``."""


@dataclasses.dataclass(frozen=True)
class Direct(Factorization):
    """A decomposition together with a verdict on what it gives."""

    decomposition: Decomposition
    size: torch.Tensor  # the Frobenius norms, (*batch, 1)
    batch_ndim: int
    ridge: float | torch.Tensor | None

    @property
    def T(self) -> Factorization:
        return dataclasses.replace(self, decomposition=self.decomposition.T)

    def solve(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        columns = as_columns(b, self.batch_ndim).to(self.size.dtype)
        x = self.decomposition.back_substitute(columns).movedim(-1, 0)
        x = x.reshape(b.shape)
        with torch.no_grad():
            product = A.matvec(x.detach().to(b.dtype)).to(x.dtype)
            if has_ridge(self.ridge):
                product = product + self.ridge * x
            info = self._judge(b.detach().to(x.dtype) - product, x, b, A.domain.eps)
        return x.to(b.dtype), info

    def _judge(
        self, residual: torch.Tensor, x: torch.Tensor, b: torch.Tensor, coarse: float
    ) -> Info:
        r"""Return a verdict by the backward error :math:`\|r\| / (\|A\| \|x\| + \|b\|)`.

        A matrix that is singular but for rounding has a small one, too, but with an
        :math:`\|A\| \|x\|` beyond what a matrix can do that its dtype tells from singular ones.
        The product with the operator may be more coarse than the vectors: half precision.
        """
        length, known = scaled_norm(residual.detach()), scaled_norm(b.detach().to(x.dtype))
        size = self.size if b.ndim > 1 else self.size.squeeze(-1)
        spread = size * scaled_norm(x.detach())
        eps = torch.finfo(b.dtype).eps
        converged = (length <= coarse**0.5 * (spread + known)) & (spread * eps <= 0.1 * known)
        status = torch.where(converged, Status.CONVERGED, Status.BREAKDOWN)
        given = torch.isfinite(size) & torch.isfinite(known)
        status = torch.where(given, status, Status.NOT_FINITE)
        return make_info(0, length, status)


def dense(A: LinearOperator, batch: torch.Size) -> torch.Tensor:
    """Return the matrices ``(*batch, m, n)`` of an operator that may differ along the batch."""
    n = A.domain.size
    eye = torch.eye(n, dtype=A.domain.dtype, device=A.domain.device)
    columns = eye.reshape(n, *(1 for _ in batch), n).expand(n, *batch, n)
    if columns.numel() == 0:  # autograd cannot batch over nothing
        return columns.new_zeros(*batch, A.codomain.size, n)
    matrix: torch.Tensor = A.matvec(columns).movedim(0, -1)
    return matrix


def as_columns(b: torch.Tensor, batch_ndim: int) -> torch.Tensor:
    """Return right-hand sides ``(*extra, *batch, n)`` as the columns of ``(*batch, n, k)``."""
    extra = b.ndim - 1 - batch_ndim
    return (b.flatten(0, extra - 1) if extra else b.unsqueeze(0)).movedim(0, -1)
