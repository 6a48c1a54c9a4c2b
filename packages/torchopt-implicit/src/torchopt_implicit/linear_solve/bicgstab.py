"""BiCGSTAB, for any operator, without its transpose."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from torchopt_implicit._operator import FlatMap, LinearOperator, as_operator
from torchopt_implicit._status import Info
from torchopt_implicit.linear_solve._base import (
    LinearSolver,
    check_options,
    default_maxiter,
    dot,
    norm,
    with_ridge,
)
from torchopt_implicit.linear_solve._iterate import Outcome, Stop, iterate, ratio
from torchopt_implicit.linear_solve._options import with_options_of, with_truncation

__all__ = ["BiCGSTAB", "solve_bicgstab"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiCGSTAB(LinearSolver):
    """The solver that :func:`solve_bicgstab` returns, which documents its options."""

    ridge: float | torch.Tensor | None = None
    init: Any = None
    maxiter: int | None = None
    rtol: float = 1e-5
    atol: float = 0.0
    M: Any = None
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
        M = None if self.M is None else as_operator(self.M, A.domain).matvec
        x = None if self.init is None else A.domain.ravel(self.init, "init").expand_as(b)

        def cycle(x: torch.Tensor, residual: torch.Tensor, stop: Stop) -> Outcome:
            return _cycle(matvec, M or (lambda v: v), x, residual, stop)

        return iterate(
            cycle,
            lambda x: b - matvec(x),
            x,
            b,
            rtol=self.rtol,
            atol=self.atol,
            maxiter=default_maxiter(self.maxiter, A.domain.size),
            truncate=self.truncate,
        )


def _cycle(
    matvec: FlatMap, M: FlatMap, x: torch.Tensor, residual: torch.Tensor, stop: Stop
) -> Outcome:
    r = shadow = p = residual
    rho = dot(shadow, r)
    count = torch.zeros_like(rho, dtype=torch.int64)
    broke = torch.zeros_like(rho, dtype=torch.bool)
    # below this, an inner product is rounding and the recurrence cannot go on
    rounding = torch.finfo(r.dtype).eps ** 2
    steps = 0
    for steps in range(stop.limit + 1):
        length = norm(r.detach())
        active = (length > stop.tolerance) & ~broke
        if steps == stop.limit or stop.is_due(steps, active):
            break
        direction = M(p)
        v = matvec(direction)
        slope = dot(shadow, v)
        usable = active & (slope.abs() > rounding * norm(shadow) * norm(v))
        alpha = ratio(rho, slope, usable)
        s = r - alpha * v
        half = M(s)
        t = matvec(half)
        squared = dot(t, t)
        omega = ratio(dot(t, s), squared, usable & (squared > 0))
        x = x + alpha * direction + omega * half
        r = torch.where(usable, s - omega * t, r)
        old, rho = rho, dot(shadow, r)
        count = count + usable
        # where omega or rho is gone, a new cycle starts with another shadow residual
        goes_on = usable & (omega != 0) & (rho.abs() > rounding * norm(shadow) * norm(r))
        beta = ratio(rho * alpha, old * omega, goes_on)
        p = r + beta * (p - omega * v)
        broke = broke | (active & ~goes_on)
    return Outcome(x, r, count, broke, steps)


@with_options_of(BiCGSTAB)
def solve_bicgstab(**kwargs: Any) -> BiCGSTAB:
    r"""Return a solver of :math:`(A + \rho I) x = b` by stabilized biconjugate gradients.

    For any operator that is not singular. An iteration costs two matvecs and no transpose; memory
    does not grow with iterations. It may break down or wander where GMRES would not.

    Args:
        ridge: :math:`\rho`, 0 by default.
        init: The tree to start from, 0 by default.
        maxiter: Limit on iterations; ten for each unknown by default.
        rtol: The residual norm to reach, relative to that of ``b``, 1e-5 by default.
        atol: Or absolutely, 0 by default; the larger of both counts.
        M: A preconditioner from the right, an approximate inverse.
        truncate: Whether ``maxiter`` iterations are what is wanted, so that ending there is no
            failure. False by default, but True where ``maxiter`` is given and tolerances that are
            0 are, as in ``maxiter=5, atol=0``.
        throw: Whether a failure raises, rather than warns.

    Returns:
        A :class:`BiCGSTAB`, called as ``solver(A, b)``.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If an option is out of its range.

    Example:
        >>> import torch, torchopt
        >>> A = torch.tensor([[2.0, 1.0], [0.0, 4.0]])
        >>> torchopt.linear_solve.solve_bicgstab()(A, torch.tensor([4.0, 8.0])).round(decimals=4)
        tensor([1., 2.])

    Reference:
        van der Vorst, Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG, 1992.
    """
    return BiCGSTAB(**with_truncation(kwargs))
