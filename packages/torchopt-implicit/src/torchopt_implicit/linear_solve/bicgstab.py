"""BiCGSTAB, for any operator, without its transpose."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from torchopt_implicit._operator import FlatMap, LinearOperator
from torchopt_implicit.linear_solve._base import dot, norm
from torchopt_implicit.linear_solve._krylov import Krylov, Outcome, Stop, ratio
from torchopt_implicit.linear_solve._options import tolerances

__all__ = ["BiCGSTAB", "solve_bicgstab"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiCGSTAB(Krylov):
    """The solver that :func:`solve_bicgstab` returns, which documents its options."""

    # with another shadow residual each
    retries: ClassVar[int] = 4

    def cycle(
        self,
        A: LinearOperator,
        M: FlatMap | None,
        x: torch.Tensor,
        residual: torch.Tensor,
        stop: Stop,
    ) -> Outcome:
        M = M or (lambda v: v)
        r = p = residual
        shadow = _shadow(r, stop.attempt)
        rho = dot(shadow, r)
        count = torch.zeros_like(rho, dtype=torch.int64)
        broke = torch.zeros_like(rho, dtype=torch.bool)
        # below this, an inner product is rounding and the recurrence cannot go on
        rounding = torch.finfo(r.dtype).eps ** 2
        steps = 0
        for steps in range(stop.limit + 1):
            active = (norm(r) > stop.tolerance) & ~broke
            if steps == stop.limit or stop.is_due(steps, active):
                break
            direction = M(p)
            v = A.matvec(direction)
            slope = dot(shadow, v)
            usable = active & (slope.abs() > rounding * norm(shadow) * norm(v))
            alpha = ratio(rho, slope, usable)
            s = r - alpha * v
            half = M(s)
            t = A.matvec(half)
            squared = dot(t, t)
            omega = ratio(dot(t, s), squared, usable & (squared > 0))
            x = x + alpha * direction + omega * half
            r = torch.where(usable, s - omega * t, r)
            old, rho = rho, dot(shadow, r)
            count = count + usable
            goes_on = usable & (omega.abs() * norm(t) > rounding * norm(s))
            goes_on = goes_on & (rho.abs() > rounding * norm(shadow) * norm(r))
            beta = ratio(rho * alpha, old * omega, goes_on)
            p = r + beta * (p - omega * v)
            # unless it is done, a new cycle starts with another shadow residual
            broke = broke | (active & ~goes_on & (norm(r) > stop.tolerance))
        return Outcome(x, r, count, broke, steps)


def _shadow(r: torch.Tensor, attempt: int) -> torch.Tensor:
    """Return what residuals are to be orthogonal to: the first, or after a breakdown any other."""
    if attempt == 0:
        return r
    generator = torch.Generator().manual_seed(attempt)
    noise = torch.randn(r.shape[-1], dtype=torch.float64, generator=generator).to(r)
    shadow: torch.Tensor = r + norm(r) / max(r.shape[-1], 1) ** 0.5 * noise
    return shadow


def solve_bicgstab(
    *,
    ridge: float | torch.Tensor | None = None,
    init: Any = None,
    maxiter: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    M: Any = None,
    truncate: bool | None = None,
    throw: bool = False,
) -> BiCGSTAB:
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
    return BiCGSTAB(
        ridge=ridge,
        init=init,
        M=M,
        throw=throw,
        **tolerances(maxiter, rtol, atol, truncate),
    )
