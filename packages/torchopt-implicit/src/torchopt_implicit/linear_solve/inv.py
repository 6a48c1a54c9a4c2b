"""The inverse: by the Neumann series, or directly."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, overload

import torch

from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._status import Info
from torchopt_implicit.linear_solve._base import (
    LinearSolver,
    check_options,
    norm,
    with_ridge,
)
from torchopt_implicit.linear_solve._iterate import Outcome, Stop, iterate
from torchopt_implicit.linear_solve._options import with_truncation
from torchopt_implicit.linear_solve.lu import LU

__all__ = ["Neumann", "solve_inv"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neumann(LinearSolver):
    """What :func:`solve_inv` returns for ``ns=True``."""

    ridge: float | torch.Tensor | None = None
    maxiter: int | None = None
    alpha: float | torch.Tensor | None = None
    rtol: float = 1e-5
    atol: float = 0.0
    truncate: bool = False

    def __post_init__(self) -> None:
        check_options(
            ridge=self.ridge,
            maxiter=self.maxiter,
            rtol=self.rtol,
            atol=self.atol,
            truncate=self.truncate,
        )

    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        matvec = with_ridge(A.matvec, self.ridge)
        alpha: Any = 1.0 if self.alpha is None else self.alpha

        # the partial sums of the series are x <- x + alpha * (b - A x), from alpha * b
        def cycle(x: torch.Tensor, residual: torch.Tensor, stop: Stop) -> Outcome:
            length = norm(residual.detach())
            count = torch.zeros_like(length, dtype=torch.int64)
            steps = 0
            for steps in range(stop.limit + 1):
                active = (length > stop.tolerance) & torch.isfinite(length)
                if steps == stop.limit or stop.is_due(steps, active):
                    break
                x = torch.where(active, x + alpha * residual, x)
                residual = torch.where(active, residual - alpha * matvec(residual), residual)
                length = norm(residual.detach())
                count = count + active
            diverges = length > (norm(b.detach()) if self.truncate else torch.inf)
            return Outcome(x, residual, count, diverges & (steps == stop.limit), steps)

        return iterate(
            cycle,
            lambda x: b - matvec(x),
            alpha * b,
            b,
            rtol=self.rtol,
            atol=self.atol,
            maxiter=10 if self.maxiter is None else self.maxiter,
            truncate=self.truncate,
        )


@overload
def solve_inv(
    *, ns: Literal[False] = False, ridge: float | torch.Tensor | None = None, throw: bool = False
) -> LU: ...


@overload
def solve_inv(
    *,
    ns: bool,
    ridge: float | torch.Tensor | None = None,
    maxiter: int | None = None,
    alpha: float | torch.Tensor | None = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
    truncate: bool = False,
    throw: bool = False,
) -> Neumann | LU: ...


def solve_inv(*, ns: bool = False, **kwargs: Any) -> Neumann | LU:
    r"""Return a solver of :math:`(A + \rho I) x = b` by the inverse of the operator.

    Either a direct method, :func:`solve_lu`, or the Neumann series

    .. math:: x = \alpha \sum_{k=0}^{K} (I - \alpha A - \alpha \rho I)^k\, b,

    which converges if the spectral radius of :math:`I - \alpha A - \alpha \rho I` is below 1. An
    iteration costs one matvec.

    Args:
        ns: Whether to sum the series.
        ridge: :math:`\rho`, 0 by default.
        maxiter: Of the series: :math:`K`, 10 by default.
        alpha: Of the series: :math:`\alpha`, 1 by default.
        rtol: Of the series: the relative residual norm to stop at, 1e-5 by default.
        atol: Of the series: or the absolute one, 0 by default.
        truncate: Of the series: whether :math:`K` terms are what is wanted, so that ending there is
            no failure, but one where they are further from a solution than 0 is. False by default,
            but True where ``maxiter`` is given and no tolerance, or 0, is.
        throw: Whether a failure raises, rather than warns.

    Returns:
        A solver, called as ``solver(A, b)``.

    Raises:
        TypeError: If an option is unknown, or is one of the series and ``ns=False``.
        ValueError: If an option is out of its range.

    Example:
        >>> import torch, torchopt
        >>> A = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
        >>> torchopt.linear_solve.solve_inv(ns=True)(A, torch.tensor([2.0, 2.0]))
        tensor([1., 2.])

    Reference:
        Lorraine, Vicol and Duvenaud, Optimizing millions of hyperparameters by implicit
        differentiation, AISTATS 2020.
    """
    return Neumann(**with_truncation(kwargs, by_limit=True)) if ns else LU(**kwargs)
