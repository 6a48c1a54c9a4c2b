"""The inverse: by the Neumann series, or directly."""

from __future__ import annotations

import dataclasses
from typing import Literal, overload

import torch

from torchopt_implicit._operator import FlatMap, LinearOperator
from torchopt_implicit._tags import Tag
from torchopt_implicit._tree import Layout
from torchopt_implicit.linear_solve._base import norm
from torchopt_implicit.linear_solve._krylov import Krylov, Outcome, Stop
from torchopt_implicit.linear_solve._options import tolerances
from torchopt_implicit.linear_solve.lu import LU

__all__ = ["Neumann", "solve_inv"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neumann(Krylov):
    """What :func:`solve_inv` returns for ``ns=True``.

    The partial sums of the series are :math:`x_{k+1} = x_k + \\alpha (b - A x_k)`, from
    :math:`\\alpha b` on: :math:`\\alpha I` is the preconditioner.
    """

    alpha: float | torch.Tensor | None = None

    def preconditioner(self, layout: Layout) -> LinearOperator | None:
        if self.alpha is None:
            return None
        alpha = self.alpha

        def scale(v: torch.Tensor) -> torch.Tensor:
            return alpha * v

        return LinearOperator(scale, scale, layout, layout, tags=Tag.DIAGONAL)

    def start(self, b: torch.Tensor, M: FlatMap | None) -> torch.Tensor | None:
        return b.clone() if M is None else M(b)

    def limit(self, n: int) -> int:
        return 10 if self.maxiter is None else self.maxiter

    def cycle(
        self,
        A: LinearOperator,
        M: FlatMap | None,
        x: torch.Tensor,
        residual: torch.Tensor,
        stop: Stop,
    ) -> Outcome:
        length = norm(residual)
        count = torch.zeros_like(length, dtype=torch.int64)
        steps = 0
        for steps in range(stop.limit + 1):
            active = (length > stop.tolerance) & torch.isfinite(length)
            if steps == stop.limit or stop.is_due(steps, active):
                break
            step = residual if M is None else M(residual)
            x = torch.where(active, x + step, x)
            residual = torch.where(active, residual - A.matvec(step), residual)
            length = norm(residual)
            count = count + active
        diverges = length > (stop.size if self.truncate else torch.inf)
        return Outcome(x, residual, count, diverges & (steps == stop.limit), steps)


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
    rtol: float | None = None,
    atol: float | None = None,
    truncate: bool | None = None,
    throw: bool = False,
) -> Neumann | LU: ...


def solve_inv(
    *,
    ns: bool = False,
    ridge: float | torch.Tensor | None = None,
    maxiter: int | None = None,
    alpha: float | torch.Tensor | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    truncate: bool | None = None,
    throw: bool = False,
) -> Neumann | LU:
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
    if ns:
        options = tolerances(maxiter, rtol, atol, truncate, by_limit=True)
        return Neumann(ridge=ridge, alpha=alpha, throw=throw, **options)
    series = {
        "maxiter": maxiter,
        "alpha": alpha,
        "rtol": rtol,
        "atol": atol,
        "truncate": truncate,
    }
    for name, value in series.items():
        if value is not None:
            raise TypeError(f"`{name}` is an option of the series, got {value!r}: say `ns=True`")
    return LU(ridge=ridge, throw=throw)
