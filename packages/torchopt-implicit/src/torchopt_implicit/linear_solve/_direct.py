"""What the direct solvers share: the matrix, factorized once, used both ways."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import torch

from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._status import Info
from torchopt_implicit.linear_solve._base import (
    LinearSolver,
    check_options,
    residual_info,
    with_ridge,
)

__all__ = ["DirectSolver", "as_columns", "dense"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectSolver(LinearSolver):
    """A method that factorizes the matrix of ``A + ridge * I``, found by one batched matvec."""

    ridge: float | torch.Tensor | None = None

    def __post_init__(self) -> None:
        check_options(ridge=self.ridge)

    @abc.abstractmethod
    def factors(self, matrix: torch.Tensor) -> Any:
        """Return the factors of matrices ``(*batch, n, n)``."""

    @abc.abstractmethod
    def back_substitute(self, factors: Any, b: torch.Tensor, transposed: bool) -> torch.Tensor:
        """Return the solutions for columns ``(*batch, n, k)``."""

    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        return self.run_factorized(self.factorize(A, b.shape[:-1]), A, b, transposed=False)

    def factorize(self, A: LinearOperator, batch: torch.Size) -> Any:
        matrix = dense(A, batch)
        if self.ridge is not None:
            eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
            matrix = matrix + self.ridge * eye
        return self.factors(matrix), len(batch)

    def run_factorized(
        self, factors: Any, A: LinearOperator, b: torch.Tensor, *, transposed: bool
    ) -> tuple[torch.Tensor, Info]:
        decomposition, batch_ndim = factors
        x = self.back_substitute(decomposition, as_columns(b, batch_ndim), transposed)
        x = x.movedim(-1, 0).reshape(b.shape)
        residual = b - with_ridge(A.matvec, self.ridge)(x)
        return x, residual_info(residual, b, torch.finfo(b.dtype).eps ** 0.5)


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
